"""Gates: how counts of requests become a verdict on the canary.

A step may go on only when every gate says Pass, and traffic is taken back when one says Fail; everything between holds
the step and says why. This module is the plain rule, mode *Threshold*: counts are cumulative over the step, and both
Pass and Fail need ``minRequests``. Rules that every mode shares:

- **No evidence is not success.** No series (NoData), no requests (NoTraffic), too few (LowSample), a provider that does
  not answer (ProviderError) or answers in part (PartialData) never pass.
- **No data is not failure** either, but what has been counted stands: a limit that is exceeded by the requests that
  were seen fails even while the provider is away or warns about partial data. Partial answers leave out whole stores,
  hence whole proxies, not single response codes; and a false alarm costs a retry, a missed one costs users.
- **Requests that reached no version** count against the canary as far as they exceed what was usual before the first
  step: ``excess = floor(unreached - baseline.unreached * seconds / baseline.seconds)``, added to its errors and its
  requests. Without a baseline all of them count.
- **Hard ceiling**, whatever the gates: at least half of at least 20 requests failed, in the newest blocks or in any
  longer stretch up to now. It does not wait for the weight to be in effect nor for ``minRequests``.

Limits are exceeded strictly: a rate equal to its limit is within it. Rates are exact fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Final

from canaryrollout.api.quantities import format_decimal, format_duration
from canaryrollout.api.spec import Analysis, AnalysisMode, ErrorRateGate, LatencyGate, MetricGate
from canaryrollout.api.status import Baseline, Counts, FinishedStep, Verdict
from canaryrollout.domain.evidence import Block, Evidence, MetricValue, total
from canaryrollout.domain.results import GateResult, Judgement, Sample, percent, worst

DEFAULT_MAX_ERROR_RATE: Final = Fraction(1, 100)
DEFAULT_MAX_SLOW: Final = Fraction(1, 100)
HARD_CEILING_REQUESTS: Final = 20
HARD_CEILING_SHARE: Final = Fraction(1, 2)
MIN_RELATIVE_FAILURES: Final = 3
"""A relative limit is not exceeded by fewer failures than this: with fewer, chance alone often doubles a rate."""


@dataclass(frozen=True, slots=True)
class _RateGate:
    """A gate on a share of requests, the same for errors and slowness.

    Attributes:
        name: Name of the gate.
        deed: What the bad requests did, for messages: ``failed``.
        unit: What is counted, for messages: ``requests``.
        limit: Greatest share allowed, if any.
        relative: Greatest multiple of stable's share allowed, if any.
        canary: The canary's sample.
        stable: The sample to compare with.
        stable_grows: Whether stable still has traffic to compare with.
    """

    name: str
    deed: str
    unit: str
    limit: Fraction | None
    relative: Fraction | None
    canary: Sample
    stable: Sample
    stable_grows: bool

    @property
    def finding(self) -> str:
        return f"canary {percent(self.canary.rate)} of {self.canary.of} {self.unit} {self.deed}"

    def undecided(self, reason: str, message: str) -> GateResult:
        return GateResult(self.name, Verdict.INCONCLUSIVE, reason, message)


@dataclass(frozen=True, slots=True)
class _Compared:
    """What relative limits compare with: stable's counts in this step (``now``) and in the finished (``before``)."""

    now: Counts
    before: Counts
    weight: int

    def sample(self, of: Callable[[Counts], Sample], min_requests: int) -> Sample:
        """Return stable's sample: of this step, with those before where it is too small, only those at weight 100."""
        if self.weight >= 100:
            return of(self.before)
        now = of(self.now)
        return now if now.of >= min_requests else of(total((self.now, self.before)))


def effective_analysis(analysis: Analysis) -> Analysis:
    """Fill in the operator's defaults.

    The mode is Threshold. Where neither ``errorRate`` nor ``latency`` nor ``metrics`` is set, at most 1 % of the
    canary's requests may fail. There is no relative limit by default: under the plain rule a healthy canary exceeds
    150 % of stable's rate by chance too often (at 0.5 % errors and 1,000 requests, in about one of eight steps). An
    ``errorRate`` or ``latency`` without any limit gets an absolute one of 1 %. The function is idempotent.

    Args:
        analysis: What the user wrote.

    Returns:
        The analysis in force.
    """
    error_rate, latency = analysis.error_rate, analysis.latency
    if error_rate is None and latency is None and not analysis.metrics:
        error_rate = ErrorRateGate(max=DEFAULT_MAX_ERROR_RATE)
    if error_rate is not None and error_rate.max is None and error_rate.max_relative is None:
        error_rate = ErrorRateGate(max=DEFAULT_MAX_ERROR_RATE)
    if latency is not None and latency.max_slow is None and latency.max_relative is None:
        latency = LatencyGate(threshold=latency.threshold, max_slow=DEFAULT_MAX_SLOW)
    mode = analysis.mode or AnalysisMode.THRESHOLD
    return analysis.model_copy(update={"error_rate": error_rate, "latency": latency, "mode": mode})


