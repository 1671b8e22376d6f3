"""What the demo promises, as pure functions: facts go in, verdicts come out.

Each promise is looked at for each rollout it concerns, and says what it found with its numbers whether it holds or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lab.demo.facts import DemoFacts, Outcome, RolloutFacts, StepFacts
from lab.selfcheck import CONFIDENCE, binomial_interval

REACTION_SECONDS: Final = 1.0
"""What a rollback may take beyond one analysis interval."""
SHOWN: Final = 3
"""How many mismatches of one kind are spelled out; the report has all of them."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, looked at.

    Attributes:
        subject: What it is about: a rollout, or the whole demo.
        promise: What was promised.
        holds: Whether it holds.
        found: What was found, with its numbers.
    """

    subject: str
    promise: str
    holds: bool
    found: str


def checks(demo: DemoFacts) -> tuple[Check, ...]:
    """Look at every promise."""
    found = [check for rollout in demo.rollouts for check in _of_rollout(rollout)]
    return (*found, _requests(demo), _undo(demo), _witness(demo))


def _of_rollout(rollout: RolloutFacts) -> Iterator[Check]:
    yield _outcome(rollout)
    if rollout.expected_weights:
        yield _weights(rollout)
    for step in rollout.steps:
        yield _share(rollout, step)
    if not rollout.steps:
        yield Check(rollout.title, "the canary gets traffic", False, "it never had any weight")
    if rollout.expected is Outcome.TAKEN_BACK:
        yield _reaction(rollout)
    yield _objects(rollout)


def _outcome(rollout: RolloutFacts) -> Check:
    found = str(rollout.outcome) + (f": {rollout.explanation}" if rollout.explanation else "")
    return Check(rollout.title, f"ends {rollout.expected}", rollout.outcome is rollout.expected, found)


def _weights(rollout: RolloutFacts) -> Check:
    weights = tuple(step.weight for step in rollout.steps)
    promise = f"steps {_list(rollout.expected_weights)}"
    return Check(rollout.title, promise, weights == rollout.expected_weights, f"steps {_list(weights)}")


def _share(rollout: RolloutFacts, step: StepFacts) -> Check:
    promise = f"at {step.weight} %, the canary gets {step.weight} % of the requests"
    if step.in_effect_at is None:
        return Check(rollout.title, promise, False, "the weight was never seen in effect")
    if not step.requests:
        return Check(rollout.title, promise, False, "no request was sent while it was in effect")
    low, high = interval(step)
    share = 100 * step.canary / step.requests
    found = (
        f"{step.canary} of {step.requests} ({share:.2f} %); {100 * CONFIDENCE:g} % of fair splits have {low} to {high}"
    )
    return Check(rollout.title, promise, low <= step.canary <= high, found)


def interval(step: StepFacts) -> tuple[int, int]:
    """Fewest and most requests of the canary that its weight explains."""
    if step.weight >= 100:
        return step.requests, step.requests
    return binomial_interval(step.requests, step.weight / 100)


def _reaction(rollout: RolloutFacts) -> Check:
    limit = rollout.interval + REACTION_SECONDS
    promise = f"weight 0 within {limit:g} s of the breach showing in Prometheus"
    breach = rollout.breach
    if breach is None or breach.visible_at is None:
        return Check(rollout.title, promise, False, "no breach was seen in Prometheus")
    if breach.seconds is None:
        return Check(rollout.title, promise, False, "the canary's weight never came to 0")
    return Check(rollout.title, promise, breach.seconds <= limit, f"{breach.seconds:.2f} s; {breach.message}")


def _objects(rollout: RolloutFacts) -> Check:
    promise = "mesh objects unchanged but for the operator's recorded changes"
    differing = [f"{item.kind} {item.name}: {'; '.join(item.diff)}" for item in rollout.objects if item.diff]
    if not rollout.objects:
        return Check(rollout.title, promise, False, "no mesh object was seen")
    return Check(
        rollout.title, promise, not differing, " | ".join(differing) or f"{len(rollout.objects)} objects equal"
    )


def _requests(demo: DemoFacts) -> Check:
    requests = demo.requests
    promise = "no request fails but by the injected fault"
    if not requests.sent:
        return Check("all", promise, False, "no request was sent")
    bad = [*requests.lost, *requests.failed]
    found = f"{requests.sent} requests, {requests.injected} failed as told, {sum(f.requests for f in bad)} otherwise"
    return Check("all", promise, not bad, "; ".join([found, *map(str, bad)]))


def _undo(demo: DemoFacts) -> Check:
    undo = demo.undo
    promise = "undoing the recorded changes gives the original objects, at every moment"
    if not undo.moments:
        return Check("all", promise, False, "nothing was looked at")
    found = f"{undo.moments} versions of objects and records"
    rest = len(undo.mismatches) - SHOWN
    shown = [*undo.mismatches[:SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
    return Check("all", promise, not undo.mismatches, "; ".join([found, *shown]))


def _witness(demo: DemoFacts) -> Check:
    return Check("all", "nothing went unseen", not demo.gaps, "; ".join(demo.gaps) or "all watches held throughout")


def _list(weights: tuple[int, ...]) -> str:
    return ", ".join(map(str, weights)) or "none"
