"""Places that namespaces share: nobody waits for all queries of another, and no place is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.adapters.turns import Turns

pytestmark = pytest.mark.looptime


async def test_who_has_one_query_waits_for_one_of_each_other_namespace_at_most() -> None:
    turns, ended = Turns(2), list[tuple[str, float]]()

    async def query(namespace: str) -> None:
        async with turns.of(namespace):
            await asyncio.sleep(10)
        ended.append((namespace, asyncio.get_running_loop().time()))

    slow = [asyncio.create_task(query("slow")) for _ in range(40)]
    await asyncio.sleep(1)
    other = [asyncio.create_task(query(namespace)) for namespace in ("a", "a", "b")]
    await asyncio.gather(*other)
    assert [when for namespace, when in ended if namespace == "a"] == [20, 40]
    assert [when for namespace, when in ended if namespace == "b"] == [30]
    await asyncio.gather(*slow)
    assert asyncio.get_running_loop().time() == pytest.approx(220), "no place is ever idle while somebody waits"


async def test_within_a_namespace_the_first_comes_first() -> None:
    turns, order = Turns(1), list[int]()

    async def query(number: int) -> None:
        async with turns.of("shop"):
            order.append(number)
            await asyncio.sleep(1)

    await asyncio.gather(*(query(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9)), max_size=30),
)
def test_no_place_is_lost_or_given_twice_whoever_gives_up(places: int, queries: list[tuple[str, int, int]]) -> None:
    async def everybody() -> None:
        turns, held = Turns(places), 0

        async def query(namespace: str, holds: int) -> None:
            nonlocal held
            async with turns.of(namespace):
                held += 1
                assert held <= places
                try:
                    for _ in range(holds):
                        await asyncio.sleep(0)
                finally:
                    held -= 1

        tasks = [asyncio.create_task(query(namespace, holds)) for namespace, holds, _ in queries]
        for turn in range(400):  # more than it takes, one after the other
            for task, (_, _, given_up) in zip(tasks, queries, strict=True):
                if given_up == turn:
                    task.cancel()
            await asyncio.sleep(0)
        assert all(task.done() for task in tasks), "a place was lost"
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [end for end in ends if isinstance(end, AssertionError)]

    asyncio.run(everybody())
