"""What the queue promises whatever the order of things: nobody who may work waits beside an idle worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.engine.workqueue import Closed, Priority, WorkQueue
from tests.unit.engine.fakes import LoopClock

KEYS = (*(f"busy/{n}" for n in range(6)), "quiet/0", "quiet/1", "third/0")

Operation = tuple[str, str, Priority]
"""What is done, to which key, and how urgently."""

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(KEYS), st.sampled_from(Priority)),
        st.tuples(st.just("discard"), st.sampled_from(KEYS), st.just(Priority.ROUTINE)),
        st.tuples(st.just("done"), st.sampled_from(KEYS), st.just(Priority.ROUTINE)),
    ),
    min_size=30,
    max_size=100,
)


@dataclass
class Model:
    """The same in the plainest way: a list of who waits, and of who is worked on."""

    workers: int
    share: int
    numbers: count[int] = field(default_factory=count)
    waiting: dict[str, tuple[Priority, int]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    dirty: dict[str, Priority] = field(default_factory=dict)

    def add(self, key: str, priority: Priority) -> None:
        if key in self.running:
            self.dirty[key] = min(priority, self.dirty.get(key, priority))
        elif key not in self.waiting or priority < self.waiting[key][0]:
            self.waiting[key] = (priority, next(self.numbers))

    def discard(self, key: str) -> None:
        self.waiting.pop(key, None)
        self.dirty.pop(key, None)

    def done(self, key: str) -> None:
        self.running.discard(key)
        if key in self.dirty:
            self.add(key, self.dirty.pop(key))

    def settle(self) -> list[str]:
        """Let idle workers take what they may, and return it in order."""
        taken = []
        while len(self.running) < self.workers:
            busy = Counter(map(_namespace, self.running))
            may = [key for key in self.waiting if busy[_namespace(key)] < self.share]
            if not may:
                break
            key = min(may, key=self.waiting.__getitem__)
            del self.waiting[key]
            self.running.add(key)
            taken.append(key)
        return taken


def _namespace(key: str) -> str:
    return key.partition("/")[0]


async def _settle() -> None:
    for _ in range(2 * len(KEYS)):
        await asyncio.sleep(0)


async def _compare(workers: int, share: int, operations: list[Operation]) -> None:
    queue, model = WorkQueue(LoopClock(), share), Model(workers, share)
    taken: list[str] = []
    finished = {key: asyncio.Event() for key in KEYS}

    async def work() -> None:
        while True:
            try:
                key, _ = await queue.get()
            except Closed:
                return
            taken.append(key)
            await finished[key].wait()
            finished[key].clear()
            queue.done(key)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    for what, key, priority in operations:
        if what == "add":
            queue.add(key, priority)
            model.add(key, priority)
        elif what == "discard":
            queue.discard(key)
            model.discard(key)
        elif model.running:
            ended = min(model.running, key=lambda running: (running < key, running))
            finished[ended].set()
            model.done(ended)
        await _settle()
        assert taken == model.settle(), "what is taken, and in which order"
        taken.clear()
        assert (len(queue), queue.running) == (len(model.waiting), len(model.running))
    queue.close()
    for event in finished.values():
        event.set()
    await asyncio.gather(*tasks)


@given(workers=st.integers(1, 4), share=st.integers(1, 3), operations=OPERATIONS)
def test_who_may_work_is_never_left_waiting_beside_an_idle_worker(
    workers: int, share: int, operations: list[Operation]
) -> None:
    asyncio.run(_compare(workers, share, operations))
