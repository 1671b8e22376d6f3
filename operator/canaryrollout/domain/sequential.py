"""The rule that weighs evidence, mode *Sequential*: fails when the e-value of a limit says so, at any look.

Each limit of each gate is a test of its own, and they share the risk of a false alarm evenly (Bonferroni): with
``confidence`` 95 % and four limits each fails at an e-value of 80. What the steps before have shown is carried on, so
that a whole rollout is one test and not one for each step.

Passing is evidence too. A step passes when ``minRequests`` are there and

- *Standard*: nothing speaks against the canary, that is, no e-value is above the square root of the one that fails
  (an e-value above it is *suspicious*, and more data is awaited);
- *Strict*: moreover the upper confidence bound of its rate is within the limit, and that of its ratio to stable's once
  it had three failures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import exp, log
from typing import Final

from canaryrollout.api.quantities import format_percent
from canaryrollout.api.spec import Analysis, Assurance
from canaryrollout.api.status import FinishedStep, Verdict
from canaryrollout.domain import evalues
from canaryrollout.domain.evalues import Wealth
from canaryrollout.domain.intervals import ratio_upper, requests_needed, upper
from canaryrollout.domain.rates import MIN_RELATIVE_FAILURES, RateGate, counted_key
from canaryrollout.domain.results import GateResult, LimitEvidence, evidence_text, exact_percent, percent

_KEPT_TRAILS: Final = 4096
_DISPERSION: Final = "dispersion"
_MOST: Final = 1e9
_LEAST: Final = 1e-300
"""Between these evidence is remembered; what a step can pass with lies far below the upper one."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit and the evidence on it; ``text`` is how the user wrote it, ``reason`` what exceeding it is called."""

    text: str
    reason: str
    bound: Fraction
    wealth: Wealth
    least: int = 0


def count_limits(analysis: Analysis) -> int:
    """Return how many limits on shares of requests share the risk of a false alarm."""
    gates = (analysis.error_rate, analysis.latency)
    bounds = [getattr(gate, name, None) for gate in gates for name in ("max", "max_slow", "max_relative")]
    return sum(bound is not None for bound in bounds)


def judge(gate: RateGate, analysis: Analysis, finished: Sequence[FinishedStep]) -> tuple[GateResult, dict[str, str]]:
    """Judge one share of requests.

    Args:
        gate: The gate with what was counted.
        analysis: The analysis in force.
        finished: The steps that passed; the newest holds the evidence to go on from.

    Returns:
        The result, and the evidence that later steps go on from, see ``FinishedStep.evidence``.
    """
    threshold = log(count_limits(analysis) / float(1 - analysis.confidence))
    carried = finished[-1].evidence if finished else {}
    limits = list(_limits(gate, carried))
    result = _judge(gate, analysis, limits, threshold)
    shown = tuple(LimitEvidence(limit.text, _telling(limit.wealth, threshold), threshold) for limit in limits)
    remembered = {key: text for limit in limits for key, text in _remember(gate, limit).items()}
    return replace(result, limits=shown), remembered


def _telling(wealth: Wealth, threshold: float) -> float:
    """Return the evidence to show: now, or the highest it ever was where that decided."""
    return wealth.log_peak if wealth.log_peak >= threshold else wealth.log_value


@lru_cache(maxsize=256)
def _label(field: str, bound: Fraction) -> str:
    return f"{field} {format_percent(bound)}"


def _limits(gate: RateGate, carried: Mapping[str, str]) -> list[_Limit]:
    limits = []
    if gate.relative is not None:
        text = _label("maxRelative", gate.relative)
        start = _recall(gate, text, carried)
        bound = float(gate.relative)
        if gate.stable_serves:
            wealth = _follow(gate, start, bound, against_stable=True)
        elif gate.before.of:
            wealth = _follow(gate, start, bound * upper(gate.before), against_stable=False)
        else:
            wealth = start
        limits.append(_Limit(text, "AboveRelative", gate.relative, wealth, MIN_RELATIVE_FAILURES))
    if gate.limit is not None:
        text = _label(gate.absolute_field, gate.limit)
        start = _recall(gate, text, carried)
        wealth = _follow(gate, start, float(gate.limit), against_stable=False)
        limits.append(_Limit(text, "AboveMax", gate.limit, wealth))
    return limits


_trails: OrderedDict[tuple[object, ...], tuple[int, int, Wealth]] = OrderedDict()
"""How far blocks were followed already: how many, a digest of them, and the state after them. It saves work and changes
no result: a trail whose blocks differ is followed anew."""


def _follow(gate: RateGate, start: Wealth, bound: float, *, against_stable: bool) -> Wealth:
    """Take in the gate's blocks, going on from where an earlier look at the same blocks ended."""
    key = (gate.of, gate.name, start.log_value, start.weights, bound, against_stable, gate.pairs[:1])
    count, digest, wealth = _trails.get(key, (0, hash(()), start))
    if len(gate.pairs) < count or hash(gate.pairs[:count]) != digest:
        count, wealth = 0, start
    for bad, of, stable_bad, stable_of in gate.pairs[count:]:
        if against_stable:
            wealth = evalues.relative(wealth, (bad, of), (stable_bad, stable_of), bound)
        else:
            wealth = evalues.absolute(wealth, bad, of, bound)
    _trails[key] = len(gate.pairs), hash(gate.pairs), wealth
    _trails.move_to_end(key)
    if len(_trails) > _KEPT_TRAILS:
        _trails.popitem(last=False)
    return wealth


