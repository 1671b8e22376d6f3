import asyncio

import pytest

from canaryrollout.engine.workqueue import Closed, Priority, WorkQueue
from tests.unit.engine.fakes import LoopClock

pytestmark = pytest.mark.looptime


@pytest.fixture
def queue() -> WorkQueue:
    return WorkQueue(LoopClock(), share=2)


async def test_a_key_waits_once_however_often_it_is_asked_for(queue: WorkQueue) -> None:
    for _ in range(10):
        queue.add("a")
    queue.add("b")
    assert len(queue) == 2
    assert [(await queue.get())[0] for _ in range(2)] == ["a", "b"]
    assert len(queue) == 0


async def test_urgent_keys_go_first_and_routine_ones_in_order(queue: WorkQueue) -> None:
    queue.add("a")
    queue.add("b")
    queue.add("c", Priority.URGENT)
    assert [(await queue.get())[0] for _ in range(3)] == ["c", "a", "b"]


async def test_a_waiting_key_can_become_urgent_but_not_less_so(queue: WorkQueue) -> None:
    queue.add("a")
    queue.add("b")
    queue.add("b", Priority.URGENT)
    queue.add("b", Priority.ROUTINE)
    assert [(await queue.get())[0] for _ in range(2)] == ["b", "a"]
    queue.done("b")
    queue.add("c")
    assert (await queue.get())[0] == "c", "the overtaken request for b must not come up again"


async def test_a_key_is_never_given_out_twice_at_once(queue: WorkQueue) -> None:
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.add("a", Priority.URGENT)
    queue.add("b", Priority.ROUTINE)
    assert (await queue.get())[0] == "b"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 10)
    queue.add("c")
    queue.done("a")
    assert [(await queue.get())[0] for _ in range(2)] == ["a", "c"], "a is dirty, and urgently so"
    queue.done("a")
    assert len(queue) == 0


async def test_it_tells_how_long_a_key_has_waited(queue: WorkQueue) -> None:
    queue.add("a")
    await asyncio.sleep(3)
    queue.add("a", Priority.URGENT)
    assert queue.stalled() == 3
    assert await queue.get() == ("a", 3)
    assert queue.stalled() == 0


async def test_as_long_as_keys_are_taken_none_is_stuck(queue: WorkQueue) -> None:
    for key in ("a", "b", "c"):
        queue.add(key)
    for _ in range(2):
        await asyncio.sleep(3)
        await queue.get()
    assert queue.stalled() == 0
    await asyncio.sleep(2)
    assert queue.stalled() == 2


async def test_a_namespace_has_no_more_than_its_share_at_once(queue: WorkQueue) -> None:
    for key in ("busy/1", "busy/2", "busy/3", "busy/4", "busy/5", "quiet/1"):
        queue.add(key)
    assert [(await queue.get())[0] for _ in range(3)] == ["busy/1", "busy/2", "quiet/1"]
    queue.add("busy/6", Priority.URGENT)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 10)
    queue.discard("busy/3")
    queue.add("busy/5", Priority.URGENT)
    queue.done("busy/1")
    assert (await queue.get())[0] == "busy/6"
    queue.done("busy/2")
    queue.done("busy/6")
    assert [(await queue.get())[0] for _ in range(2)] == ["busy/5", "busy/4"], "what was overtaken blocks nobody"
    assert len(queue) == 0
    queue.done("busy/5")
    queue.add("busy/7")
    assert (await queue.get())[0] == "busy/7"


async def test_closing_ends_everyone_who_waits_and_drops_what_comes(queue: WorkQueue) -> None:
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(1)
    queue.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Closed) for result in results)
    queue.add("a")
    with pytest.raises(Closed):
        await queue.get()


async def test_a_discarded_key_is_not_given_out(queue: WorkQueue) -> None:
    queue.add("a")
    queue.add("b")
    queue.discard("a")
    assert (await queue.get())[0] == "b"
    queue.add("b")
    queue.discard("b")
    queue.done("b")
    assert len(queue) == 0
