"""The gate's own questions, replayed: when they are asked, for which stretch of time, and what counts as a breach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Counts
from canaryrollout.domain.evidence import Block
from canaryrollout.domain.settings import DomainSettings
from lab.demo import scene
from lab.demo.breach import Cut, Replay
from tests.prometheusstub import Asked, Reply, prometheus_stub, result

APPLIED_AT = 1_767_225_600.0  # 2026-01-01T00:00:00Z
SETTINGS = DomainSettings(propagation=timedelta(seconds=1))


@dataclass
class World:
    """A rollout, a clock, and what Prometheus has counted."""

    replay: Replay
    asked: list[Asked]
    document: dict[str, Any] | None = None
    now: float = APPLIED_AT
    counts: dict[str, int] = field(default_factory=dict)

    def latest(self, kind: str, name: str) -> Mapping[str, Any] | None:
        return self.document

    def at(self, seconds: float, **counts: int) -> None:
        """Look, so many seconds after the weight was applied; ``counts`` by response code, such as ``c200``."""
        self.now, self.counts = APPLIED_AT + seconds, {code[1:]: count for code, count in counts.items()}
        self.replay.look()

    def answer(self, asked: Asked) -> Reply:
        time = float(asked.form["time"])
        start = {"metric": {"kind": "start"}, "value": [time, "3"]}
        rows = [
            {
                "metric": {"kind": "known", "destination_version": "v3", "response_code": code},
                "value": [time, str(count)],
            }
            for code, count in self.counts.items()
        ]
        return result("vector", [start, *rows] if "istio_requests_total" in asked.form["query"] else [])


def rollout(**record: Any) -> dict[str, Any]:
    document = scene.rollout("v3")
    document["spec"]["analysis"] |= {"mode": "Threshold", "latency": None, "errorRate": {"max": "1%"}}
    document["metadata"] |= {"uid": "1", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    document["status"] = {
        "stableVersion": "v2",
        "rollout": {
            "version": "v3",
            "startedAt": "2025-12-31T23:59:00Z",
            "weight": 10,
            "appliedAt": "2026-01-01T00:00:00Z",
            **record,
        },
    }
    return document


@pytest.fixture
def world() -> Iterator[World]:
    with _world() as world:
        yield world


@contextmanager
def _world() -> Iterator[World]:
    with prometheus_stub() as stub:
        holder: list[World] = []
        replay = Replay(
            stub.url,
            _Late(holder),
            scene.NAME,
            scrape_interval=timedelta(seconds=1),
            settings=SETTINGS,
            clock=lambda: holder[0].now,
        )
        world = World(replay, stub.asked, rollout())
        holder.append(world)
        stub.reply = world.answer
        yield world


@dataclass
class _Late:
    holder: list[World]

    def latest(self, kind: str, name: str) -> Mapping[str, Any] | None:
        return self.holder[0].latest(kind, name)


def test_the_first_fail_is_kept_with_the_time_it_was_asked_for(world: World) -> None:
    world.at(3.0, c200=60, c500=1)  # too few to tell
    world.at(5.0, c200=98, c500=2)
    world.at(5.1, c200=96, c500=4)
    breach = world.replay.breaches["v3"]
    assert breach.at == APPLIED_AT + 5.0
    assert "error rate 2 % (2/100)" in breach.message


def test_a_fail_that_the_rest_of_its_block_takes_back_does_not_count(world: World) -> None:
    """The operator only sees whole blocks."""
    world.at(5.0, c200=98, c500=2)
    world.at(5.1, c200=298, c500=2)
    assert world.replay.breaches == {}
    world.at(5.2, c200=298, c500=9)
    assert world.replay.breaches["v3"].at == APPLIED_AT + 5.2


def test_what_was_counted_is_cut_where_the_operators_blocks_end() -> None:
    """Points of the grid are two seconds apart; each cut is made at the first look after one."""
    cut, start = Cut(), datetime.fromtimestamp(APPLIED_AT + 1, UTC)

    def look(seconds: float, requests: int, errors: int) -> list[tuple[float, float, int, int]]:
        end = datetime.fromtimestamp(APPLIED_AT + seconds, UTC)
        whole = Block(start, end, canary=Counts(requests=requests, errors=errors), stable=Counts(requests=9 * requests))
        found = cut.take(whole, timedelta(seconds=2))
        assert sum(block.stable.requests for block in found) == 9 * requests
        return [
            (b.start.timestamp() - APPLIED_AT, b.end.timestamp() - APPLIED_AT, b.canary.requests, b.canary.errors)
            for b in found
        ]

    assert look(1.5, 10, 1) == [(1, 1.5, 10, 1)]
    assert look(2.25, 20, 1) == [(1, 2.25, 20, 1)]
    assert look(3, 30, 3) == [(1, 2.25, 20, 1), (2.25, 3, 10, 2)]
    assert look(4, 45, 3) == [(1, 2.25, 20, 1), (2.25, 4, 25, 2)]
    assert look(5, 50, 4) == [(1, 2.25, 20, 1), (2.25, 4, 25, 2), (4, 5, 5, 1)]
    start += timedelta(seconds=3)  # another weight
    assert look(5.5, 7, 0) == [(4, 5.5, 7, 0)]


def test_a_good_version_is_never_in_breach(world: World) -> None:
    for tenth in range(20, 100):
        world.at(tenth / 10, c200=20 * tenth)
    assert world.replay.breaches == {}
    assert len(world.asked) == 80


def test_questions_are_about_everything_since_the_weight_had_time_to_spread(world: World) -> None:
    world.at(4.5, c200=10)
    assert float(world.asked[0].form["time"]) == APPLIED_AT + 4.5
    assert "offset 3500ms" in world.asked[0].form["query"]


def test_questions_begin_where_the_weight_came_into_effect(world: World) -> None:
    world.document = rollout(inEffectAt="2026-01-01T00:00:03Z")
    world.at(4.5, c200=10)
    assert "offset 1500ms" in world.asked[0].form["query"]


@pytest.mark.parametrize(
    "document",
    [
        None,
        rollout(weight=0),
        rollout(reason="GateFailed"),
        rollout(appliedAt=None),
        rollout(target={"weight": 30, "setAt": "2026-01-01T00:00:05Z"}),
    ],
    ids=["no rollout", "no weight", "being taken back", "not confirmed", "being raised"],
)
def test_nothing_is_asked_where_there_is_nothing_to_judge(world: World, document: dict[str, Any] | None) -> None:
    world.document = document
    world.at(6.0, c200=10, c500=90)
    assert world.asked == []
    assert world.replay.breaches == {}


def test_nothing_is_asked_before_the_weight_had_time_to_spread(world: World) -> None:
    world.at(0.9, c200=10)
    assert world.asked == []


def test_a_breach_knows_for_how_long_nobody_had_asked_before(world: World) -> None:
    for seconds in (3.0, 4.6, 4.7):
        world.at(seconds, c200=10)
    world.at(6.2, c200=10, c500=90)
    world.at(6.3, c200=10, c500=90)
    assert [breach.pause for breach in world.replay.breaches.values()] == [pytest.approx(1.5)]