def judge(
    analysis: Analysis,
    evidence: Evidence | None,
    *,
    weight: int,
    finished: Sequence[FinishedStep],
    baseline: Baseline | None,
    since: datetime | None = None,
    opening: Sequence[Block] = (),
) -> Judgement:
    """Judge the canary at its present weight.

    Args:
        analysis: What it is judged by; the operator's defaults are filled in.
        evidence: Counts of the step so far; ``None`` when nothing was fetched yet.
        weight: The canary's weight in percent.
        finished: Counts of the steps that passed. Relative limits use stable's counts of these at weight 100, and add
            them where stable has fewer than ``minRequests`` in the present step.
        baseline: Requests that reached no version in a window before the first step; ``None`` when there was none.
        since: When the weight came into effect. Blocks that began before it count for the hard ceiling only.
        opening: What was counted before the evidence begins, while proxies took the weight over; likewise.

    Returns:
        The verdict with its numbers.
    """
    analysis = effective_analysis(analysis)
    blocks = evidence.blocks if evidence is not None else ()
    judged = tuple(block for block in blocks if since is None or block.start >= since)
    canary = total(tuple(block.canary for block in judged))
    stable = total(tuple(block.stable for block in judged))
    before = total(tuple(step.stable for step in finished))
    rates = _rate_gates(analysis, canary, _Compared(stable, before, weight), _excess(judged, baseline))
    results = [_judge_rate(gate, analysis.min_requests, judged) for gate in rates]
    results += [_judge_metric(metric, evidence, since) for metric in analysis.metrics]
    results = [_in_doubt(result, evidence) for result in results]
    ceiling = _hard_ceiling((*opening, *blocks), baseline)
    if ceiling is not None:
        results.insert(0, ceiling)
    return worst(results, canary, stable, notes=evidence.notes if evidence is not None else ())


def _excess(blocks: Sequence[Block], baseline: Baseline | None) -> int:
    """Return how many requests reached no version beyond what was usual before the first step, never below zero."""
    unreached = sum(block.unreached for block in blocks)
    return _beyond(unreached, sum((block.end - block.start for block in blocks), timedelta()), baseline)


