"""Gates on a share of requests: failed ones and slow ones, which are judged alike.

Here counts of blocks become what a rule judges, plain or sequential: the canary's and stable's sample of each block,
what stable had in the steps before, and the words that both rules use. Rules that are shared:

- **No evidence is not success.** No series (NoData), no requests (NoTraffic) and too few (LowSample) never pass.
- **Requests that reached no version** count against the canary as far as they exceed what was usual before the first
  step: ``excess = floor(unreached - baseline.unreached * seconds / baseline.seconds)``, added to its errors and its
  requests. Without a baseline all of them count.
- **At weight 100 stable has no traffic**: a relative limit compares with what stable had in the steps before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Final

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import Baseline, Counts, FinishedStep, Verdict
from canaryrollout.domain.evidence import Block, total
from canaryrollout.domain.results import GateResult, Sample, percent

MIN_RELATIVE_FAILURES: Final = 3
"""A relative limit is not exceeded by fewer failures than this: with fewer, chance alone often doubles a rate."""

Pair = tuple[int, int, int, int]
"""One block: the canary's bad requests and all of its requests, and the same of stable."""


@dataclass(frozen=True, slots=True)
class RateGate:
    """A gate on a share of requests, with what was counted.

    Attributes:
        name: Name of the gate.
        what: What the share is called, for messages: ``error rate``.
        unit: What is counted, for messages: ``requests``.
        limit: Greatest share allowed, if any.
        relative: Greatest multiple of stable's share allowed, if any.
        absolute_field: Name of the field that holds ``limit``.
        weight: The canary's weight.
        pairs: What was counted, block by block.
        before: What stable had in the finished steps.
        seen: Whether the canary had any series at the end of the newest block.
        at: The end of the newest block.
        counts: What counts as bad, as far as users can change it: evidence on one is none on another.
        of: Whose blocks these are and since when, to tell them from those of other rollouts.
    """

    name: str
    what: str
    unit: str
    limit: Fraction | None
    relative: Fraction | None
    absolute_field: str
    weight: int
    pairs: tuple[Pair, ...]
    before: Sample
    seen: bool
    at: datetime | None
    counts: str = ""
    of: tuple[str, ...] = ()
    canary: Sample = field(init=False)
    now: Sample = field(init=False)

    def __post_init__(self) -> None:
        """Add the blocks up."""
        object.__setattr__(self, "canary", Sample(sum(p[0] for p in self.pairs), sum(p[1] for p in self.pairs)))
        object.__setattr__(self, "now", Sample(sum(p[2] for p in self.pairs), sum(p[3] for p in self.pairs)))

    @property
    def stable_serves(self) -> bool:
        """Return whether stable has traffic to compare with."""
        return self.weight < 100

    def compared(self, min_requests: int) -> Sample:
        """Return stable's sample: of this step, with those before where it is too small, only those at weight 100."""
        if not self.stable_serves:
            return self.before
        if self.now.of >= min_requests:
            return self.now
        return Sample(self.now.bad + self.before.bad, self.now.of + self.before.of)

    def finding(self, stable: Sample | None = None) -> str:
        """Return what was seen, for people: ``error rate 4.8 % (24/500) against 0.5 % (11/2,241) on stable``."""
        text = f"{self.what} {_shown(self.canary)}"
        return text if stable is None else f"{text} against {_shown(stable)} on stable"

    def result(self, verdict: Verdict, reason: str, message: str, stable: Sample | None = None) -> GateResult:
        """Return a result of this gate with its samples."""
        shown = self.now if stable is None else stable
        return GateResult(
            self.name,
            verdict,
            reason,
            message,
            canary=self.canary,
            stable=shown if self.relative is not None or shown.of else None,
            at=self.at,
        )

    def undecided(self, reason: str, message: str) -> GateResult:
        """Return that nothing can be said yet."""
        return self.result(Verdict.INCONCLUSIVE, reason, message)

    def lacking(self, min_requests: int) -> GateResult | None:
        """Return what is missing before anything can pass; ``None`` where nothing is."""
        if not self.pairs:
            return self.undecided("NoData", "no complete interval of data since the weight came into effect")
        if not self.seen:
            return self.undecided("NoData", "Prometheus has no series of the canary")
        if self.canary.of >= min_requests:
            return None
        needed = min_requests - self.canary.of
        if not self.canary.of:
            return replace(self.undecided("NoTraffic", f"canary had no {self.unit} yet"), needed=needed)
        seen = f"{self.canary.of:,} of {min_requests:,} {self.unit} of the canary so far"
        return replace(self.undecided("LowSample", seen), needed=needed)

    def lacking_stable(self, min_requests: int) -> str:
        """Return, for people, that stable has too few requests to compare with; empty where it has enough."""
        stable = self.compared(min_requests)
        if self.relative is None or stable.of >= min_requests:
            return ""
        return f"stable has {stable.of:,} of {min_requests:,} {self.unit} to compare with"


