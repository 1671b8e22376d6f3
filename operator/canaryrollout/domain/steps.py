"""The plan of weights: which step a weight belongs to, which follows, and until when it may take.

Status holds the weight, not an index, so that steps can be edited under way: the weight stays, and the next step is the
first one above it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from canaryrollout.api.spec import Approval, CanaryRolloutSpec, Step
from canaryrollout.api.status import RolloutRecord


def step_at(spec: CanaryRolloutSpec, weight: int) -> Step:
    """Return the configured step with this weight, or a plain one where none has it (adopted or edited away)."""
    return next((step for step in spec.steps if step.weight == weight), Step(weight=weight))


def next_weight(spec: CanaryRolloutSpec, weight: int) -> int:
    """Return the weight of the first step above ``weight``; 100 when there is none."""
    return next((step.weight for step in spec.steps if step.weight > weight), 100)


def hold_of(spec: CanaryRolloutSpec, weight: int) -> timedelta:
    """Return how long a weight is held at least."""
    step = step_at(spec, weight)
    return spec.hold if step.hold is None else step.hold


def needs_approval(spec: CanaryRolloutSpec, weight: int) -> bool:
    """Return whether a person has to approve before the canary goes beyond this weight."""
    return step_at(spec, weight).approval is Approval.REQUIRED


def label(spec: CanaryRolloutSpec, weight: int) -> str:
    """Return how far the rollout is, such as ``2/4``: steps reached of steps configured."""
    return f"{sum(step.weight <= weight for step in spec.steps)}/{len(spec.steps)}"


def deadline(spec: CanaryRolloutSpec, record: RolloutRecord) -> datetime | None:
    """Return when the present step must have passed.

    The deadline is ``progressDeadline`` beyond the step's hold, counted from the last step that passed (from the start
    before the first), and moved by the time in which a person, or stable's endpoints, were awaited.

    Returns:
        The time, or ``None`` while it stands still for such a wait.
    """
    if record.awaiting_since is not None:
        return None
    since = record.last_passed_at or record.started_at
    hold = hold_of(spec, record.weight) if record.weight else timedelta()
    return since + hold + spec.progress_deadline + timedelta(seconds=record.awaited_seconds)
