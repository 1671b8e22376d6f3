"""The part of a CanaryRollout that the operator writes.

Status holds decisions and absolute times, never counters that move: a restarted operator, or another replica, continues
from it exactly. It is written when a phase, step, verdict or reason changes, and a rollout at rest does not write it.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, PlainSerializer

from canaryrollout.api.spec import ApiModel


def format_time(value: datetime) -> str:
    """Spell a UTC time with milliseconds, as ``2026-01-31T12:00:00.250Z``."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


Time = Annotated[datetime, PlainSerializer(format_time, return_type=str)]


class Phase(StrEnum):
    """Where a rollout stands."""

    STABLE = "Stable"
    PREPARING = "Preparing"
    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    PROMOTING = "Promoting"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"
    BLOCKED = "Blocked"


class Verdict(StrEnum):
    """What the evidence says about the canary at its present weight."""

    PASS = "Pass"
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"
    ERROR = "Error"


class ChangeKind(StrEnum):
    """What kind of thing the operator added to, or altered in, an object of the mesh."""

    SUBSET = "Subset"
    DESTINATION = "Destination"
    WEIGHT = "Weight"


class Change(ApiModel):
    """One recorded alteration of a mesh object; undoing them all, newest first, gives back the original."""

    kind: ChangeKind
    object: str
    route: str = ""
    subset: str = ""
    version: str = ""
    original: int | None = None


class Counts(ApiModel):
    """Requests of one version in a stretch of time; ``timed`` and ``slow`` come from the histogram, the rest from the counter."""

    requests: int = 0
    errors: int = 0
    timed: int = 0
    slow: int = 0


class FinishedStep(ApiModel):
    """The counts that decided a step that passed; later steps compare with stable's."""

    weight: int
    passed_at: Time
    canary: Counts = Counts()
    stable: Counts = Counts()


class Baseline(ApiModel):
    """Requests that reached no version in a window before the first step: the level that is not the canary's fault."""

    seconds: int
    unreached: int


class Target(ApiModel):
    """A weight that is about to be written: recorded before the mesh is touched."""

    weight: int
    set_at: Time
    generations: dict[str, int] = Field(default_factory=dict)


class Contest(ApiModel):
    """A foreign manager changes the weights; how often intent was asserted again and when the next time is due."""

    manager: str
    count: int = 0
    not_before: Time


class RolloutRecord(ApiModel):
    """The change under way, or the last one that was taken back."""

    version: str
    token: str = ""
    started_at: Time
    weight: int = 0
    target: Target | None = None
    applied_at: Time | None = None
    in_effect_at: Time | None = None
    convergence: str = ""
    subset_seen_at: Time | None = None
    unready_since: Time | None = None
    baseline: Baseline | None = None
    finished: tuple[FinishedStep, ...] = ()
    last_passed_at: Time | None = None
    awaiting_since: Time | None = None
    awaited_seconds: int = 0
    approved: bool = False
    promote: bool = False
    drained_since: Time | None = None
    ended_at: Time | None = None
    reason: str = ""
    explanation: str = ""


class CommandRecord(ApiModel):
    """The last command that was answered; an annotation equal to ``command`` is not handled again."""

    command: str
    handled_at: Time
    result: str


class Condition(ApiModel):
    """A Kubernetes condition."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: Time
    observed_generation: int = 0


class HistoryEntry(ApiModel):
    """One transition and the numbers that decided it."""

    time: Time
    reason: str
    version: str = ""
    weight: int | None = None
    message: str = ""


class GateStatus(ApiModel):
    """The verdict of one gate, in words with its numbers."""

    name: str
    verdict: Verdict
    message: str = ""


class EffectiveAnalysis(ApiModel):
    """The analysis in force, defaults of the operator included."""

    mode: str
    provider: str
    gates: tuple[str, ...] = ()


class CanaryRolloutStatus(ApiModel):
    """What the operator knows, does and waits for."""

    observed_generation: int = 0
    phase: Phase | None = None
    message: str = ""
    stable_version: str | None = None
    canary_version: str | None = None
    step: str = ""
    weight: int | None = None
    verdict: str = ""
    deadline: Time | None = None
    rollout: RolloutRecord | None = None
    changes: tuple[Change, ...] = ()
    contest: Contest | None = None
    last_command: CommandRecord | None = None
    analysis: EffectiveAnalysis | None = None
    gates: tuple[GateStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    history: tuple[HistoryEntry, ...] = ()

    def as_object(self) -> dict[str, Any]:
        """Return the status as the API spells it, without empty fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
