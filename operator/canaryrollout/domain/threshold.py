"""The plain rule, mode *Threshold*: the counts of the whole step so far against the limits.

Both Pass and Fail need ``minRequests``. A check is made at the end of every block; ``failureLimit`` and ``consecutive``
say how many of them may, or have to, exceed a limit before the canary fails. Limits are exceeded strictly: a rate equal
to its limit is within it. Rates are exact fractions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from canaryrollout.api.quantities import format_percent
from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import Verdict
from canaryrollout.domain.rates import MIN_RELATIVE_FAILURES, RateGate
from canaryrollout.domain.results import GateResult, LimitEvidence, exact_percent


def judge(gate: RateGate, analysis: Analysis) -> GateResult:
    """Judge one share of requests; what is exceeded comes before what is missing.

    Args:
        gate: The gate with what was counted.
        analysis: The analysis in force.

    Returns:
        The result, with the limits it was compared with.
    """
    return replace(_judge(gate, analysis), limits=tuple(LimitEvidence(text) for text in _limits(gate)))


def _judge(gate: RateGate, analysis: Analysis) -> GateResult:
    least = analysis.min_requests
    if (exceeded := _exceeded(gate, least)) is not None:
        return _tolerated(gate, analysis, exceeded)
    if (lacking := gate.lacking(least)) is not None:
        return lacking
    lack = gate.lacking_stable(least)
    stable = gate.compared(least) if gate.relative is not None else None
    if not lack:
        message = f"{gate.finding(stable)}: limit {_words(gate)}"
        return gate.result(Verdict.PASS, "WithinLimits", message, stable)
    if gate.stable_serves or gate.limit is None:
        return gate.undecided("LowStableSample", lack)
    return gate.result(Verdict.PASS, "WithinLimits", f"{gate.finding()}: limit {exact_percent(gate.limit)}; {lack}")


def _exceeded(gate: RateGate, least: int) -> GateResult | None:
    """Return a failure where the counts exceed a limit.

    Against stable both versions need ``minRequests``. Where stable had no failure at all it is taken to have had one:
    its true rate is not known to be lower, and a multiple of zero would make any failure of the canary too many.
    """
    canary = gate.canary
    if canary.of < least:
        return None
    if gate.limit is not None and canary.rate > gate.limit:
        message = f"{gate.finding()}: limit {exact_percent(gate.limit)}"
        return gate.result(Verdict.FAIL, "AboveMax", message)
    stable = gate.compared(least)
    if gate.relative is None or canary.bad < MIN_RELATIVE_FAILURES or stable.of < least:
        return None
    if canary.rate <= gate.relative * Fraction(max(1, stable.bad), stable.of):
        return None
    message = f"{gate.finding(stable)}: limit {exact_percent(gate.relative)}"
    return gate.result(Verdict.FAIL, "AboveRelative", message, stable)


def _tolerated(gate: RateGate, analysis: Analysis, exceeded: GateResult) -> GateResult:
    """Return the failure, or that so many checks are allowed to exceed a limit."""
    limit, row = analysis.failure_limit, analysis.consecutive
    if limit is None and row is None:
        return exceeded
    checks = [_exceeded(earlier, analysis.min_requests) is not None for earlier in _looks(gate)]
    failed, latest = sum(checks), 0
    for check in reversed(checks):
        if not check:
            break
        latest += 1
    allowed = [f"{limit} allowed"] if limit is not None else []
    allowed += [f"{latest} of {row} in a row"] if row is not None else []
    message = f"{exceeded.message}; {failed} of {len(checks)} checks exceed it ({', '.join(allowed)})"
    if (limit is not None and failed > limit) or (row is not None and latest >= row):
        return replace(exceeded, message=message)
    return replace(exceeded, verdict=Verdict.INCONCLUSIVE, reason="OutsideLimits", message=message)


def _looks(gate: RateGate) -> Iterator[RateGate]:
    """Yield the gate as it was at the end of each block, with what had been counted by then as one block."""
    so_far = (0, 0, 0, 0)
    for bad, of, stable_bad, stable_of in gate.pairs:
        so_far = (so_far[0] + bad, so_far[1] + of, so_far[2] + stable_bad, so_far[3] + stable_of)
        yield RateGate(
            gate.name,
            gate.what,
            gate.unit,
            gate.limit,
            gate.relative,
            gate.absolute_field,
            gate.weight,
            (so_far,),
            gate.before,
            gate.seen,
            gate.at,
        )


def _words(gate: RateGate) -> str:
    parts = [exact_percent(gate.limit)] if gate.limit is not None else []
    return ", ".join([*parts, f"{exact_percent(gate.relative)} of stable's"] if gate.relative is not None else parts)


def _limits(gate: RateGate) -> list[str]:
    limits = [f"{gate.absolute_field} {format_percent(gate.limit)}"] if gate.limit is not None else []
    return [*limits, f"maxRelative {format_percent(gate.relative)}"] if gate.relative is not None else limits
