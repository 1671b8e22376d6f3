"""Many imagined rollouts, and what they have in common.

Each run has a generator of its own, seeded by what it is and not by when it ran: the same seed gives the same figures,
whatever the number of processes.
"""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import ceil
from random import Random
from typing import Final

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import Verdict
from canaryrollout.cli.imagined import ImaginedRollout, Moment, Outcome
from canaryrollout.cli.manifest import Manifest
from canaryrollout.cli.traffic import ImaginedProvider, Traffic, Version
from canaryrollout.domain.intervals import wilson
from canaryrollout.domain.results import Sample
from canaryrollout.domain.settings import DomainSettings

START: Final = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
CHUNK: Final = 5


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to know.

    Attributes:
        manifest: The rollout.
        stable: What is true of the version that serves.
        rps: Requests per second to both versions together.
        runs: Rollouts of each canary.
        seed: Chooses the random numbers.
        bursts: Squared coefficient of variation of the rates, see `Traffic`.
        lag: How far behind the present the provider's data is.
    """

    manifest: Manifest
    stable: Version
    rps: float
    runs: int
    seed: int
    bursts: float
    lag: timedelta

    def about(self, canary: Version) -> Scenario:
        """Return what is simulated for one canary."""
        spec = self.manifest.spec
        serving = spec.initial_stable_version or "stable"
        return Scenario(
            spec,
            serving if serving != spec.version else f"{serving}-before",
            self.manifest.namespace,
            Traffic(self.rps, self.stable, canary, self.bursts),
            self.lag,
            self.seed,
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        spec: The rollout.
        stable: Name of the version that serves.
        namespace: Namespace of the rollout.
        traffic: What is true of its host.
        lag: How far behind the present the provider's data is.
        seed: Chooses the random numbers.
    """

    spec: CanaryRolloutSpec
    stable: str
    namespace: str
    traffic: Traffic
    lag: timedelta
    seed: int


@dataclass(frozen=True, slots=True)
class Run:
    """How one rollout went.

    Attributes:
        number: Which run of its scenario it is.
        outcome: How it ended.
        weight: The canary's weight when it ended, in percent.
        seconds: From its start to its end.
        exposed: Seconds from the first weight to the end.
        gates: Gates that failed in the end.
        hurt: Failed requests of the canary that would not have failed on stable.
        slowed: Slow requests of the canary that would not have been slow on stable.
        waits: Seconds by weight and reason.
    """

    number: int
    outcome: Outcome
    weight: int
    seconds: float
    exposed: float
    gates: tuple[str, ...]
    hurt: int
    slowed: int
    waits: Mapping[tuple[int, str], float]


@dataclass(frozen=True, slots=True)
class Probability:
    """How many of ``of`` runs went some way, with the 95 % interval (Wilson) of the probability behind it."""

    runs: int
    of: int

    @property
    def value(self) -> float:
        """Return the share of the runs."""
        return self.runs / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return where the probability lies."""
        return wilson(Sample(self.runs, self.of))


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile, each a value that did occur."""

    median: float
    p90: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of values; ``None`` where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(*(ordered[ceil(len(ordered) * share) - 1] for share in (0.5, 0.9)))


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long a weight was kept in the runs that went beyond it: whole, and its typical waits by reason."""

    weight: int
    seconds: Spread
    waits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """What runs of one scenario have in common."""

    promoted: Probability
    taken_back: Probability
    out_of_time: Probability
    to_detect: Spread | None
    detected_at: Mapping[int, int]
    gates: Mapping[str, int]
    hurt: Spread | None
    slowed: Spread | None
    to_promotion: Spread | None
    steps: tuple[StepTime, ...]


def replay(scenario: Scenario, number: int, *, judged: bool = False) -> tuple[ImaginedRollout, ImaginedProvider]:
    """Play one rollout to its end.

    Args:
        scenario: What is simulated.
        number: Which of its runs.
        judged: Whether the moments hold what the gates said.
    """
    rng = Random(f"{scenario.seed}/{number}")  # noqa: S311 - a simulation, repeatable on purpose
    start = START + rng.random() * scenario.spec.analysis.interval
    settings = DomainSettings(lag={scenario.spec.analysis.provider: scenario.lag})
    rollout = ImaginedRollout(scenario.spec, scenario.stable, scenario.namespace, start, settings, judged=judged)
    provider = ImaginedProvider(scenario.traffic, scenario.spec, scenario.lag, rng)
    while rollout.ended is None:
        weight = rollout.weight
        moment = rollout.look(provider.answer(rollout.needs(), rollout.now, weight))
        if moment.weight != weight or rollout.ended is not None:
            provider.end_weight(moment.time, weight)
    return rollout, provider


def play(scenario: Scenario, number: int) -> Run:
    """Play one rollout and return how it went."""
    rollout, provider = replay(scenario, number)
    moments, traffic = rollout.moments, scenario.traffic
    end = moments[-1].time
    first = next((moment.time for moment in moments if moment.weight), end)
    return Run(
        number=number,
        outcome=rollout.outcome,
        weight=rollout.ended.weight or 0 if rollout.ended else 0,
        seconds=(end - moments[0].time).total_seconds(),
        exposed=(end - first).total_seconds(),
        gates=tuple(gate.name for gate in rollout.status.gates if gate.verdict is Verdict.FAIL),
        hurt=_beyond(provider.canary.errors, traffic.canary.errors, traffic.stable.errors),
        slowed=_beyond(provider.canary.slow, traffic.canary.slow, traffic.stable.slow),
        waits=_waits(moments),
    )


def _beyond(bad: int, canary: float, stable: float) -> int:
    """Return how many of the canary's bad requests would have been good on stable: ``1 - stable / canary`` of them."""
    return round(bad * (1 - stable / canary)) if canary > stable else 0


