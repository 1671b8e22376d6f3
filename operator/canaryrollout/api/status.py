"""The part of a CanaryRollout that the operator writes.

Status holds decisions and absolute times, never counters that move: a restarted operator, or another replica, continues
from it exactly. It is written when a phase, step, verdict or reason changes, and a rollout at rest does not write it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer

from canaryrollout.api.rules import ListMap
from canaryrollout.api.spec import ApiModel


def format_time(value: datetime) -> str:
    """Spell a UTC time with milliseconds, as ``2026-01-31T12:00:00.250Z``."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


def _within_reach(value: datetime) -> datetime:
    """Refuse a time that no operator wrote: without a zone it has no meaning, and too far off it cannot be added to."""
    if value.tzinfo is None:
        raise ValueError("must tell its time zone, such as 2026-01-31T12:00:00Z")
    if not _EARLIEST <= value.year <= _LATEST:
        raise ValueError(f"must be a time between the years {_EARLIEST} and {_LATEST}")
    return value.astimezone(UTC) if value.utcoffset() else value


def _some_years(value: int) -> int:
    if not 0 <= value <= _LONGEST_SECONDS:
        raise ValueError(f"must be between 0 and {_LONGEST_SECONDS}")
    return value


def _percent(value: int) -> int:
    if not 0 <= value <= 100:
        raise ValueError("must be between 0 and 100")
    return value


def _own_object(value: str) -> str:
    if not _OBJECT.fullmatch(value):
        raise ValueError("must be the name of an object in the same namespace")
    return value


_EARLIEST, _LATEST = 2000, 2999
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LONGEST_SECONDS = 10 * 366 * 24 * 3600

Time = Annotated[datetime, AfterValidator(_within_reach), PlainSerializer(format_time, return_type=str)]
Percent = Annotated[int, AfterValidator(_percent)]
OwnObject = Annotated[str, AfterValidator(_own_object)]
Seconds = Annotated[int, AfterValidator(_some_years)]


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

    PASS = "Pass"  # noqa: S105 - a verdict, not a password
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
    """What was done: a Subset or a Destination was added, or a Weight was altered."""
    object: OwnObject
    """Name of the VirtualService or DestinationRule, in the namespace of the rollout."""
    route: str = ""
    """Name of the http route; left out where the VirtualService has only one."""
    subset: str = ""
    """Name of the subset that was added, or that the destination names; left out for a plain destination."""
    version: str = ""
    """The version that the subset or destination is of."""
    original: int | None = None
    """The weight that was written there before; left out where there was none."""


class Counts(ApiModel):
    """Requests of one version in a stretch of time.

    ``timed`` and ``slow`` come from the histogram, the rest from the counter; the two are never mixed.
    """

    requests: int = 0
    """Requests that were answered."""
    errors: int = 0
    """Those of them that failed."""
    timed: int = 0
    """Requests whose duration is known."""
    slow: int = 0
    """Those of them that took longer than the threshold."""


class FinishedStep(ApiModel):
    """The counts that decided a step that passed; later steps compare with stable's."""

    weight: Percent
    """Weight of the step, in percent."""
    passed_at: Time
    """When it passed."""
    canary: Counts = Counts()
    """Counts of the canary during the step."""
    stable: Counts = Counts()
    """Counts of the stable version during the step."""
    evidence: dict[str, str] = Field(default_factory=dict)
    """In mode Sequential: the evidence against the canary when the step passed, by limit (such as
    errorRate.maxRelative). Later steps begin with it."""


class Baseline(ApiModel):
    """Requests that reached no version in a window before the first step: the level that is not the canary's fault."""

    seconds: Seconds
    """Length of the window, in seconds."""
    unreached: int
    """Requests to the host in the window that reached no version."""


class Target(ApiModel):
    """A weight that is about to be written: recorded before the mesh is touched."""

    weight: Percent
    """The weight to be, in percent."""
    set_at: Time
    """When it was decided."""
    generations: dict[str, int] = Field(default_factory=dict)
    """Generation of each VirtualService when it was decided, by name: a newer one tells that it was written."""


