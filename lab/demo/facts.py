"""What happened in the demo, as plain data: the one thing that checks, report and summary are made from.

Times are seconds since the epoch on this machine's clock; weights are percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """How a rollout ended."""

    PROMOTED = "promoted"
    TAKEN_BACK = "taken back"
    UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One weight of the canary.

    Attributes:
        weight: The weight that was asked for.
        written_at: When the last VirtualService showed it.
        in_effect_at: Since when it was in effect, as the operator says in status; ``None`` if never. A canary may be
            taken back before the operator says so: then it is since the canary answered first.
        until: When the operator was about to write the next weight, or the rollout ended.
        requests: Requests sent while it was in effect that reached a version.
        canary: Those of them that reached the canary.
    """

    weight: int
    written_at: float
    in_effect_at: float | None
    until: float
    requests: int = 0
    canary: int = 0

    @property
    def share(self) -> float | None:
        """The canary's share of the requests, 0 to 1; ``None`` without requests."""
        return self.canary / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class BreachFacts:
    """How long it took from a breach that anybody could see to the end of the canary's traffic.

    Attributes:
        visible_at: First moment at which the gate's own queries, replayed ten times a second, gave Fail.
        message: What the gate said then.
        zero_at: When every VirtualService on the API server showed weight 0.
    """

    visible_at: float | None = None
    message: str = ""
    zero_at: float | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds from the one to the other; ``None`` where one of them was not seen."""
        return None if self.visible_at is None or self.zero_at is None else self.zero_at - self.visible_at


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """One mesh object before and after a rollout.

    Attributes:
        kind: Its kind.
        name: Its name.
        diff: Lines that differ once the operator's recorded changes are undone in both; nothing should.
        altered: Lines that differ as they are: what the operator changed.
        writes: How often it was written during the rollout.
    """

    kind: str
    name: str
    diff: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed requests of one kind."""

    requests: int
    version: str | None
    status: int
    reason: str = ""
    flags: str = ""

    def __str__(self) -> str:
        """One line for people."""
        who = f"from {self.version}" if self.version else "from no version"
        what = f"status {self.status}" if self.status else "no answer"
        return f"{self.requests} x " + ", ".join(part for part in (what, who, self.flags, self.reason) if part)


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Requests of a stretch of time, sorted by what became of them.

    Attributes:
        sent: All of them.
        injected: Failed by the injected fault: a 500 from the version that was told to.
        lost: Reached no version: the mesh itself lost them.
        failed: Failed in any other way.
    """

    sent: int = 0
    injected: int = 0
    lost: tuple[Failures, ...] = ()
    failed: tuple[Failures, ...] = ()

    @property
    def lost_requests(self) -> int:
        """How many requests the mesh itself lost."""
        return sum(failures.requests for failures in self.lost)


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """One rollout.

    Attributes:
        title: Its name in the demo.
        stable: Version that served before.
        canary: Version that was to serve.
        expected: How it should end.
        outcome: How it ended.
        expected_weights: Weights that it must have had, in this order, and no others; empty where any will do.
        explanation: Why it was taken back, or where it stands, in the operator's words.
        began_at: When the new version was applied.
        ended_at: When it came to rest.
        interval: Length of an analysis interval, in seconds.
        steps: Weights that the canary had, in order.
        breach: For those taken back: how long that took.
        requests: What became of the requests meanwhile.
        objects: The mesh objects before and after.
    """

    title: str
    stable: str
    canary: str
    expected: Outcome
    outcome: Outcome
    expected_weights: tuple[int, ...]
    explanation: str
    began_at: float
    ended_at: float
    interval: float
    steps: tuple[StepFacts, ...] = ()
    breach: BreachFacts | None = None
    requests: RequestFacts = RequestFacts()
    objects: tuple[ObjectFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class UndoFacts:
    """Whether undoing what status records gave the original objects.

    Attributes:
        moments: How many combinations of an object and a record were looked at: each one that ever existed.
        mismatches: Where it did not, for people.
    """

    moments: int = 0
    mismatches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """The whole demo.

    Attributes:
        began_at: When the load began.
        ended_at: When the last answer was in.
        rate: Requests a second that were asked for.
        skipped: Requests that were due and not sent because this machine stood still.
        rollouts: The rollouts, in order.
        requests: What became of all requests.
        undo: Whether every change could be undone at every moment.
        gaps: Times at which the witness was not watching, for people.
    """

    began_at: float
    ended_at: float
    rate: float
    skipped: int = 0
    rollouts: Sequence[RolloutFacts] = ()
    requests: RequestFacts = RequestFacts()
    undo: UndoFacts = field(default_factory=UndoFacts)
    gaps: tuple[str, ...] = ()