def _recall(gate: RateGate, text: str, carried: Mapping[str, str]) -> Wealth:
    """Return the evidence that the steps before ended with.

    A limit that was changed meanwhile begins anew, as does one that counts something else as bad now, and one whose
    evidence nobody can have written but a person.
    """
    key = f"{gate.name} {text}"
    if carried.get(counted_key(gate.name), gate.counts) != gate.counts:
        return evalues.begin()
    try:
        value = float(carried[key])
        weights = tuple(float(part) for part in carried[f"{key} {_DISPERSION}"].split())
    except (KeyError, ValueError):
        return evalues.begin()
    sound = len(weights) == len(evalues.DISPERSIONS) and all(0 <= weight <= 1 for weight in weights)
    if not sound or not sum(weights) or not 0 < value <= _MOST:
        return evalues.begin()
    return evalues.resume(log(value), weights)


def _remember(gate: RateGate, limit: _Limit) -> dict[str, str]:
    key = f"{gate.name} {limit.text}"
    weights = " ".join(f"{weight:.4g}" for weight in limit.wealth.weights)
    value = exp(min(max(limit.wealth.log_value, log(_LEAST)), log(_MOST)))
    return {key: f"{value:.6g}", f"{key} {_DISPERSION}": weights}


def _judge(gate: RateGate, analysis: Analysis, limits: Sequence[_Limit], threshold: float) -> GateResult:
    for limit in limits:
        if limit.wealth.log_peak >= threshold and gate.canary.bad >= limit.least:
            evidence = f"evidence {evidence_text(limit.wealth.log_peak)} > {evidence_text(threshold)}"
            return _told(gate, limit, Verdict.FAIL, limit.reason, evidence, analysis)
    least = analysis.min_requests
    if (lacking := gate.lacking(least)) is not None:
        return lacking
    lack = gate.lacking_stable(least)
    if lack and (gate.stable_serves or gate.limit is None):
        return gate.undecided("LowStableSample", lack)
    suspicious = max(limits, key=lambda limit: limit.wealth.log_value)
    if suspicious.wealth.log_value >= threshold / 2:
        evidence = (
            f"evidence {evidence_text(suspicious.wealth.log_value)} of {evidence_text(threshold)}, more is awaited"
        )
        return _told(gate, suspicious, Verdict.INCONCLUSIVE, "Suspicious", evidence, analysis)
    if analysis.assurance is Assurance.STRICT and (unsure := _unsure(gate, analysis, limits)) is not None:
        return unsure
    stable = gate.compared(least) if gate.relative is not None and not lack else None
    evidence = f"evidence {evidence_text(suspicious.wealth.log_value)} of {evidence_text(threshold)}"
    shown = ", ".join(exact_percent(limit.bound) for limit in limits)
    message = f"{gate.finding(stable)}: limit {shown}, {evidence}" + (f"; {lack}" if lack else "")
    return gate.result(Verdict.PASS, "WithinLimits", message, stable)


def _told(
    gate: RateGate, limit: _Limit, verdict: Verdict, reason: str, evidence: str, analysis: Analysis
) -> GateResult:
    """Return a result that one limit decides, in one sentence with its numbers."""
    stable = gate.compared(analysis.min_requests) if limit.reason == "AboveRelative" else None
    message = f"{gate.finding(stable)}: limit {exact_percent(limit.bound)}, {evidence}"
    return gate.result(verdict, reason, message, stable)


def _unsure(gate: RateGate, analysis: Analysis, limits: Sequence[_Limit]) -> GateResult | None:
    """Return that a limit is not shown to be kept yet, for `Assurance.STRICT`."""
    confidence, canary = float(analysis.confidence), gate.canary
    for limit in limits:
        stable = gate.compared(analysis.min_requests)
        relative = limit.reason == "AboveRelative"
        if relative and canary.bad < MIN_RELATIVE_FAILURES:
            continue
        bound = ratio_upper(canary, stable, confidence) if relative else upper(canary, confidence)
        if bound <= float(limit.bound) or (not relative and not limit.bound and not canary.bad):
            continue  # no number of requests without a failure shows a rate of zero
        shown = percent(Fraction(bound)) if bound < 1e6 else "unknown"
        message = (
            f"{gate.finding(stable if relative else None)}: not sure yet to be within {exact_percent(limit.bound)}"
        )
        result = gate.undecided("NotYetSure", f"{message}, at most {shown}")
        needed = None if relative else requests_needed(float(canary.rate), float(limit.bound), confidence)
        return replace(result, needed=max(1, needed - canary.of) if needed else 0)
    return None
