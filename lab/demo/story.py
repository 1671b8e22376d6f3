"""The three stories, and how one is played: apply a version, let things happen, wait until all is at rest, measure.

Whoever plays only applies versions and tells them how to misbehave. Everything else is the operator's doing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from canaryrollout.api.status import RolloutRecord
from lab.backends import Backend
from lab.demo import scene
from lab.demo.breach import Replay
from lab.demo.facts import BreachFacts, DemoFacts, Outcome, RolloutFacts
from lab.demo.measure import (
    Routing,
    between,
    breach_of,
    objects_of,
    originals_of,
    outcome_of,
    requests_of,
    status_of,
    steps_of,
    undo_of,
)
from lab.demo.picture import Line, Past, Picture, event_line, traffic_of
from lab.demo.view import View
from lab.demo.watch import EVENT, ROLLOUT, Witness
from lab.errors import PartFailed
from lab.load import BackgroundLoad
from lab.mesh import Lab
from lab.process import Processes

ERROR_RATE: Final = 0.05
LATENCY_MS: Final = 800.0
LATENCY_RATE: Final = 0.5
PATIENCE_SECONDS: Final = 90.0
"""A story that is not over by then is given up; its outcome is what is found."""
LOOK_SECONDS: Final = 0.2
WARM_UP_SECONDS: Final = 3.0
PAUSE_SECONDS: Final = 1.0
EXPECTED_SECONDS: Final = 90.0
"""How long the stories take together, usually."""
LONGEST_PAUSE_SECONDS: Final = 1.0
"""The replayed gate must have been asked at least so shortly before it showed a breach."""

ROUTING: Final = Routing(scene.HOST, scene.ROUTES)


@dataclass(frozen=True, slots=True)
class Story:
    """One rollout to be played.

    Attributes:
        stable: Version that serves before.
        canary: Version that is to serve.
        expected: How it should end.
        tells: What is wrong with the version, for people.
        weights: Weights that the canary must have had, no others; empty where any will do.
        error_rate: Share of its requests that it fails from the start.
        slow_at: Weight at which it becomes slow; ``None`` for never.
    """

    stable: str
    canary: str
    expected: Outcome
    tells: str
    weights: tuple[int, ...] = ()
    error_rate: float = 0.0
    slow_at: int | None = None

    @property
    def title(self) -> str:
        """Name of the story."""
        return f"{self.stable} → {self.canary}"


STORIES: Final = (
    Story("v1", "v2", Outcome.PROMOTED, "healthy: promoted step by step", (10, 30, 50, 100)),
    Story(
        "v2", "v3", Outcome.TAKEN_BACK, "fails 5 % of its requests from the start: taken back", error_rate=ERROR_RATE
    ),
    Story("v2", "v4", Outcome.TAKEN_BACK, "becomes slow at 50 % only: taken back", (10, 30, 50), slow_at=50),
)
FAULTY: Final = frozenset(story.canary for story in STORIES if story.error_rate)


@dataclass
class Stage:
    """Everything that a story needs."""

    lab: Lab
    backends: Mapping[str, Backend]
    operator: Processes
    witness: Witness
    replay: Replay
    load: BackgroundLoad
    view: View
    rate: float
    began_at: float
    lines: list[Line] = field(default_factory=list)
    _past: Past = field(default_factory=Past)
    _events: int = 0
    _checked_at: float = 0.0
    _looked_at: float = 0.0

    def now(self) -> float:
        """Seconds since the epoch, on the clock of the requests."""
        return self.load.now()

    def tell(self, text: str, tone: str, at: float | None = None) -> None:
        """Add a line of our own."""
        self.lines.append(Line((at or self.now()) - self.began_at, text, tone))

    def look(self, story: Story, number: int) -> None:
        """Show how things stand some times a second, and see to it once a second that everything is still alive."""
        now = self.now()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        if now - self._checked_at > 1.0:
            self._checked_at = now
            self.lab.check_alive()
            if not self.operator.alive(scene.OPERATOR):
                raise PartFailed(scene.OPERATOR, self.operator.obituary(scene.OPERATOR, "died"))
        new = self.witness.since(EVENT, self._events)
        self._events += len(new)
        self.lines += [event_line(seen.document, seen.at - self.began_at) for seen in new]
        self.view.show(self._picture(story, number, now))

    def _picture(self, story: Story, number: int, now: float) -> Picture:
        status = status_of(self.witness.latest(ROLLOUT, scene.NAME))
        records = self.load.records
        traffic = traffic_of(records, status, scene.VERSIONS, now)
        return Picture(
            elapsed=now - self.began_at,
            expected=EXPECTED_SECONDS,
            number=number,
            of=len(STORIES),
            title=story.title,
            tells=story.tells,
            status=status,
            traffic=traffic,
            history=self._past.note(traffic, now),
            lines=tuple(sorted(self.lines, key=lambda line: line.at)),
            sent=len(records),
            lost=sum(record.version is None for record in records),
        )


def play(stage: Stage) -> DemoFacts:
    """Play all stories, and say what happened."""
    wait(stage, WARM_UP_SECONDS, STORIES[0], 1)
    rollouts = []
    for number, story in enumerate(STORIES, start=1):
        rollouts.append(_play_one(stage, story, number))
    wait(stage, PAUSE_SECONDS, STORIES[-1], len(STORIES))
    stage.load.stop()
    records = list(stage.load.records)
    seen = stage.witness.seen()
    return DemoFacts(
        began_at=stage.began_at,
        ended_at=stage.now(),
        rate=stage.rate,
        skipped=stage.load.skipped,
        rollouts=rollouts,
        requests=requests_of(records, FAULTY),
        undo=undo_of(seen, originals_of(seen), scene.HOST),
        gaps=_gaps(stage),
    )


def wait(stage: Stage, seconds: float, story: Story, number: int) -> None:
    """Let time pass, with something to look at."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stage.look(story, number)
        time.sleep(0.05)


