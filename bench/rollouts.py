"""Simulated rollouts for the proof that gates neither cry wolf nor sleep: traffic drawn at random, judged as shipped.

Each check of a rollout draws the failed and the slow requests of both versions; the shipped rule
(`canaryrollout.domain.sequential.judge`) judges them, with the evidence carried from step to step exactly as status
carries it. Beside it stand the two rules that users know: one window against a threshold, and five such windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache
from typing import Final

import numpy as np

from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import Counts, FinishedStep, Verdict
from canaryrollout.domain import sequential
from canaryrollout.domain.rates import Pair, RateGate
from canaryrollout.domain.results import Sample

STABLE_RATE: Final = 0.005
CHECKS: Final = 30
LADDER: Final = ((10, 8), (30, 8), (50, 7), (100, 7))
"""Weights of the ladder and how many checks each lasts; traffic as a whole stays the same."""
CONSTANT: Final = ((10, CHECKS),)
WINDOW_LIMIT: Final = Fraction(1, 100)
_NEVER: Final = 0
_T0: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of rollout.

    Attributes:
        ladder: Whether the weight rises from 10 to 100; else it stays at 10.
        canary: Requests of the canary in a check at weight 10.
        ratio: The canary's true error rate over stable's. Its latency is that of stable.
        bursts: Squared coefficient of variation by which each side's rate varies from check to check; 0 for none.
        max_relative: The limit of both relative tests, in percent.
    """

    ladder: bool
    canary: int
    ratio: int
    bursts: float
    max_relative: int

    @property
    def schedule(self) -> tuple[tuple[int, int], ...]:
        """Return the weights and how many checks each lasts."""
        return LADDER if self.ladder else CONSTANT


@dataclass(slots=True)
class Outcome:
    """In which check each rule rolled back, for every rollout; 0 where it never did."""

    sequential: list[int] = field(default_factory=list)
    window: list[int] = field(default_factory=list)
    five: list[int] = field(default_factory=list)


def simulate(cell: Cell, rollouts: int, seed: int) -> Outcome:
    """Simulate rollouts of one kind.

    Args:
        cell: The kind.
        rollouts: How many.
        seed: Seed of the random numbers; the same seed gives the same rollouts.

    Returns:
        When each rule rolled each of them back.
    """
    numbers = np.random.default_rng([seed, cell.canary, cell.ratio, int(100 * cell.bursts), int(cell.ladder)])
    outcome = Outcome()
    for _ in range(rollouts):
        errors, slow = list(_drawn(cell, cell.ratio, numbers)), list(_drawn(cell, 1, numbers))
        outcome.sequential.append(_judged(cell, errors, slow))
        failed = [check for check, (e, s) in enumerate(zip(errors, slow, strict=True), 1) if _above(e) or _above(s)]
        outcome.window.append(failed[0] if failed else _NEVER)
        outcome.five.append(failed[4] if len(failed) > 4 else _NEVER)
    return outcome


@cache
def analysis_of(max_relative: int) -> Analysis:
    """Return the gates: at most 1 % failed and 1 % slow, and at most so many percent of stable's."""
    relative = f"{max_relative}%"
    return Analysis.model_validate(
        {
            "mode": "Sequential",
            "minRequests": 1,
            "errorRate": {"max": "1%", "maxRelative": relative},
            "latency": {"threshold": "500ms", "maxSlow": "1%", "maxRelative": relative},
        }
    )


def _drawn(cell: Cell, ratio: int, numbers: np.random.Generator) -> Iterator[Pair]:
    """Yield for each check how many of both versions' requests were bad."""
    for weight, checks in cell.schedule:
        canary, stable = cell.canary * weight // 10, cell.canary * (100 - weight) // 10
        bursts = numbers.gamma(1 / cell.bursts, cell.bursts, (2, checks)) if cell.bursts else np.ones((2, checks))
        rates = np.minimum(STABLE_RATE * bursts * np.array([[ratio], [1]]), 1)
        for bad, stable_bad in zip(numbers.binomial(canary, rates[0]), numbers.binomial(stable, rates[1]), strict=True):
            yield int(bad), canary, int(stable_bad), stable


def _judged(cell: Cell, errors: list[Pair], slow: list[Pair]) -> int:
    """Return the check in which the shipped rule rolls back, 0 for never.

    What has failed has failed: a gate that is judged on a step's first checks fails on those and more. So the rule is
    asked after 1, 2, 4, ... checks, and where it fails, which of the checks since the last look it was.
    """
    finished: list[FinishedStep] = []
    first = 0
    for weight, checks in cell.schedule:
        passed, done = 0, 0
        carried: dict[str, str] | None = {}
        while done < checks and carried is not None:
            passed, done = done, min(max(2 * done, 1), checks)
            carried = _look(cell, weight, errors[first : first + done], slow[first : first + done], finished)
        if carried is None:
            while done - passed > 1:
                middle = (passed + done) // 2
                pairs = errors[first : first + middle], slow[first : first + middle]
                passed, done = (passed, middle) if _look(cell, weight, *pairs, finished) is None else (middle, done)
            return first + done
        finished.append(_finished(weight, errors[first : first + checks], slow[first : first + checks], carried))
        first += checks
    return _NEVER


def _look(
    cell: Cell, weight: int, errors: list[Pair], slow: list[Pair], finished: list[FinishedStep]
) -> dict[str, str] | None:
    """Return the evidence to carry on after some checks of a step, ``None`` where the rule rolls back."""
    carried: dict[str, str] = {}
    for name, pairs in (("errorRate", errors), ("latency", slow)):
        gate = _gate(name, weight, tuple(pairs), finished, cell.max_relative)
        result, evidence = sequential.judge(gate, analysis_of(cell.max_relative), finished)
        if result.verdict is Verdict.FAIL:
            return None
        carried |= evidence
    return carried


def _gate(name: str, weight: int, pairs: tuple[Pair, ...], finished: list[FinishedStep], max_relative: int) -> RateGate:
    before = [step.stable for step in finished]
    bad = sum(c.errors if name == "errorRate" else c.slow for c in before)
    return RateGate(
        name=name,
        what=name,
        unit="requests",
        limit=WINDOW_LIMIT,
        relative=Fraction(max_relative, 100),
        absolute_field="max" if name == "errorRate" else "maxSlow",
        weight=weight,
        pairs=pairs,
        before=Sample(bad, sum(c.requests for c in before)),
        seen=True,
        at=_T0,
    )


def _finished(weight: int, errors: list[Pair], slow: list[Pair], carried: dict[str, str]) -> FinishedStep:
    requests, stable = sum(pair[1] for pair in errors), sum(pair[3] for pair in errors)
    return FinishedStep(
        weight=weight,
        passed_at=_T0,
        canary=Counts(
            requests=requests, errors=sum(p[0] for p in errors), timed=requests, slow=sum(p[0] for p in slow)
        ),
        stable=Counts(requests=stable, errors=sum(p[2] for p in errors), timed=stable, slow=sum(p[2] for p in slow)),
        evidence=carried,
    )


def _above(pair: Pair) -> bool:
    return Fraction(pair[0], pair[1]) > WINDOW_LIMIT
