"""Gates on metrics of the user's own: how readings of a query become a verdict on the canary.

The operator knows nothing of what such a query counts, so it adds nothing of its own: each reading is inside the limits
or outside, and more than ``failureLimit`` readings outside, since the weight came into effect, fail the gate. Rules:

- **What is exceeded comes before what is missing**: a reading outside ``max`` or ``min`` is outside whatever its
  baseline says. A reading without a number is neither inside nor outside; it never passes, and it never counts.
- **Only the canary's own silence is NoData.** A baseline that is missing is ``NoBaseline``, so that ``onNoData`` never
  takes traffic back because *stable* has no data.
- **A multiple of zero is no limit.** As the built-in gates do not hold a single failure against a canary whose stable
  version had none, a baseline of zero lets only values up to zero pass ``maxRelative`` and fails none: without
  ``maxIncrease``, which then decides alone, the gate is inconclusive. A multiple of a negative number is an error.
- **At weight 100 stable has no traffic.** A baseline query about ``$stable`` is not compared with then: its median in
  the step before is, and where there was none, ``max`` and ``min`` decide alone.

Limits are exceeded strictly: a value equal to its limit is inside. Numbers are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from math import floor, log10
from statistics import median
from typing import Final

from canaryrollout.api.quantities import format_decimal
from canaryrollout.api.spec import MetricGate
from canaryrollout.api.status import FinishedStep, Verdict
from canaryrollout.domain.evidence import Evidence, MetricReading, MetricValue
from canaryrollout.domain.results import GateResult, exact_percent

_STABLE: Final = re.compile(r"\$(stable\b|\{stable\})")
_DIGITS: Final = range(4, 19)
"""How many digits a number is shown with: the fewest that do not move it across a limit."""
_SMALLEST: Final = Fraction(1, 10**9)
_LARGEST: Final = Fraction(10**15)
_REMEMBERED: Final = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,9})?")
"""How baselines are spelled in status; what is spelled otherwise was written by somebody else."""
ZERO_BASELINE: Final = "ZeroBaseline"


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit on the value of a reading.

    Attributes:
        reason: What a value outside of it is called.
        bound: Where it lies.
        upper: Whether larger values are outside; else smaller ones are.
        text: The limit for people.
    """

    reason: str
    bound: Fraction
    upper: bool
    text: str

    def broken_by(self, value: Fraction) -> bool:
        return value > self.bound if self.upper else value < self.bound


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one reading says by itself; its verdict is Fail where it is outside the limits."""

    at: datetime
    verdict: Verdict
    reason: str
    text: str
    value: Fraction | None = None
    baseline: Fraction | None = None


@dataclass(frozen=True, slots=True)
class _Compared:
    """What relative limits compare with: the limits themselves, or why there are none.

    Attributes:
        limits: The limits, in the order of their fields.
        baseline: The number that they come from.
        verdict: What it means that a limit is lacking; ``Pass`` where none is.
        reason: The same in one word.
        text: The same for people.
    """

    limits: tuple[_Limit, ...] = ()
    baseline: Fraction | None = None
    verdict: Verdict = Verdict.PASS
    reason: str = ""
    text: str = ""


def judge_metric(
    metric: MetricGate, evidence: Evidence | None, since: datetime | None, finished: Sequence[FinishedStep] = ()
) -> GateResult:
    """Judge a metric of the user's own.

    Args:
        metric: The gate.
        evidence: What was read in this step so far; ``None`` when nothing was.
        since: When the weight came into effect. Readings at that time or before do not count.
        finished: The steps that passed, with the baselines that `baselines` gave for them.

    Returns:
        Fail when more than ``failureLimit`` readings are outside the limits; Pass when the newest is inside. Else
        Inconclusive (``NoData``, ``NotANumber``, ``NoBaseline``, ``ZeroBaseline``, ``OutsideLimits``) or Error
        (``BadQuery``, ``ProviderError``), which is what the newest reading says.
    """
    name = f"metrics/{metric.name}"
    mistake = _mistake(metric)
    if mistake:
        return GateResult(name, Verdict.ERROR, "BadQuery", f"{metric.name}: {mistake}")
    readings = _since(metric, evidence, since)
    if evidence is None or not readings:
        message = f"{metric.name} has no value since the weight came into effect"
        return GateResult(name, Verdict.INCONCLUSIVE, "NoData", message)
    idle = evidence.request.weight >= 100 and _STABLE.search(metric.baseline_query or "") is not None
    before = _before(metric, finished)
    findings = [_find(metric, reading, _compared(metric, reading, idle, before)) for reading in readings]
    return _sum_up(metric, name, findings)


def baselines(metrics: Iterable[MetricGate], evidence: Evidence | None, since: datetime | None) -> Mapping[str, str]:
    """Return the median baseline of each metric in a step that passed, for ``FinishedStep.evidence``.

    Args:
        metrics: The gates.
        evidence: What was read in the step.
        since: When the step's weight came into effect.

    Returns:
        Decimal numbers by ``metrics/<name>.baseline``; metrics whose baseline had no value are left out.
    """
    found = {}
    for metric in metrics:
        readings = _since(metric, evidence, since)
        values = [r.baseline.value for r in readings if r.baseline is not None and r.baseline.value is not None]
        if values:
            found[_key(metric)] = format_decimal(median(values))
    return found


def _since(metric: MetricGate, evidence: Evidence | None, since: datetime | None) -> tuple[MetricReading, ...]:
    readings = evidence.metrics.get(metric.name, ()) if evidence is not None else ()
    return tuple(reading for reading in readings if since is None or reading.at > since)


def _key(metric: MetricGate) -> str:
    return f"metrics/{metric.name}.baseline"


def _before(metric: MetricGate, finished: Sequence[FinishedStep]) -> Fraction | None:
    """Return the baseline that the newest finished step has one of."""
    texts = [step.evidence.get(_key(metric), "") for step in finished]
    known = [text for text in texts if _REMEMBERED.fullmatch(text)]
    return Fraction(known[-1]) if known else None


def _mistake(metric: MetricGate) -> str:
    """Say what is wrong with a gate that was stored before the rules on it existed."""
    relative = metric.max_relative is not None or metric.max_increase is not None
    if relative and metric.baseline_query is None:
        return "maxRelative and maxIncrease compare with baselineQuery, and there is none"
    if not relative and metric.max is None and metric.min is None:
        return "it has no limit; set max, min, maxRelative or maxIncrease"
    return ""


def _compared(metric: MetricGate, reading: MetricReading, idle: bool, before: Fraction | None) -> _Compared:
    """Return what relative limits a reading has.

    Args:
        metric: The gate.
        reading: The reading.
        idle: Whether what the baseline query is about has no traffic now.
        before: The baseline of the steps before.
    """
    if metric.max_relative is None and metric.max_increase is None:
        return _Compared()
    if not idle:
        found = reading.baseline or MetricValue(None, problem="was not asked", reason="NoData")
        if found.value is None:
            reason = "NoBaseline" if found.reason in {"NoData", "NotANumber"} else found.reason or "BadQuery"
            return _Compared(verdict=_severity(found), reason=reason, text=f"baselineQuery: {found.problem}")
        return _limits_from(metric, found.value, "")
    if before is not None:
        return _limits_from(metric, before, " of the step before")
    alone = metric.max is not None or metric.min is not None
    lack = "stable has no traffic at weight 100, and no step before to compare with"
    return _Compared(verdict=Verdict.PASS if alone else Verdict.INCONCLUSIVE, reason="NoBaseline", text=lack)


def _limits_from(metric: MetricGate, baseline: Fraction, whose: str) -> _Compared:
    """Return the relative limits that a baseline makes; a multiple of what is not above zero is none."""
    limits, shown = [], _spell(baseline)
    if metric.max_relative is not None and baseline > 0:
        text = f"maxRelative {exact_percent(metric.max_relative)} of {shown}{whose}"
        limits.append(_Limit("AboveRelative", metric.max_relative * baseline, upper=True, text=text))
    if metric.max_increase is not None:
        text = f"maxIncrease {format_decimal(metric.max_increase)} above {shown}{whose}"
        limits.append(_Limit("AboveIncrease", metric.max_increase + baseline, upper=True, text=text))
    if limits or metric.max_relative is None:
        return _Compared(tuple(limits), baseline)
    lack = f"maxRelative {exact_percent(metric.max_relative)} of {shown}{whose} is no limit"
    if baseline == 0:
        return _Compared((), baseline, Verdict.INCONCLUSIVE, ZERO_BASELINE, f"{lack}; set maxIncrease as well")
    return _Compared((), baseline, Verdict.ERROR, "BadQuery", f"{lack}, as that is negative; set maxIncrease")


def _find(metric: MetricGate, reading: MetricReading, compared: _Compared) -> _Finding:
    """Judge one reading: what is exceeded comes before what is missing."""
    at, value, baseline = reading.at, reading.value.value, compared.baseline
    if value is None:
        reason = reading.value.reason or "BadQuery"
        return _Finding(at, _severity(reading.value), reason, reading.value.problem, baseline=baseline)
    limits = (*_absolute(metric), *compared.limits)
    broken = next((limit for limit in limits if limit.broken_by(value)), None)
    told = ", ".join(limit.text for limit in limits)
    if broken is not None:
        verdict, reason = Verdict.FAIL, broken.reason
    elif compared.verdict is Verdict.PASS or (compared.reason == ZERO_BASELINE and value <= 0):
        verdict, reason = Verdict.PASS, "WithinLimits"
    else:
        verdict, reason = compared.verdict, compared.reason
    if broken is None:
        told = "; ".join(part for part in (told, compared.text) if part)
    return _Finding(at, verdict, reason, f"{_spell(value, limits)} ({told})", value, baseline)


def _absolute(metric: MetricGate) -> Iterable[_Limit]:
    if metric.min is not None:
        yield _Limit("BelowMin", metric.min, False, f"min {format_decimal(metric.min)}")
    if metric.max is not None:
        yield _Limit("AboveMax", metric.max, True, f"max {format_decimal(metric.max)}")


def _severity(found: MetricValue) -> Verdict:
    """Tell a query that has nothing to say yet from one that can never be judged, or could not be asked."""
    return Verdict.INCONCLUSIVE if found.reason in {"NoData", "NotANumber"} else Verdict.ERROR


def _sum_up(metric: MetricGate, name: str, findings: Sequence[_Finding]) -> GateResult:
    """Judge all readings of a step together."""
    told = newest = findings[-1]
    verdict, reason = newest.verdict, newest.reason
    outside = [finding for finding in findings if finding.verdict is Verdict.FAIL]
    if len(outside) > metric.failure_limit:
        told, verdict, reason = outside[-1], Verdict.FAIL, outside[-1].reason
    elif newest.verdict is Verdict.FAIL:
        verdict, reason = Verdict.INCONCLUSIVE, "OutsideLimits"
    verb = ":" if told.value is None else " is" if told is newest else f" was, at {told.at:%H:%M:%S}Z,"
    message = f"{metric.name}{verb} {told.text}"
    if outside and metric.failure_limit:
        message += f"; {len(outside)} of {len(findings)} values outside, {metric.failure_limit} allowed"
    return GateResult(name, verdict, reason, message, value=told.value, baseline=told.baseline, at=told.at)


def _spell(value: Fraction, limits: Sequence[_Limit] = ()) -> str:
    """Spell a number for people, with so many digits that one sees on which side of each limit it lies."""
    if value and not _SMALLEST <= abs(value) < _LARGEST:
        return f"{float(value):.4g}"
    magnitude = floor(log10(abs(value))) if value else 0
    shown = value
    for digits in _DIGITS:
        shown = round(value, max(0, digits - 1 - magnitude))
        if all(_side(shown, limit.bound) == _side(value, limit.bound) for limit in limits):
            break
    return format_decimal(shown)


def _side(value: Fraction, bound: Fraction) -> int:
    return (value > bound) - (value < bound)
