import asyncio

import pytest

from canaryrollout.engine.scheduler import Scheduler, fraction, next_turn
from tests.unit.engine.fakes import LoopClock

pytestmark = pytest.mark.looptime


class Fired:
    def __init__(self) -> None:
        self.log: list[tuple[float, str]] = []
        self.scheduler = Scheduler(LoopClock(), self)

    def __call__(self, key: str, lag: float) -> None:
        assert lag == pytest.approx(0, abs=0.01)
        self.log.append((round(asyncio.get_running_loop().time(), 2), key))


@pytest.fixture
def fired() -> Fired:
    return Fired()


async def test_keys_fire_when_they_are_due(fired: Fired) -> None:
    fired.scheduler.set("b", 20)
    fired.scheduler.set("a", 10)
    fired.scheduler.set("c", 10)
    await asyncio.sleep(100)
    assert fired.log == [(10, "a"), (10, "c"), (20, "b")]
    assert len(fired.scheduler) == 0


async def test_the_last_setting_holds(fired: Fired) -> None:
    fired.scheduler.set("a", 10)
    fired.scheduler.set("a", 30)
    await asyncio.sleep(20)
    assert fired.log == []
    fired.scheduler.set("a", 25)
    await asyncio.sleep(80)
    assert fired.log == [(25, "a")]


async def test_no_later_than_only_brings_forward(fired: Fired) -> None:
    fired.scheduler.no_later_than("a", 10)
    fired.scheduler.no_later_than("a", 30)
    fired.scheduler.no_later_than("b", 30)
    fired.scheduler.no_later_than("b", 10)
    await asyncio.sleep(100)
    assert fired.log == [(10, "a"), (10, "b")]


async def test_cancelled_keys_do_not_fire(fired: Fired) -> None:
    fired.scheduler.set("a", 10)
    fired.scheduler.set("b", 20)
    fired.scheduler.cancel("a")
    await asyncio.sleep(15)
    assert fired.log == []
    fired.scheduler.clear()
    await asyncio.sleep(15)
    assert fired.log == []


async def test_what_is_overdue_fires_at_once(fired: Fired) -> None:
    await asyncio.sleep(50)
    scheduler = Scheduler(LoopClock(), lambda key, lag: fired.log.append((round(lag, 2), key)))
    scheduler.set("a", 10)
    await asyncio.sleep(0.01)
    assert fired.log == [(40, "a")]


async def test_replaced_entries_do_not_pile_up(fired: Fired) -> None:
    for n in range(10_000):
        fired.scheduler.set("a", 1000 + n)
    assert len(fired.scheduler._heap) < 200
    assert fired.scheduler.due("a") == 10_999


def test_turns_depend_on_the_identity_alone_and_come_once_per_period() -> None:
    first = next_turn(1000.0, 300.0, "uid-1")
    assert 1000 < first <= 1300
    assert next_turn(first, 300.0, "uid-1") == pytest.approx(first + 300)
    assert next_turn(first - 0.001, 300.0, "uid-1") == pytest.approx(first)


def test_turns_of_many_spread_over_the_period() -> None:
    turns = [next_turn(0.0, 300.0, f"uid-{n}") for n in range(3000)]
    for tenth in range(10):
        share = sum(tenth * 30 <= turn < (tenth + 1) * 30 for turn in turns)
        assert 230 < share < 370


def test_fraction_is_deterministic() -> None:
    assert fraction("a", 1) == fraction("a", 1) != fraction("a", 2)
    assert 0 <= fraction("a") < 1