def _beyond(unreached: int, span: timedelta, baseline: Baseline | None) -> int:
    if baseline is None or baseline.seconds <= 0 or not unreached:
        return unreached
    usual = Fraction(baseline.unreached * (span // timedelta(microseconds=1)), baseline.seconds * 1_000_000)
    return max(0, floor(unreached - usual))


def _rate_gates(analysis: Analysis, canary: Counts, compared: _Compared, excess: int) -> Iterable[_RateGate]:
    if analysis.error_rate is not None:
        yield _RateGate(
            name="errorRate",
            deed="failed",
            unit="requests",
            limit=analysis.error_rate.max,
            relative=analysis.error_rate.max_relative,
            canary=Sample(canary.errors + excess, canary.requests + excess),
            stable=compared.sample(lambda c: Sample(c.errors, c.requests), analysis.min_requests),
            stable_grows=compared.weight < 100,
        )
    if analysis.latency is not None:
        yield _RateGate(
            name="latency",
            deed=f"took longer than {format_duration(analysis.latency.threshold)}",
            unit="timed requests",
            limit=analysis.latency.max_slow,
            relative=analysis.latency.max_relative,
            canary=Sample(canary.slow, canary.timed),
            stable=compared.sample(lambda c: Sample(c.slow, c.timed), analysis.min_requests),
            stable_grows=compared.weight < 100,
        )


def _judge_rate(gate: _RateGate, min_requests: int, blocks: Sequence[Block]) -> GateResult:
    """Judge one share of requests; what is exceeded comes before what is missing."""
    sample = gate.canary
    if sample.of >= min_requests:
        exceeded = _above_max(gate) or _above_relative(gate, min_requests)
        if exceeded is not None:
            return exceeded
    if not blocks:
        return gate.undecided("NoData", "no complete interval of data since the weight came into effect")
    if not blocks[-1].canary_seen:
        return gate.undecided("NoData", "Prometheus has no series of the canary")
    if sample.of == 0:
        return gate.undecided("NoTraffic", f"canary had no {gate.unit} yet")
    if sample.of < min_requests:
        return gate.undecided("LowSample", f"{sample.of} of {min_requests} {gate.unit} of the canary so far")
    if gate.relative is None or gate.stable.of >= min_requests:
        return GateResult(gate.name, Verdict.PASS, "WithinLimits", f"{gate.finding} ({_limits(gate)})")
    lack = f"stable has {gate.stable.of} of {min_requests} {gate.unit} to compare with"
    if gate.stable_grows or gate.limit is None:
        return gate.undecided("LowStableSample", lack)
    message = f"{gate.finding} (limit {percent(gate.limit)}; {lack})"
    return GateResult(gate.name, Verdict.PASS, "WithinLimits", message)


def _above_max(gate: _RateGate) -> GateResult | None:
    if gate.limit is None or gate.canary.rate <= gate.limit:
        return None
    return GateResult(gate.name, Verdict.FAIL, "AboveMax", f"{gate.finding} (limit {percent(gate.limit)})")


def _above_relative(gate: _RateGate, min_requests: int) -> GateResult | None:
    """Return a failure where the canary's rate is above the allowed multiple of stable's.

    Stable needs ``minRequests`` too. Where it had no failure at all it is taken to have had one: its true rate is not
    known to be lower, and a multiple of zero would make any failure of the canary too many.
    """
    if gate.relative is None or gate.canary.bad < MIN_RELATIVE_FAILURES or gate.stable.of < min_requests:
        return None
    if gate.canary.rate <= gate.relative * Fraction(max(1, gate.stable.bad), gate.stable.of):
        return None
    return GateResult(gate.name, Verdict.FAIL, "AboveRelative", f"{gate.finding} ({_relative_limit(gate)})")


def _limits(gate: _RateGate) -> str:
    parts = [f"limit {percent(gate.limit)}"] if gate.limit is not None else []
    return ", ".join([*parts, _relative_limit(gate)] if gate.relative is not None else parts)


def _relative_limit(gate: _RateGate) -> str:
    return (
        f"limit {percent(gate.relative or Fraction(0))} of stable's "
        f"{percent(gate.stable.rate)} of {gate.stable.of} {gate.unit}"
    )


def _judge_metric(metric: MetricGate, evidence: Evidence | None, since: datetime | None) -> GateResult:
    """Judge the newest value of one of the user's own queries."""
    name = f"metrics/{metric.name}"
    readings = evidence.metrics.get(metric.name, ()) if evidence is not None else ()
    found = readings[-1].value if readings else None
    if found is None or (since is not None and readings[-1].at <= since):
        message = f"{metric.name} has no value since the weight came into effect"
        return GateResult(name, Verdict.INCONCLUSIVE, "NoData", message)
    if found.value is None:
        return _without_value(name, metric, found)
    bounds = [f"{word} {format_decimal(b)}" for word, b in (("min", metric.min), ("max", metric.max)) if b is not None]
    message = f"{metric.name} is {format_decimal(found.value)} ({', '.join(bounds) or 'has neither min nor max'})"
    if metric.max is not None and found.value > metric.max:
        return GateResult(name, Verdict.FAIL, "AboveMax", message)
    if metric.min is not None and found.value < metric.min:
        return GateResult(name, Verdict.FAIL, "BelowMin", message)
    if not bounds:
        return GateResult(name, Verdict.ERROR, "BadQuery", message)
    return GateResult(name, Verdict.PASS, "WithinLimits", message)


def _without_value(name: str, metric: MetricGate, found: MetricValue) -> GateResult:
    undecided = found.reason in {"NoData", "NotANumber"}
    verdict = Verdict.INCONCLUSIVE if undecided else Verdict.ERROR
    return GateResult(name, verdict, found.reason or "BadQuery", f"{metric.name}: {found.problem}")


def _in_doubt(result: GateResult, evidence: Evidence | None) -> GateResult:
    """Let nothing but a Fail stand while the provider does not answer, and no Pass while it answers in part."""
    if evidence is None or result.verdict is Verdict.FAIL:
        return result
    if evidence.error:
        since = f" (since {evidence.error_since:%H:%M:%S}Z)" if evidence.error_since is not None else ""
        message = f"provider {evidence.request.provider}: {evidence.error}{since}; before: {result.message}"
        return replace(result, verdict=Verdict.ERROR, reason="ProviderError", message=message)
    if evidence.warnings and result.verdict is Verdict.PASS:
        message = f"{result.message}, but the data may be partial: {'; '.join(evidence.warnings)}"
        return replace(result, verdict=Verdict.INCONCLUSIVE, reason="PartialData", message=message)
    return result


def _hard_ceiling(blocks: Sequence[Block], baseline: Baseline | None) -> GateResult | None:
    """Return a failure if at least half of at least 20 requests failed in any stretch of blocks that ends now."""
    requests = errors = unreached = 0
    span = timedelta()
    for block in reversed(blocks):
        requests += block.canary.requests
        errors += block.canary.errors
        unreached += block.unreached
        span += block.end - block.start
        excess = _beyond(unreached, span, baseline)
        bad, of = errors + excess, requests + excess
        if of >= HARD_CEILING_REQUESTS and bad * HARD_CEILING_SHARE.denominator >= of * HARD_CEILING_SHARE.numerator:
            message = f"{bad} of {of} requests of the canary failed (at once beyond {percent(HARD_CEILING_SHARE)})"
            return GateResult("hardCeiling", Verdict.FAIL, "HardCeiling", message)
    return None