class Contest(ApiModel):
    """A foreign manager changes the weights; how often intent was asserted again and when the next time is due."""

    manager: str
    """Field manager that wrote the weights last."""
    count: int = 0
    """How often the recorded weights were asserted again."""
    changed_at: Time | None = None
    """When the present change of the weights was seen; left out while they are as recorded."""
    not_before: Time
    """When they may be asserted again."""
    given_up_generation: int | None = None
    """Generation of this object at which the operator gave way; left out while it did not."""
    resumed: bool = False
    """Whether the weights are to be asserted again after the operator gave way."""


class RolloutRecord(ApiModel):
    """The change under way, or the last one that was taken back."""

    version: str
    """The version that is, or was, on its way to serve."""
    token: str = ""
    """Token of the retry command that started it; left out where a change of version did."""
    started_at: Time
    """When it started."""
    weight: Percent = 0
    """Weight of the canary that was last confirmed on the API server, in percent."""
    target: Target | None = None
    """The weight that is about to be written."""
    applied_at: Time | None = None
    """When the weight was confirmed on the API server."""
    in_effect_at: Time | None = None
    """Since when observed traffic agrees with the weight; hold and analysis count from here."""
    convergence: str = ""
    """Whether observed traffic agrees with the weight: Converged, TooLittleTraffic or ShareContradicts."""
    subset_seen_at: Time | None = None
    """Since when the subsets of both versions have been in the DestinationRule."""
    unready_since: Time | None = None
    """Since when the canary has had no ready endpoint, less the moments in which it had some in between."""
    ready_again_at: Time | None = None
    """Since when it has had some again; after unreadyGrace of that, the moments without are forgotten."""
    host_named_by: tuple[str, ...] = ()
    """VirtualServices that had the host among their hosts when traffic began to move."""
    stable_ready: int | None = None
    """Ready endpoints that the stable version had before traffic moved, or the smaller number it has kept since."""
    stable_shrunk_since: Time | None = None
    """Since when the stable version has had half of them or fewer, and fewer than its share of the traffic needs."""
    baseline: Baseline | None = None
    """Requests that reached no version before the first step."""
    finished: tuple[FinishedStep, ...] = ()
    """The steps that passed, with the counts that decided them."""
    last_passed_at: Time | None = None
    """When the last step passed; deadlines count from here."""
    awaiting_since: Time | None = None
    """Since when something is awaited that the canary has no part in: a person, to approve or to end a pause, or
    endpoints of the stable version."""
    awaited_seconds: Seconds = 0
    """For how long such a thing was awaited since the last step passed, in seconds; deadlines are later by as much."""
    approved: bool = False
    """Whether a person approved the step in force."""
    promote: bool = False
    """Whether a person asked to promote without waiting for steps and gates."""
    drained_since: Time | None = None
    """Since when all that is to be removed has had weight 0."""
    cleaned_at: Time | None = None
    """When the destinations that are not needed any more were gone from all routes."""
    ended_at: Time | None = None
    """When it ended."""
    reason: str = ""
    """Why it is being taken back, or was, as one word."""
    explanation: str = ""
    """The same for people, with the numbers that decided it."""


class CommandRecord(ApiModel):
    """The last command that was answered; an annotation equal to ``command`` is not handled again."""

    command: str
    """The command, as the annotation canaryrollout.io/command had it."""
    handled_at: Time
    """When it was answered."""
    result: str
    """What came of it."""


class Condition(ApiModel):
    """A Kubernetes condition."""

    type: str
    """Name of the condition: Ready, Reconciling, Stalled, TrafficConverged, TrafficCovered or AnalysisHealthy."""
    status: str
    """True, False or Unknown."""
    reason: str
    """Why, as one word."""
    message: str = ""
    """Why, for people."""
    last_transition_time: Time
    """When the status of the condition last changed."""
    observed_generation: int = 0
    """Generation of the object that the condition is about."""


class HistoryEntry(ApiModel):
    """One transition and the numbers that decided it."""

    time: Time
    """When it happened."""
    reason: str
    """What happened, as one word."""
    version: str = ""
    """The version it happened to."""
    weight: int | None = None
    """Weight of that version at the time, in percent."""
    message: str = ""
    """What happened, for people, with the numbers that decided it."""


class GateSample(ApiModel):
    """What a gate counted of one version."""

    requests: int = 0
    """Requests that were judged."""
    bad: int = 0
    """Those of them that failed, or were slow."""
    rate: str = ""
    """Their share, as a percentage."""
    interval: str = ""
    """Where the true share lies with 95 % confidence, such as '0.3%..1.1%'."""


