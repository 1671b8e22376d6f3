"""Electing a leader on a real API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from canaryrollout.adapters.clock import SystemClock
from canaryrollout.adapters.lease import LEASES, KubernetesLease
from canaryrollout.engine.elector import Elector
from canaryrollout.engine.ports import Conflict
from canaryrollout.engine.settings import LeaseSettings
from lab.mesh import Lab
from tests.cluster.shop import new_shop

pytestmark = pytest.mark.cluster

SPEC = {
    "holderIdentity": "a",
    "leaseDurationSeconds": 15,
    "acquireTime": "2026-01-01T12:00:00.000250Z",
    "renewTime": "2026-01-01T12:00:00.000250Z",
    "leaseTransitions": 0,
}


async def test_a_lease_is_created_read_and_replaced_by_compare_and_swap(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        a, b = (KubernetesLease(shop.client, shop.namespace, "leader") for _ in range(2))
        assert await a.read() is None
        first = await a.create(SPEC)
        with pytest.raises(Conflict):
            await b.create(SPEC)
        assert await b.read() == (first, SPEC)
        second = await b.replace(first, SPEC | {"holderIdentity": "b"})
        with pytest.raises(Conflict):
            await a.replace(first, SPEC)
        assert await a.read() == (second, SPEC | {"holderIdentity": "b"})


async def test_what_others_wrote_on_the_lease_stays(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        lease = KubernetesLease(shop.client, shop.namespace, "leader")
        await lease.create(SPEC)
        apiserver.kubectl("label", "lease", "leader", "-n", shop.namespace, "team=delivery")
        found = await lease.read()
        assert found is not None
        await lease.replace(found[0], SPEC | {"leaseTransitions": 1})
        body = await shop.client.get(LEASES, shop.namespace, "leader")
        assert body is not None
        assert body["metadata"]["labels"] == {"team": "delivery"}
        assert body["spec"]["leaseTransitions"] == 1


async def eventually(holds: Callable[[], bool], within: float) -> float:
    """Return after how many seconds a condition held."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < within, "it did not come about in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def test_one_of_two_leads_and_the_other_takes_over(apiserver: Lab) -> None:
    times = LeaseSettings(duration=30, renew_deadline=20, retry=1)
    async with new_shop(apiserver) as shop:
        electors = [
            Elector(KubernetesLease(shop.client, shop.namespace, "leader"), SystemClock(), name, times, lambda _: None)
            for name in ("a", "b")
        ]
        tasks = [asyncio.create_task(elector.run()) for elector in electors]
        try:
            await eventually(lambda: any(elector.leads() for elector in electors), 20)
            await asyncio.sleep(2)  # the other one has looked again
            assert sum(elector.leads() for elector in electors) == 1
            leader, follower = sorted(electors, key=lambda elector: not elector.leads())
            tasks[electors.index(leader)].cancel()
            await leader.release()
            await eventually(follower.leads, 10)  # long before it would expire
            found = await KubernetesLease(shop.client, shop.namespace, "leader").read()
            assert found is not None
            assert found[1]["leaseTransitions"] == 1
            renewed = datetime.fromisoformat(found[1]["renewTime"])
            assert abs(datetime.now(UTC) - renewed) < timedelta(seconds=5)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
