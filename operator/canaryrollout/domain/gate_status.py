"""How results of gates are written into status: rounded for people, exact enough to be checked by them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from canaryrollout.api.quantities import format_decimal
from canaryrollout.api.status import GateSample, GateStatus, LimitStatus, Verdict
from canaryrollout.domain.intervals import spelled
from canaryrollout.domain.results import GateResult, LimitEvidence, Sample, evidence_text, percent

_SEVERITY = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)


def gate_status(result: GateResult) -> GateStatus:
    """Return what status shows of a gate."""
    return GateStatus(
        name=result.name,
        verdict=result.verdict,
        reason=result.reason,
        message=result.message,
        canary=_sample(result.canary),
        stable=_sample(result.stable),
        limits=tuple(_limit(limit) for limit in result.limits),
        value=_number(result.value),
        baseline=_number(result.baseline),
        at=result.at,
    )


def in_short(gates: Sequence[GateStatus]) -> str:
    """Return the numbers behind the verdict in a few words: of the gate that decides it, the first of the worst.

    Such as ``errorRate 4.8% (24/500), stable 0.5%, evidence 312 of 80``.
    """
    if not gates:
        return ""
    gate = min(gates, key=lambda g: _SEVERITY.index(g.verdict))
    parts = []
    if gate.canary is not None and gate.canary.requests:
        parts.append(f"{gate.name} {gate.canary.rate} ({gate.canary.bad}/{gate.canary.requests})")
    elif gate.value:
        parts.append(f"{gate.name} {gate.value}")
    else:
        return f"{gate.name}: {gate.reason}"
    if gate.stable is not None and gate.stable.requests:
        parts.append(f"stable {gate.stable.rate}")
    if gate.baseline:
        parts.append(f"baseline {gate.baseline}")
    weighed = [limit for limit in gate.limits if limit.evidence]
    if weighed:
        most = max(weighed, key=lambda limit: float(limit.evidence.replace(",", "")))
        parts.append(f"evidence {most.evidence} of {most.threshold}")
    return ", ".join(parts)


def _sample(sample: Sample | None) -> GateSample | None:
    if sample is None:
        return None
    rate = percent(sample.rate).replace(" ", "") if sample.of else ""
    return GateSample(requests=sample.of, bad=sample.bad, rate=rate, interval=spelled(sample).replace(" ", ""))


def _limit(limit: LimitEvidence) -> LimitStatus:
    if limit.log_evidence is None or limit.log_threshold is None:
        return LimitStatus(limit=limit.limit)
    return LimitStatus(
        limit=limit.limit,
        evidence=evidence_text(limit.log_evidence),
        threshold=evidence_text(limit.log_threshold),
    )


def _number(value: Fraction | None) -> str:
    if value is None:
        return ""
    if value and not Fraction(1, 10**6) <= abs(value) < 10**15:
        return f"{float(value):.4g}"
    return format_decimal(round(value, 6))