class LimitStatus(ApiModel):
    """What the evidence says on one limit of a gate."""

    limit: str
    """The limit, such as 'max 1%' or 'maxRelative 150%'."""
    evidence: str = ""
    """In mode Sequential: how strongly the counts speak against the canary (the e-value); 1 is not at all."""
    threshold: str = ""
    """In mode Sequential: the evidence at which the canary is taken back."""


class GateStatus(ApiModel):
    """The verdict of one gate, in words with its numbers."""

    name: str
    """Name of the gate: errorRate, latency, or that of a metric."""
    verdict: Verdict
    """Pass, Fail, Inconclusive (not enough data to tell) or Error (Prometheus did not answer)."""
    reason: str = ""
    """Why, as one word."""
    message: str = ""
    """The verdict in words, with its numbers."""
    canary: GateSample | None = None
    """What was counted of the canary; left out for a metric of your own."""
    stable: GateSample | None = None
    """What was counted of the stable version over the same time."""
    limits: Annotated[tuple[LimitStatus, ...], ListMap("limit")] = ()
    """What the evidence says on each limit of the gate."""
    value: str = ""
    """The newest value of a metric of your own."""
    baseline: str = ""
    """The newest value that it is compared with."""
    at: Time | None = None
    """Up to when the evidence was taken."""


class EffectiveAnalysis(ApiModel):
    """The analysis in force, defaults of the operator included."""

    mode: str
    """How counts become a verdict."""
    provider: str
    """Name of the Prometheus that is asked."""
    gates: tuple[str, ...] = ()
    """Names of the gates that the canary has to pass."""


class CanaryRolloutStatus(ApiModel):
    """What the operator knows, does and waits for."""

    observed_generation: int = 0
    """Generation of the object that this status is about; with a smaller one than metadata.generation, the last
    change was not looked at yet."""
    phase: Phase | None = None
    """Where the rollout stands: Stable, Preparing, Progressing, Paused, Promoting, RollingBack, RolledBack or
    Blocked."""
    message: str = ""
    """What the rollout does or waits for."""
    stable_version: str | None = None
    """The version that serves: the one that traffic returns to."""
    canary_version: str | None = None
    """The version that is on its way to serve, or was taken back."""
    step: str = ""
    """The step in force and how many there are, such as 2/4."""
    weight: int | None = None
    """Share of requests that go to the canary, in percent."""
    verdict: str = ""
    """What the evidence says about the canary at its weight: Pass, Fail, Inconclusive or Error."""
    evidence: str = ""
    """The numbers behind the verdict in short, such as 'errors 4.8% against 0.5%, 312 > 40'."""
    deadline: Time | None = None
    """When the step in force has to have passed; left out while it stands still, such as while a person is awaited. Of
    an object that is being deleted: when it is let go at the latest."""
    release_at: Time | None = None
    """When an object that is being deleted is let go, even if its traffic could not be given back until then."""
    rollout: RolloutRecord | None = None
    """The change under way, or the last one that was taken back."""
    subsets: dict[str, str] = Field(default_factory=dict)
    """Name of the subset of each version in use, by version."""
    changes: tuple[Change, ...] = ()
    """What the operator altered in the mesh and has not undone yet."""
    contest: Contest | None = None
    """Somebody else changes the weights, and how the operator answers."""
    last_command: CommandRecord | None = None
    """The last command that was answered."""
    analysis: EffectiveAnalysis | None = None
    """The analysis in force, defaults of the operator included."""
    gates: Annotated[tuple[GateStatus, ...], ListMap("name")] = ()
    """The verdict of each gate on the step in force."""
    conditions: Annotated[tuple[Condition, ...], ListMap("type")] = ()
    """Ready, Reconciling and Stalled as kstatus defines them; TrafficConverged tells whether observed traffic agrees
    with the weight, TrafficCovered whether nobody meets the canary past the listed routes, AnalysisHealthy whether
    Prometheus can be asked."""
    history: tuple[HistoryEntry, ...] = ()
    """The last transitions, oldest first, with the numbers that decided them."""

    def as_object(self) -> dict[str, Any]:
        """Return the status as the API spells it, without empty fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
