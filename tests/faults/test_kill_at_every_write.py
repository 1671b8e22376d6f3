"""The operator is killed at a write, just before it arrives or just after it was done, and started again.

Whatever the write, the rollout has to end as if nothing had happened: the same objects, the same weights in the same
order, no raise without a pass, no step begun anew. Writes are told apart by kind and number (the third patch of a
VirtualService), because Events are sent beside the rest and change places with it from one life to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Any

import pytest

from tests.faults.conftest import Row
from tests.faults.life import ANALYSIS, STEPS, Ground, Life, new_life

pytestmark = pytest.mark.cluster

AT_ONCE = 3
"""Lives side by side; each has its own operator, and most of a life is waiting."""
LIVES_FOR_A_POINT = 2
STATUS = "patch canaryrollouts/status"
BAD_FROM = STEPS[1]
BACK = 3
"""Number of the write that takes the traffic back, among those of the VirtualService."""
LIVES = {"rollout": [0, *STEPS], "rollback": [0, *STEPS[:2], 0]}
"""The canary's weights in an undisturbed life."""
LEASES = {"leaseDuration": "4s", "renewDeadline": "3s", "retryPeriod": "500ms"}
"""A successor waits until the lease of the dead has expired."""
QUICK = {"rollout": 2, "rollback": BACK}
"""Number of the write of the VirtualService at which the quick tests kill: a raise, and the rollback."""


@dataclass(frozen=True)
class Point:
    """Where the operator is killed."""

    kind: str
    number: int
    after: bool

    @property
    def elects(self) -> bool:
        """Whether there is such a write only where the operator is elected."""
        return self.kind.endswith(" leases")

    def __str__(self) -> str:
        return f"{self.kind} {self.number}, {'after it was done' if self.after else 'before it arrived'}"


@dataclass(frozen=True)
class Outcome:
    """What became of a life.

    Attributes:
        end: What is left of it.
        weights: The canary's weights.
        applied: Writes that were done, by kind.
        redundant: Those that brought nothing new.
        killed: Whether the operator was killed.
    """

    end: dict[str, Any]
    weights: list[int]
    applied: Counter[str]
    redundant: list[str]
    killed: bool


def lived(ground: Ground, kind: str, point: Point | None = None) -> Outcome:
    """Let a rollout live from its creation to its end, and the operator die at a point of it."""
    elects = point is not None and point.elects
    with new_life(ground, elected=elects, **(LEASES if elects else {})) as life:
        if kind == "rollback":
            life.fail_from(BAD_FROM)
        life.start()
        if point is not None:
            life.rule(f"{point.kind} n={point.number} kill{'-after' if point.after else ''}")
        life.begin()
        killed = point is not None and _killed(life)
        if killed:
            life.start()
        life.until(lambda: life.ended, "end")
        life.until_quiet()
        life.check_raises(on=ANALYSIS["minRequests"])
        life.check_not_repeated()
        assert life.program is not None
        errors = [line for line in life.program.log if line.get("level") in ("error", "critical", "unreadable")]
        assert errors == [], life.story()
        return Outcome(life.end(), life.weights(), life.applied(), life.redundant(), killed)


def _killed(life: Life) -> bool:
    """Wait until the operator was killed, or the end; say which it was."""
    assert life.program is not None
    process = life.program.process
    life.until(lambda: process.poll() is not None or (life.ended and life.quiet()), "kill, or end")
    return process.poll() is not None


def undisturbed(ground: Ground, kind: str, times: int) -> list[Outcome]:
    """Lives in which nothing goes wrong: their ends are the same, and their writes nearly."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lives = list(pool.map(lambda _: lived(ground, kind), range(times)))
    for life in lives:
        assert life.weights == LIVES[kind]
        assert life.end == lives[0].end
        assert not life.redundant
    return lives


@pytest.mark.parametrize("kind", LIVES)
def test_killed_at_a_write_that_moves_traffic(ground: Ground, table: list[Row], kind: str) -> None:
    points = [Point("patch virtualservices", QUICK[kind], after) for after in (False, True)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        life = pool.submit(undisturbed, ground, kind, 1)
        outcomes = list(pool.map(lambda point: lived(ground, kind, point), points))
    _check(table, kind, life.result(), dict(zip(points, outcomes, strict=True)))


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", LIVES)
def test_killed_at_every_write(ground: Ground, table: list[Row], kind: str) -> None:
    lives = undisturbed(ground, kind, 3)
    points = [
        Point(name, number, after)
        for name, count in {**_most(lives), "update leases": 3}.items()
        for number in range(1, count + 1)
        for after in (False, True)
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda point: _tried(ground, kind, point), points))
    _check(table, kind, lives, dict(zip(points, outcomes, strict=True)))


def _tried(ground: Ground, kind: str, point: Point) -> Outcome | str:
    """Let a rollout live, and return what it broke where it broke a promise: the rest is tried all the same.

    A life may be a status shorter than others; where it ended before the write, another one is tried.
    """
    try:
        outcomes = (lived(ground, kind, point) for _ in range(LIVES_FOR_A_POINT))
        return next((outcome for outcome in outcomes if outcome.killed), None) or lived(ground, kind, point)
    except AssertionError as error:
        return str(error)


def _check(table: list[Row], kind: str, lives: Sequence[Outcome], outcomes: Mapping[Point, Outcome | str]) -> None:
    """Compare lives that were cut short with undisturbed ones, all before anything is said."""
    failures = [
        f"{kind}, killed at {point}: {problem}"
        for point, outcome in outcomes.items()
        if (problem := outcome if isinstance(outcome, str) else _problem(kind, lives, point, outcome))
    ]
    killed = sum(isinstance(outcome, str) or outcome.killed for outcome in outcomes.values())
    seen = f"{len(failures)} ended otherwise" if failures else "same end, same weights, nothing repeated"
    table.append(Row(f"kill -9 at a write, {kind}", "before it arrives, and after it was done", killed, seen))
    assert not failures, "\n\n".join(failures)
    assert killed


def _problem(kind: str, lives: Sequence[Outcome], point: Point, outcome: Outcome) -> str:
    """Say what is different from an undisturbed life and should not be; empty where nothing is."""
    most, least = _most(lives), _least(lives)
    if not outcome.killed:
        # Whether a status is written once more or less may depend on when an answer came.
        return "" if point.number > least[point.kind] else "there was no such write, and the operator was not killed"
    if outcome.weights != LIVES[kind]:
        return f"weights were {outcome.weights}"
    end = lives[0].end
    if outcome.end != end:
        different = {key: (outcome.end[key], value) for key, value in end.items() if outcome.end[key] != value}
        return f"ended with (undisturbed: second) {different}"
    # A restart may be worth a status or two, as long as each says something new; anything else is written once.
    extra = outcome.applied - most
    del extra[STATUS]
    more = [*extra.elements(), *outcome.redundant]
    return f"wrote {', '.join(more)} beyond an undisturbed life" if len(more) > 1 else ""


def _most(lives: Sequence[Outcome]) -> Counter[str]:
    return reduce(or_, (life.applied for life in lives))


def _least(lives: Sequence[Outcome]) -> Counter[str]:
    return reduce(and_, (life.applied for life in lives))
