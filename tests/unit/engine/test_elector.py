import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from canaryrollout.engine.elector import Elector
from canaryrollout.engine.ports import Conflict, NotLeading
from canaryrollout.engine.settings import LeaseSettings
from tests.unit.engine.fakes import LoopClock

pytestmark = pytest.mark.looptime


class Lease:
    """One Lease object; ``hang`` and ``error`` say how it misbehaves, for all or for one replica."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] | None = None
        self.version = 0
        self.requests = 0

    def seen_by(self, name: str) -> "View":
        return View(self, name)


class View:
    def __init__(self, lease: Lease, name: str) -> None:
        self.lease, self.name = lease, name
        self.hang = False
        self.write_takes = 0.0
        self.error: Exception | None = None

    async def _arrive(self) -> None:
        self.lease.requests += 1
        if self.hang:
            await asyncio.sleep(3600)
        if self.error:
            raise self.error

    async def read(self) -> tuple[str, dict[str, Any]] | None:
        await self._arrive()
        return None if self.lease.spec is None else (str(self.lease.version), dict(self.lease.spec))

    async def create(self, spec: dict[str, Any]) -> str:
        await self._arrive()
        return await self._written("0", spec)

    async def replace(self, resource_version: str, spec: dict[str, Any]) -> str:
        await self._arrive()
        return await self._written(resource_version, spec)

    async def _written(self, resource_version: str, spec: dict[str, Any]) -> str:
        """Store what was sent, whether or not anybody still waits for the answer."""
        if not self.write_takes:
            return self._store(resource_version, spec)
        return await asyncio.shield(asyncio.ensure_future(self._store_later(resource_version, spec)))

    async def _store_later(self, resource_version: str, spec: dict[str, Any]) -> str:
        await asyncio.sleep(self.write_takes)
        return self._store(resource_version, spec)

    def _store(self, resource_version: str, spec: dict[str, Any]) -> str:
        if resource_version != str(self.lease.version):
            raise Conflict("exists" if resource_version == "0" else "modified")
        self.lease.version += 1
        self.lease.spec = spec
        return str(self.lease.version)


class Replica:
    def __init__(self, lease: Lease, name: str) -> None:
        self.view = lease.seen_by(name)
        self.changes: list[tuple[float, bool]] = []
        self.elector = Elector(self.view, LoopClock(), name, LeaseSettings(), self._note)
        self.task: asyncio.Task[None] | None = None

    def _note(self, leads: bool) -> None:
        self.changes.append((round(asyncio.get_running_loop().time(), 2), leads))

    def start(self) -> "Replica":
        self.task = asyncio.create_task(self.elector.run())
        return self

    async def kill(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


@contextlib.asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[Replica, Replica]]:
    """A leader and a follower, ten seconds old."""
    lease = Lease()
    a = Replica(lease, "a").start()
    await asyncio.sleep(0.5)
    b = Replica(lease, "b").start()
    await asyncio.sleep(10)
    yield a, b
    await a.kill()
    await b.kill()


def leads(*replicas: Replica) -> list[bool]:
    return [replica.elector.leads() for replica in replicas]


async def test_the_first_one_leads_and_keeps_the_lease() -> None:
    async with two_replicas() as (a, b):
        await asyncio.sleep(600)
        assert leads(a, b) == [True, False]
        assert a.changes == [(0, True)]
        assert b.changes == []
        spec = a.view.lease.spec
        assert spec is not None
        assert spec["holderIdentity"] == "a"
        assert spec["leaseTransitions"] == 0
        assert spec["leaseDurationSeconds"] == 15
        assert spec["acquireTime"] == "2026-01-01T00:00:00.000000Z"
        assert "2026-01-01T00:10:1" in spec["renewTime"]
        assert spec["renewTime"].endswith("Z")


async def test_a_leader_writes_once_per_renewal_and_a_follower_reads() -> None:
    async with two_replicas() as (a, _):
        before = a.view.lease.requests
        await asyncio.sleep(100)
        assert a.view.lease.requests - before == 100


async def test_a_crash_is_followed_by_a_takeover_in_less_than_20_seconds() -> None:
    async with two_replicas() as (a, b):
        crashed = asyncio.get_running_loop().time()
        await a.kill()
        await asyncio.sleep(20)
        assert b.elector.leads()
        ((when, _),) = b.changes
        assert 13 <= when - crashed <= 17.5
        spec = a.view.lease.spec
        assert spec is not None
        assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 1)


async def test_a_release_is_followed_by_a_takeover_in_less_than_3_seconds() -> None:
    async with two_replicas() as (a, b):
        await a.kill()
        stopped = asyncio.get_running_loop().time()
        await a.elector.release()
        assert not a.elector.leads()
        await asyncio.sleep(3)
        assert b.elector.leads()
        assert b.changes[0][0] - stopped < 3


@pytest.mark.parametrize("stopped_at", [0.1, 2.1], ids=["acquiring", "renewing"])
async def test_a_lease_is_released_though_it_stops_in_the_middle_of_writing_it(stopped_at: float) -> None:
    lease = Lease()
    replica = Replica(lease, "a")
    replica.view.write_takes = 0.3
    replica.start()
    await asyncio.sleep(stopped_at)
    await replica.kill()
    await replica.elector.release()
    await asyncio.sleep(1)
    assert not replica.elector.leads()
    assert lease.spec is not None
    assert lease.spec["holderIdentity"] == ""


async def test_a_release_waits_no_longer_for_a_request_than_the_request_may_take() -> None:
    async with two_replicas() as (a, _):
        a.view.hang = True
        await asyncio.sleep(2.1)
        began = asyncio.get_running_loop().time()
        await a.kill()
        await a.elector.release()
        assert asyncio.get_running_loop().time() - began <= 4.01


@pytest.mark.parametrize("fault", ["hang", "error"])
async def test_a_leader_that_cannot_renew_fences_itself_before_another_takes_over(
    fault: str,
) -> None:
    async with two_replicas() as (a, b):
        broken = asyncio.get_running_loop().time()
        a.view.hang = fault == "hang"
        a.view.error = OSError("refused") if fault == "error" else None
        await asyncio.sleep(60)
        (_, (fenced, still)) = a.changes
        assert not still
        assert 7.5 <= fenced - broken <= 10.01
        (taken, _) = b.changes[0]
        assert taken - fenced >= 4.9, "the margin in which the last requests of the former leader die out"
        assert leads(a, b) == [False, True]
        with pytest.raises(NotLeading):
            a.elector.permit()


async def test_a_short_outage_is_no_reason_to_step_down() -> None:
    async with two_replicas() as (a, b):
        a.view.error = OSError("refused")
        await asyncio.sleep(6)
        a.view.error = None
        await asyncio.sleep(60)
        assert a.changes == [(0, True)]
        assert b.changes == []


async def test_the_permit_is_withdrawn_by_time_alone_even_if_the_event_loop_was_blocked() -> None:
    replica = Replica(Lease(), "a").start()
    await asyncio.sleep(0.1)
    replica.elector.permit()
    await replica.kill()
    replica.elector._expiry = None  # the timer that would have stepped down never got to run
    await asyncio.sleep(9.8)
    replica.elector.permit()
    await asyncio.sleep(0.2)
    with pytest.raises(NotLeading):
        replica.elector.permit()


async def test_clocks_of_other_machines_do_not_matter() -> None:
    lease = Lease()
    await lease.seen_by("x").create(
        {
            "holderIdentity": "x",
            "leaseDurationSeconds": 15,
            "renewTime": "1999-01-01T00:00:00.000000Z",
            "leaseTransitions": 7,
        }
    )
    replica = Replica(lease, "a").start()
    await asyncio.sleep(14.9)
    assert not replica.elector.leads(), "a renewTime long past by our clock says nothing"
    await asyncio.sleep(2)
    assert replica.elector.leads()
    assert lease.spec is not None
    assert lease.spec["leaseTransitions"] == 8
    await replica.kill()


async def test_two_that_start_together_do_not_both_lead() -> None:
    lease = Lease()
    replicas = [Replica(lease, name).start() for name in "abc"]
    for _ in range(100):
        await asyncio.sleep(0.37)
        assert sum(leads(*replicas)) <= 1
    assert sum(leads(*replicas)) == 1
    for replica in replicas:
        await replica.kill()


async def test_a_lease_taken_by_force_is_noticed_at_the_next_renewal() -> None:
    async with two_replicas() as (a, _):
        lease = a.view.lease
        await lease.seen_by("z").replace(str(lease.version), dict(lease.spec or {}, holderIdentity="z"))
        await asyncio.sleep(4.1)
        assert not a.elector.leads()


async def test_release_by_one_that_does_not_lead_touches_nothing() -> None:
    async with two_replicas() as (a, b):
        before = a.view.lease.version
        await b.elector.release()
        assert a.view.lease.version == before
        assert leads(a, b) == [True, False]


def test_lease_times_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="retry is 12 s"):
        LeaseSettings(retry=12)


async def test_who_lost_its_lease_in_an_outage_has_it_back_within_half_a_second_of_its_end() -> None:
    replica = Replica(Lease(), "a").start()
    await asyncio.sleep(1)
    replica.view.error = OSError("refused")
    await asyncio.sleep(33.3)
    assert not replica.elector.leads()
    replica.view.error = None
    await asyncio.sleep(0.51)
    assert replica.elector.leads()
    await replica.kill()


async def test_an_outage_costs_the_api_server_a_few_requests_a_second_and_less_from_those_who_wait() -> None:
    async with two_replicas() as (a, b):
        lease = a.view.lease
        a.view.error = OSError("refused")
        before = lease.requests
        await asyncio.sleep(10)
        assert lease.requests - before <= 10 * 4 + 5 + 1, "the follower looks as ever, and sees the lease grow old"
        b.view.error = OSError("refused")
        before = lease.requests
        await asyncio.sleep(100)
        assert lease.requests - before <= 100 * (4 + 4)


@pytest.mark.parametrize(("duration", "written"), [(2.5, 3), (4.0, 4)])
async def test_others_respect_a_lease_for_at_least_as_long_as_its_holder_counts_on(
    duration: float, written: int
) -> None:
    lease = Lease()
    elector = Elector(
        lease.seen_by("a"), LoopClock(), "a", LeaseSettings(duration, duration - 0.1, 0.4), lambda _: None
    )
    task = asyncio.create_task(elector.run())
    await asyncio.sleep(1)
    task.cancel()
    assert lease.spec is not None
    assert lease.spec["leaseDurationSeconds"] == written
