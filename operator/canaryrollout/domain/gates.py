"""Gates: how evidence becomes a verdict on the canary.

A step may go on only when every gate says Pass, and traffic is taken back when one says Fail; everything between holds
the step and says why. The rules on counts are `sequential` and `threshold`, those on metrics of the user's own
`metric_gates`; here they come together with what holds for all of them:

- **No evidence is not success**: a provider that does not answer (ProviderError) or answers in part (PartialData)
  never passes.
- **No data is not failure** either, but what has been counted stands: a limit that is exceeded by the requests that
  were seen fails even while the provider is away or warns about partial data. Partial answers leave out whole stores,
  hence whole proxies, not single response codes; and a false alarm costs a retry, a missed one costs users.
- **Hard ceiling**, whatever the gates: at least half of at least 20 requests failed, in the newest blocks or in any
  longer stretch up to now. It does not wait for the weight to be in effect nor for ``minRequests``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from canaryrollout.api.spec import Analysis, AnalysisMode, ErrorRateGate, LatencyGate
from canaryrollout.api.status import Baseline, FinishedStep, Verdict
from canaryrollout.domain import sequential, threshold
from canaryrollout.domain.evidence import Block, Evidence, total
from canaryrollout.domain.metric_gates import baselines, judge_metric
from canaryrollout.domain.rates import beyond, counted, counted_key, rate_gates
from canaryrollout.domain.results import GateResult, Judgement, Sample, exact_percent, worst

DEFAULT_MAX_ERROR_RATE: Final = Fraction(1, 100)
DEFAULT_MAX_RELATIVE: Final = Fraction(3, 2)
DEFAULT_MAX_SLOW: Final = Fraction(1, 100)
HARD_CEILING_REQUESTS: Final = 20
HARD_CEILING_SHARE: Final = Fraction(1, 2)


def effective_analysis(analysis: Analysis) -> Analysis:
    """Fill in the operator's defaults.

    The mode is Sequential. Where neither ``errorRate`` nor ``latency`` nor ``metrics`` is set, at most 1 % of the
    canary's requests may fail, and in mode Sequential at most 150 % of stable's rate. The plain rule has no relative
    limit by default: under it a healthy canary exceeds 150 % by chance too often (at 0.5 % errors and 1,000 requests,
    in about one of eight steps). An ``errorRate`` or ``latency`` without any limit gets an absolute one of 1 %. The
    function is idempotent.

    Args:
        analysis: What the user wrote.

    Returns:
        The analysis in force.
    """
    mode = analysis.mode or AnalysisMode.SEQUENTIAL
    error_rate, latency = analysis.error_rate, analysis.latency
    if error_rate is None and latency is None and not analysis.metrics:
        relative = DEFAULT_MAX_RELATIVE if mode is AnalysisMode.SEQUENTIAL else None
        error_rate = ErrorRateGate(max=DEFAULT_MAX_ERROR_RATE, max_relative=relative)
    if error_rate is not None and error_rate.max is None and error_rate.max_relative is None:
        error_rate = error_rate.model_copy(update={"max": DEFAULT_MAX_ERROR_RATE})
    if latency is not None and latency.max_slow is None and latency.max_relative is None:
        latency = LatencyGate(threshold=latency.threshold, max_slow=DEFAULT_MAX_SLOW)
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
        finished: The steps that passed: stable's counts in them are compared with at weight 100 and where stable has
            too few requests in the present step, and their evidence is carried on.
        baseline: Requests that reached no version in a window before the first step; ``None`` when there was none.
        since: When the weight came into effect. Blocks that began before it count for the hard ceiling only.
        opening: What was counted before the evidence begins, while proxies took the weight over; likewise.

    Returns:
        The verdict with its numbers.
    """
    analysis = effective_analysis(analysis)
    blocks = evidence.blocks if evidence is not None else ()
    judged = tuple(block for block in blocks if since is None or block.start >= since)
    remembered = {counted_key(name): what for name, what in counted(analysis).items()}
    remembered |= baselines(analysis.metrics, evidence, since)
    results = []
    of = _whose(evidence)
    for gate in rate_gates(analysis, judged, weight=weight, finished=finished, baseline=baseline, of=of):
        if analysis.mode is AnalysisMode.THRESHOLD:
            results.append(threshold.judge(gate, analysis))
        else:
            result, carried = sequential.judge(gate, analysis, finished)
            results.append(result)
            remembered |= carried
    results += [judge_metric(metric, evidence, since, finished) for metric in analysis.metrics]
    results = [_in_doubt(result, evidence) for result in results]
    ceiling = _hard_ceiling((*opening, *blocks), baseline)
    if ceiling is not None:
        results.insert(0, ceiling)
    return worst(
        results,
        total(tuple(block.canary for block in judged)),
        total(tuple(block.stable for block in judged)),
        notes=evidence.notes if evidence is not None else (),
        evidence=remembered,
    )


def _whose(evidence: Evidence | None) -> tuple[str, ...]:
    if evidence is None:
        return ()
    request = evidence.request
    return request.provider, request.host, request.stable, request.canary, request.start.isoformat()


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
        excess = beyond(unreached, span, baseline)
        bad, of = errors + excess, requests + excess
        if of >= HARD_CEILING_REQUESTS and bad * HARD_CEILING_SHARE.denominator >= of * HARD_CEILING_SHARE.numerator:
            message = (
                f"{bad} of {of} requests of the canary failed (at once beyond {exact_percent(HARD_CEILING_SHARE)})"
            )
            return GateResult(
                "hardCeiling", Verdict.FAIL, "HardCeiling", message, canary=Sample(bad, of), at=blocks[-1].end
            )
    return None