def rate_gates(
    analysis: Analysis,
    blocks: Sequence[Block],
    *,
    weight: int,
    finished: Sequence[FinishedStep],
    baseline: Baseline | None,
    of: tuple[str, ...] = (),
) -> Iterable[RateGate]:
    """Return the gates on shares of requests, with what was counted.

    Args:
        analysis: What the canary is judged by, defaults filled in.
        blocks: The blocks to judge by.
        weight: The canary's weight in percent.
        finished: The steps that passed.
        baseline: Requests that reached no version before the first step.
        of: Whose blocks these are.
    """
    counts = counted(analysis)
    seen = bool(blocks) and blocks[-1].canary_seen
    at = blocks[-1].end if blocks else None
    if analysis.error_rate is not None:
        excess = _excess_by_block(blocks, baseline)
        pairs = tuple(
            [
                (b.canary.errors + e, b.canary.requests + e, b.stable.errors, b.stable.requests)
                for b, e in zip(blocks, excess, strict=True)
            ]
        )
        yield RateGate(
            name="errorRate",
            what="error rate",
            unit="requests",
            limit=analysis.error_rate.max,
            relative=analysis.error_rate.max_relative,
            absolute_field="max",
            weight=weight,
            pairs=pairs,
            before=_before(finished, "errorRate", counts, lambda c: Sample(c.errors, c.requests)),
            seen=seen,
            at=at,
            counts=counts["errorRate"],
            of=of,
        )
    if analysis.latency is not None:
        yield RateGate(
            name="latency",
            what=f"share slower than {format_duration(analysis.latency.threshold)}",
            unit="timed requests",
            limit=analysis.latency.max_slow,
            relative=analysis.latency.max_relative,
            absolute_field="maxSlow",
            weight=weight,
            pairs=tuple([(b.canary.slow, b.canary.timed, b.stable.slow, b.stable.timed) for b in blocks]),
            before=_before(finished, "latency", counts, lambda c: Sample(c.slow, c.timed)),
            seen=seen,
            at=at,
            counts=counts["latency"],
            of=of,
        )


def beyond(unreached: int, span: timedelta, baseline: Baseline | None) -> int:
    """Return how many requests reached no version beyond what was usual before the first step, never below zero."""
    if baseline is None or baseline.seconds <= 0 or not unreached:
        return unreached
    usual = Fraction(baseline.unreached * (span // timedelta(microseconds=1)), baseline.seconds * 1_000_000)
    return max(0, floor(unreached - usual))


def _excess_by_block(blocks: Sequence[Block], baseline: Baseline | None) -> list[int]:
    """Return how much each block adds to the excess since the first, so that they sum to the greatest so far."""
    if not any(block.unreached for block in blocks):
        return [0] * len(blocks)
    added, unreached, span, so_far = [], 0, timedelta(), 0
    for block in blocks:
        unreached += block.unreached
        span += block.end - block.start
        excess = beyond(unreached, span, baseline)
        added.append(max(0, excess - so_far))
        so_far = max(so_far, excess)
    return added


def counted(analysis: Analysis) -> dict[str, str]:
    """Return for each gate what it counts as bad, as far as users can change that, by the gate's name."""
    found = {}
    if analysis.error_rate is not None:
        found["errorRate"] = "grpc " + ",".join(
            str(status) for status in sorted(analysis.error_rate.grpc_server_faults)
        )
    if analysis.latency is not None:
        found["latency"] = format_duration(analysis.latency.threshold)
    return found


def counted_key(gate: str) -> str:
    """Return the key under which ``FinishedStep.evidence`` holds what a gate counted as bad."""
    return f"{gate} counts"


def _before(
    finished: Sequence[FinishedStep], gate: str, counts: Mapping[str, str], sample: Callable[[Counts], Sample]
) -> Sample:
    """Return what stable had in the finished steps that counted the same as bad."""
    key = counted_key(gate)
    same = tuple(step.stable for step in finished if step.evidence.get(key, counts[gate]) == counts[gate])
    return sample(total(same))


def _shown(sample: Sample) -> str:
    return f"{percent(sample.rate)} ({sample.bad:,}/{sample.of:,})"