def _waits(moments: Sequence[Moment]) -> dict[tuple[int, str], float]:
    """Return seconds by weight and by what was waited for."""
    waits: defaultdict[tuple[int, str], float] = defaultdict(float)
    for moment, after in pairwise(moments):
        waits[moment.weight, moment.reason] += (after.time - moment.time).total_seconds()
    return dict(waits)


def play_all(scenarios: Sequence[Scenario], runs: int, jobs: int) -> Iterator[tuple[int, list[Run]]]:
    """Play every scenario, in processes.

    Args:
        scenarios: What is simulated.
        runs: How often each.
        jobs: Processes; with one, everything happens in this one.

    Yields:
        Index of a scenario and some runs of it, in any order.
    """
    chunks = [
        (index, range(first, min(first + CHUNK, runs)))
        for first in range(0, runs, CHUNK)
        for index in range(len(scenarios))
    ]
    if jobs == 1:
        for index, numbers in chunks:
            yield index, _chunk(scenarios[index], numbers)
        return
    pool = ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        under_way = {pool.submit(_chunk, scenarios[index], numbers): index for index, numbers in chunks}
        for done in as_completed(under_way):
            yield under_way[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunk(scenario: Scenario, numbers: range) -> list[Run]:
    return [play(scenario, number) for number in numbers]


def summarize(runs: Sequence[Run]) -> Summary:
    """Say what runs of one scenario have in common.

    Args:
        runs: The runs, in any order.
    """
    by_outcome = {outcome: [run for run in runs if run.outcome is outcome] for outcome in Outcome}
    promoted, taken_back = by_outcome[Outcome.PROMOTED], by_outcome[Outcome.TAKEN_BACK]
    return Summary(
        promoted=Probability(len(promoted), len(runs)),
        taken_back=Probability(len(taken_back), len(runs)),
        out_of_time=Probability(len(by_outcome[Outcome.OUT_OF_TIME]), len(runs)),
        to_detect=spread([run.exposed for run in taken_back]),
        detected_at=dict(sorted(Counter(run.weight for run in taken_back).items())),
        gates=dict(Counter(gate for run in taken_back for gate in run.gates).most_common()),
        hurt=spread([run.hurt for run in runs]),
        slowed=spread([run.slowed for run in runs]),
        to_promotion=spread([run.seconds for run in promoted]),
        steps=_steps(runs),
    )


def _steps(runs: Sequence[Run]) -> tuple[StepTime, ...]:
    steps = []
    for weight in sorted({weight for run in runs for weight, _ in run.waits}):
        passed = [run for run in runs if run.weight > weight or run.outcome is Outcome.PROMOTED]
        whole = spread([sum(s for (w, _), s in run.waits.items() if w == weight) for run in passed])
        if whole is not None:
            reasons = {reason for run in passed for w, reason in run.waits if w == weight}
            waits = {reason: spread([run.waits.get((weight, reason), 0.0) for run in passed]) for reason in reasons}
            typical = {reason: wait.median for reason, wait in waits.items() if wait and wait.median >= 0.5}
            steps.append(StepTime(weight, whole, dict(sorted(typical.items(), key=lambda item: -item[1]))))
    return tuple(steps)
