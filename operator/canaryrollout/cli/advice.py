"""What the figures of a simulation come to, in words: one sentence that answers, and warnings that help.

Warnings that follow from the manifest and the traffic alone are computed, not simulated: they hold for every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Final

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.spec import Approval, CanaryRolloutSpec, Step
from canaryrollout.cli.simulation import Spread, Summary
from canaryrollout.cli.traffic import Traffic, Version
from canaryrollout.domain.results import percent as percent_of
from canaryrollout.domain.steps import hold_of

_RARELY: Final = 0.05
_MOSTLY: Final = 0.5
_ALWAYS: Final = 0.995


@dataclass(frozen=True, slots=True)
class Case:
    """One canary and how its rollouts went; the first case is the healthy one."""

    canary: Version
    summary: Summary


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What traffic a step sees.

    Attributes:
        weight: Its weight in percent.
        rps: Requests per second to the canary.
        hold: Its hold.
        enough_after: When ``minRequests`` are to be expected.
    """

    weight: int
    rps: float
    hold: timedelta
    enough_after: timedelta


def plan(spec: CanaryRolloutSpec, rps: float) -> tuple[StepPlan, ...]:
    """Say what each step of a rollout sees of so many requests per second."""
    return tuple(_planned(spec, step, rps) for step in spec.steps)


def _planned(spec: CanaryRolloutSpec, step: Step, rps: float) -> StepPlan:
    canary = rps * step.weight / 100
    enough = timedelta(seconds=min(spec.analysis.min_requests / canary, 1e8))
    return StepPlan(step.weight, canary, hold_of(spec, step.weight), enough)


def warnings(spec: CanaryRolloutSpec, traffic: Traffic, lag: timedelta, cases: Sequence[Case]) -> tuple[str, ...]:
    """Say what stands out.

    Args:
        spec: The rollout.
        traffic: What was imagined.
        lag: How far behind the provider's data was imagined to be.
        cases: How it went, the healthy canary first.
    """
    return (*_of_steps(spec, traffic.rps), *_of_spec(spec, traffic, lag), *_of_cases(cases))


def _of_steps(spec: CanaryRolloutSpec, rps: float) -> Iterator[str]:
    least = spec.analysis.min_requests
    for number, step in enumerate(plan(spec, rps), 1):
        sees = f"step {number} (weight {step.weight}) sees {step.rps:.3g} requests/s: minRequests {least} takes "
        if step.enough_after > step.hold + spec.progress_deadline:
            ends = format_duration(step.hold + spec.progress_deadline)
            yield (
                f"{sees}{words(step.enough_after)}, and it can never pass before its deadline, {ends} after the step "
                "before (hold and progressDeadline)"
            )
        elif step.enough_after > step.hold:
            yield f"{sees}{words(step.enough_after)}, longer than its hold of {format_duration(step.hold)}"


def _of_spec(spec: CanaryRolloutSpec, traffic: Traffic, lag: timedelta) -> Iterator[str]:
    analysis = spec.analysis
    if analysis.metrics:
        yield f"metrics of your own are taken to pass: {', '.join(gate.name for gate in analysis.metrics)}"
    if analysis.latency is not None and not (traffic.stable.slow or traffic.canary.slow):
        yield "no request is slow: say how many are with --stable-slow, as spec.analysis.latency judges them"
    if any(step.approval is Approval.REQUIRED for step in spec.steps):
        yield "approvals are given at once; a person's time comes on top"
    if spec.paused:
        yield "spec.paused is true and was ignored: as it is, the rollout would not begin"
    short = [step.weight for step in spec.steps if hold_of(spec, step.weight) < analysis.interval + lag]
    if short:
        weights = ", ".join(map(str, short))
        yield (
            f"the hold at weight {weights} is shorter than one interval and the provider's lag "
            f"({format_duration(analysis.interval + lag)}): it does not make the step any longer"
        )


def _of_cases(cases: Sequence[Case]) -> Iterator[str]:
    healthy = cases[0].summary
    if healthy.taken_back.value > _RARELY:
        gates = ", ".join(f"{gate} {count}x" for gate, count in healthy.gates.items())
        yield f"a healthy canary is taken back in {share(healthy.taken_back.value)} of rollouts ({gates})"
    if healthy.out_of_time.value > _RARELY:
        yield f"a healthy canary does not pass in time in {share(healthy.out_of_time.value)} of rollouts"


def verdict(rps: float, cases: Sequence[Case]) -> str:
    """Say in one sentence what came out."""
    parts = [_went("a healthy canary", cases[0])]
    parts += [_went(f"one with {_unlike(case.canary, cases[0].canary)}", case) for case in cases[1:]]
    return f"At {rps:g} requests/s {'; '.join(parts)}."


def _went(who: str, case: Case) -> str:
    summary = case.summary
    went = max(
        (summary.promoted.value, "promoted"), (summary.taken_back.value, "back"), (summary.out_of_time.value, "late")
    )
    often = "" if went[0] >= _ALWAYS else f" in {share(went[0])} of rollouts"
    if went[1] == "promoted":
        return f"{who} is promoted{often} in {median(summary.to_promotion)}"
    if went[1] == "late":
        return f"{who} does not pass in time{often}"
    weight = max(summary.detected_at, key=lambda at: summary.detected_at[at])
    hurt = f", {summary.hurt.median:.0f} requests hurt" if summary.hurt and summary.hurt.median else ""
    slowed = f", {summary.slowed.median:.0f} slowed" if summary.slowed and summary.slowed.median else ""
    return f"{who} is taken back{often} after {median(summary.to_detect)} (median) at weight {weight}{hurt}{slowed}"


def _unlike(canary: Version, healthy: Version) -> str:
    """Spell the rates in which a canary differs from the healthy one."""
    errors = [f"{percent(canary.errors)} errors"] if canary.errors != healthy.errors else []
    slow = [f"{percent(canary.slow)} slow"] if canary.slow != healthy.slow else []
    return ", ".join([*errors, *slow])


def title(index: int, canary: Version) -> str:
    """Name a case."""
    return f"{'healthy' if index == 0 else 'bad'} canary, {rates(canary)}"


def rates(version: Version) -> str:
    """Spell the rates of a version."""
    slow = f", {percent(version.slow)} slow" if version.slow else ""
    return f"{percent(version.errors)} errors{slow}"


def percent(value: float) -> str:
    """Spell a rate for people."""
    return percent_of(Fraction(value).limit_denominator(10**8))


def share(probability: float) -> str:
    """Spell a probability for people."""
    return f"{100 * probability:.3g} %"


def median(found: Spread | None) -> str:
    """Spell the median of durations in seconds."""
    return words(timedelta(seconds=found.median)) if found is not None else "no time"


def words(span: timedelta) -> str:
    """Spell a duration to the second, to the minute where it is long."""
    unit = 60 if span >= timedelta(hours=1) else 1
    return format_duration(timedelta(seconds=unit * round(span.total_seconds() / unit)))
