"""What keeps mesh objects from being written, and what is to be seen of it: attempts, distances, words.

Most of it is a validating webhook that the real API server asks; only a write that never returns and a plain 503 are
made by the proxy before the API server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final

from canaryrollout.api.status import Phase
from lab.faultproxy import Armed, Entry
from tests.faults.cluster import DESTINATION_RULES
from tests.faults.life import NAME, Ground, Life, new_life
from tests.faults.rows import Row
from tests.faults.webhook import MESSAGE, Mood, Review, Webhook, webhook

AT_ONCE: Final = 2
LASTS_SECONDS: Final = 8.0
SLACK_SECONDS: Final = 1.5
"""For a machine that is busy with other tests."""
WRITE_TIMEOUT_SECONDS: Final = 5.0
"""The operator's own patience with a write."""
FIRST_DELAY_SECONDS: Final = 0.25
LONGEST_DELAY_SECONDS: Final = 30.0
LONGEST_URGENT_SECONDS: Final = 0.5
LONGEST_STALL_SECONDS: Final = 5.0
"""Between two attempts, where a busy machine stands still for a moment."""
ASK_AT_20: Final = [{"weight": 20, "approval": "Required"}, {"weight": 60}, {"weight": 100}]
ASK_AT_60: Final = [{"weight": 20}, {"weight": 60, "approval": "Required"}, {"weight": 100}]


@dataclass
class Obstacle:
    """What keeps mesh objects from being written.

    Attributes:
        life: Whose they are.
        hook: The webhook of its namespace.
        mood: What the webhook does; ``None`` where it is the proxy that disturbs.
        rule: What the proxy does.
        words: What the operator has to say of it.
        patience: How long a write takes until it has failed.
    """

    life: Life
    hook: Webhook
    mood: Mood | None
    rule: str
    words: str
    patience: float = 0.0
    _armed: list[Armed] = field(default_factory=list)

    def begin(self, concerns: Callable[[Review], bool] = lambda _: True) -> float:
        """Let it begin; return when that was."""
        if self.mood is not None:
            self.hook.refuse(self.mood, concerns)
        else:
            self._armed = [self.life.rule(f"patch virtualservices namespace={self.life.namespace} {self.rule}")]
        return time.time()

    def end(self) -> float:
        """Let it end; return when that was."""
        self.life.proxy.retire(*self._armed)
        return self.hook.allow()


OBSTACLES: Final[Mapping[str, tuple[Mood | None, str, str, float]]] = {
    "denied by a webhook": (Mood.DENIES, "", f"denied the request: {MESSAGE}", 0.0),
    "webhook down": (Mood.FAILS, "", "failed calling webhook", 0.0),
    "webhook hangs": (Mood.HANGS, "", "timed out", WRITE_TIMEOUT_SECONDS),
    "503": (None, "answer=503", "HTTP 503", 0.0),
    "never answered": (None, "hang", "timed out", WRITE_TIMEOUT_SECONDS),
}


def most_attempts(seconds: float, longest: float) -> int:
    """How many attempts there may be in so many seconds: the distances double, and are shortened by half at most."""
    attempts, at, delay = 1, 0.0, FIRST_DELAY_SECONDS
    while (at := at + delay / 2) <= seconds:
        attempts, delay = attempts + 1, min(longest, 2 * delay)
    return attempts


def tries(life: Life, since: float, plural: str = "virtualservices", name: str = NAME) -> list[Entry]:
    """Attempts to write an object of the mesh since a time."""
    return [e for e in life.writes() if (e.call.resource, e.call.name) == (plural, name) and e.at >= since]


def distances(entries: Sequence[Entry]) -> list[float]:
    """Seconds between an attempt's end, or when the operator gave it up, and the next one."""
    took = [WRITE_TIMEOUT_SECONDS if e.seconds is None else min(e.seconds, WRITE_TIMEOUT_SECONDS) for e in entries]
    return [new.at - old.at - seconds for (old, new), seconds in zip(pairwise(entries), took, strict=False)]


def check_urgent(entries: Sequence[Entry], story: str) -> None:
    """Attempts to take traffic back follow each other within half a second or so, and to the end.

    Distances that went on doubling would be longer than that by then; one or another may be so for its machine's sake.
    """
    between = distances(entries)
    assert between, story
    assert median(between[-max(len(between) // 2, 1) :]) < 2 * LONGEST_URGENT_SECONDS, f"{between}; {story}"
    assert max(between) < LONGEST_STALL_SECONDS, f"{between}; {story}"


def asks(life: Life, weight: int) -> bool:
    """Whether a step has passed and waits for a person."""
    return life.weight == weight and life.status.phase is Phase.PAUSED


def events(life: Life, reason: str) -> list[str]:
    """Notes of the Events with a reason."""
    found = json.loads(life.ground.lab.kubectl("get", "events.events.k8s.io", "-n", life.namespace, "-o", "json"))
    return [event.get("note", "") for event in found["items"] if event["reason"] == reason]


def check_visible(life: Life, words: str) -> None:
    """A person reads why: in the conditions, in `kubectl get`, and in an Event."""
    life.until(lambda: words in life.status.message, f"{words!r} in the message", 10)
    assert any(words in condition.message for condition in life.status.conditions if condition.type == "Ready")
    assert words in life.ground.lab.kubectl("get", "canaryrollouts", "-n", life.namespace, "-o", "wide")
    life.until(lambda: any(words in note for note in events(life, "WriteFailed")), "Event", 10)


@contextmanager
def obstructed(ground: Ground, kind: str) -> Iterator[tuple[Life, Life, Life, Obstacle]]:
    """A rollout whose mesh can be kept from being written, and two more of the same operator."""
    with new_life(ground) as life:
        calm, beside = life.neighbor(), life.neighbor()
        directory = ground.directory / life.namespace
        with webhook(ground.lab, life.namespace, directory) as hook:
            mood, rule, words, patience = OBSTACLES[kind]
            life.until(lambda: reviewed(life, hook), "webhook that is asked", 20)
            life.start()
            yield life, calm, beside, Obstacle(life, hook, mood, rule, words, patience)


def reviewed(life: Life, hook: Webhook) -> bool:
    """Whether the API server asks the webhook already."""
    change = {"metadata": {"labels": {"touched": f"{time.time():.0f}"}}}
    life.ground.cluster.merge(DESTINATION_RULES, life.namespace, NAME, change)
    return bool(hook.reviews)


def check_end(life: Life, weights: list[int]) -> None:
    """It ended as it would have, only later."""
    assert life.weights() == weights, life.story()
    life.check_raises()
    life.check_not_repeated()
    record = life.status.rollout
    if weights[-1] == 0:
        assert record is not None
        assert record.reason == "GateFailed", life.story()


def rows(work: Callable[[Any], Row], cases: Sequence[Any], table: list[Row]) -> None:
    """Try several cases, some at once, and tell of all of them before one that went wrong."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tried = [(case, pool.submit(work, case)) for case in cases]
    problems = {case: error for case, future in tried if (error := future.exception()) is not None}
    table += [future.result() for case, future in tried if case not in problems]
    assert not problems, "\n\n".join(f"{case}: {error!r}" for case, error in problems.items())