def _play_one(stage: Stage, story: Story, number: int) -> RolloutFacts:
    canary = stage.backends[story.canary]
    if story.error_rate:
        canary.set_mode(error_rate=story.error_rate)
        stage.tell(f"{story.canary} is told to fail {story.error_rate:.0%} of its requests", "told")
    began_at = stage.now()
    stage.tell(f"kubectl apply: spec.version is {story.canary}", "told")
    stage.lab.apply(scene.rollout(story.canary))
    _until_at_rest(stage, story, number, canary)
    ended_at = stage.now()
    wait(stage, PAUSE_SECONDS, story, number)
    stage.load.wait_settled(until=ended_at)
    facts = _measure(stage, story, began_at, ended_at)
    stage.tell(f"{story.canary} was {facts.outcome}", "good" if facts.outcome is story.expected else "bad")
    return facts


def _until_at_rest(stage: Stage, story: Story, number: int, canary: Backend) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    slow, told_breach, told_zero = False, False, False
    while time.monotonic() < deadline:
        document = stage.witness.latest(ROLLOUT, scene.NAME)
        record = status_of(document).rollout
        if not slow and _has(record, story.canary, story.slow_at):
            canary.set_mode(latency_ms=LATENCY_MS, latency_rate=LATENCY_RATE)
            stage.tell(f"{story.canary} becomes slow: {LATENCY_RATE:.0%} take {LATENCY_MS:g} ms longer", "told")
            slow = True
        breach = _breach(stage, story) if record is not None and not told_zero else None
        if breach is not None and breach.visible_at is not None and not told_breach:
            stage.tell(f"Prometheus shows a breach: {breach.message}", "bad", breach.visible_at)
            told_breach = True
        if breach is not None and breach.seconds is not None:
            stage.tell(f"weight 0 on the API server, {breach.seconds:.2f} s after the breach", "good", breach.zero_at)
            told_zero = True
        stage.look(story, number)
        if outcome_of(document, story.canary) is not Outcome.UNFINISHED:
            return
        time.sleep(0.05)


def _has(record: RolloutRecord | None, canary: str, weight: int | None) -> bool:
    """Whether a weight of the canary is in effect."""
    return (
        record is not None and record.version == canary and record.weight == weight and record.in_effect_at is not None
    )


def _breach(stage: Stage, story: Story) -> BreachFacts | None:
    found = stage.replay.breaches.get(story.canary)
    if found is None:
        return BreachFacts() if story.expected is Outcome.TAKEN_BACK else None
    return breach_of(stage.witness.seen(), ROUTING, story.canary, (found.at, found.message))


def _measure(stage: Stage, story: Story, began_at: float, ended_at: float) -> RolloutFacts:
    seen = stage.witness.seen()
    records = between(stage.load.records, began_at, ended_at)
    document = stage.witness.latest(ROLLOUT, scene.NAME)
    status = status_of(document)
    return RolloutFacts(
        title=story.title,
        stable=story.stable,
        canary=story.canary,
        expected=story.expected,
        outcome=outcome_of(document, story.canary),
        expected_weights=story.weights,
        explanation=status.rollout.explanation if status.rollout and status.rollout.explanation else status.message,
        began_at=began_at,
        ended_at=ended_at,
        interval=scene.INTERVAL.total_seconds(),
        steps=steps_of(seen, ROUTING, story.canary, ended_at, records),
        breach=_breach(stage, story),
        requests=requests_of(records, FAULTY),
        objects=objects_of(seen, originals_of(seen), scene.HOST, began_at),
    )


def _gaps(stage: Stage) -> tuple[str, ...]:
    gaps = list(stage.witness.gaps)
    if stage.replay.problems:
        gaps.append(f"the gate's queries failed {len(stage.replay.problems)} times: {stage.replay.problems[0]}")
    gaps += [
        f"the gate's queries were not asked for {breach.pause:.1f} s before they showed the breach of {canary}"
        for canary, breach in stage.replay.breaches.items()
        if breach.pause > LONGEST_PAUSE_SECONDS
    ]
    return tuple(gaps)
