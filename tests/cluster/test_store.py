"""Reading and writing CanaryRollouts on a real API server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from canaryrollout.adapters.rollouts import FINALIZER
from canaryrollout.api.status import CanaryRolloutStatus, CommandRecord, HistoryEntry, Phase
from canaryrollout.domain.decision import Event
from canaryrollout.engine.ports import Conflict, Gone, NotLeading
from lab.mesh import Lab
from tests.cluster.shop import Shop, body, new_shop

pytestmark = pytest.mark.cluster

NOW = datetime(2026, 1, 1, 12, 0, 0, 250_000, UTC)
STATUS = CanaryRolloutStatus(
    observed_generation=1,
    phase=Phase.PROGRESSING,
    message="10 % of the traffic",
    stable_version="v1",
    canary_version="v2",
    weight=10,
    history=(HistoryEntry(time=NOW, reason="WeightSet", version="v2", weight=10),),
)


def permitted() -> None:
    """This replica leads."""


def fenced() -> None:
    raise NotLeading


async def test_a_rollout_is_read_as_the_user_wrote_it(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        document = body(paused=True)
        document["metadata"]["annotations"] = {"canaryrollout.io/command": "approve/v2/1"}
        await shop.create(document)
        found = await shop.store.get(f"{shop.namespace}/reviews")
        assert found is not None
        identity = found.identity
        assert (identity.key, identity.generation, identity.command) == (f"{shop.namespace}/reviews", 1, "approve/v2/1")
        assert not identity.finalizer
        assert not identity.deleting
        assert abs(datetime.now(UTC) - identity.created_at) < timedelta(minutes=1)
        assert found.spec is not None
        assert (found.spec.version, found.spec.paused, found.problems) == ("v2", True, ())
        assert found.status == CanaryRolloutStatus()
        assert await shop.store.get(f"{shop.namespace}/ratings") is None


async def test_a_status_comes_back_as_it_was_written_and_leaves_the_generation_alone(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        written = await shop.store.write_status(known, STATUS, permitted)
        assert written.status == STATUS
        assert written.identity == known.identity
        assert await shop.store.get(known.identity.key) == written


async def test_a_status_write_drops_what_is_no_longer_true(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        answered = CommandRecord(command="retry/v2/1", handled_at=NOW, result="done")
        known = await shop.store.write_status(known, STATUS.model_copy(update={"last_command": answered}), permitted)
        await shop.store.write_status(known, CanaryRolloutStatus(phase=Phase.STABLE), permitted)
        assert (await shop.read())["status"] == {"phase": "Stable"}


async def test_a_status_is_not_written_over_somebody_elses_change(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        await shop.merge({"spec": {"version": "v3"}})
        with pytest.raises(Conflict):
            await shop.store.write_status(known, STATUS, permitted)
        assert "status" not in await shop.read()


async def test_a_replica_that_does_not_lead_sends_nothing(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        shop.requests.clear()
        with pytest.raises(NotLeading):
            await shop.store.write_status(known, STATUS, fenced)
        with pytest.raises(NotLeading):
            await shop.store.set_finalizer(known, True, fenced)
        assert [request for request in shop.requests if request.verb != "get"] == []


async def test_writing_to_a_rollout_that_is_gone_says_so(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        apiserver.kubectl("delete", "canaryrollout", "reviews", "-n", shop.namespace)
        with pytest.raises(Gone):
            await shop.store.write_status(known, STATUS, permitted)
        with pytest.raises(Gone):
            await shop.store.set_finalizer(known, True, permitted)


async def test_our_finalizer_goes_beside_others_and_holds_the_object(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        document = body()
        document["metadata"]["finalizers"] = ["example.com/first"]
        known = await shop.create(document)
        known = await shop.store.set_finalizer(known, True, permitted)
        assert known.identity.finalizer
        assert (await shop.read())["metadata"]["finalizers"] == ["example.com/first", FINALIZER]
        assert await shop.store.set_finalizer(known, True, permitted) == known, "it is there already"
        apiserver.kubectl("delete", "canaryrollout", "reviews", "-n", shop.namespace, "--wait=false")
        found = await shop.store.get(known.identity.key)
        assert found is not None
        assert found.identity.deleting
        released = await shop.store.set_finalizer(found, False, permitted)
        assert not released.identity.finalizer
        assert (await shop.read())["metadata"]["finalizers"] == ["example.com/first"]
        await shop.merge({"metadata": {"finalizers": None}})
        assert await shop.store.get(known.identity.key) is None


async def test_the_only_finalizer_can_be_put_on_and_taken_off(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.store.set_finalizer(await shop.create(body()), True, permitted)
        assert (await shop.read())["metadata"]["finalizers"] == [FINALIZER]
        known = await shop.store.set_finalizer(known, False, permitted)
        assert "finalizers" not in (await shop.read())["metadata"]


async def test_a_finalizer_is_not_written_over_somebody_elses_change(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        await shop.merge({"metadata": {"finalizers": ["example.com/late"]}})
        with pytest.raises(Conflict):
            await shop.store.set_finalizer(known, True, permitted)
        assert (await shop.read())["metadata"]["finalizers"] == ["example.com/late"]


async def test_all_rollouts_in_scope_are_listed_and_no_others(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop, new_shop(apiserver) as other:
        for n in range(3):
            await shop.create(body(f"r{n}"))
        await other.create(body("elsewhere"))
        assert {known.identity.name async for known in shop.store.list()} == {"r0", "r1", "r2"}


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


async def test_an_event_that_repeats_is_counted_up_and_one_that_comes_back_later_is_new(apiserver: Lab) -> None:
    clock = Hands()
    async with new_shop(apiserver, clock) as shop:
        known = await shop.create(body())
        for _ in range(3):
            await shop.store.emit(known, Event("GateFailed", "errors: 5 % of 200", warning=True), permitted)
            clock.time += timedelta(minutes=1)
        await shop.store.emit(known, Event("GateFailed", "errors: 6 % of 250", warning=True), permitted)
        first, second = sorted(await shop.events(), key=lambda event: event["message"])
        assert (first["count"], second["count"]) == (3, 1)
        assert (first["type"], first["reason"]) == ("Warning", "GateFailed")
        assert first["firstTimestamp"] == "2026-01-01T12:00:00Z"
        assert first["lastTimestamp"] == "2026-01-01T12:02:00Z"
        clock.time += timedelta(minutes=20)
        await shop.store.emit(known, Event("GateFailed", "errors: 5 % of 200", warning=True), permitted)
        assert len(await shop.events()) == 3


async def test_who_causes_events_without_end_gets_some_and_takes_none_from_others(apiserver: Lab) -> None:
    clock = Hands()
    async with new_shop(apiserver, clock) as shop:
        with capture_logs() as logged:
            await _crowd(shop, clock)
    assert [entry["event"] for entry in logged].count("too many events") == 2


async def _crowd(shop: Shop, clock: Hands) -> None:
    busy, quiet = await shop.create(body()), await shop.create(body("ratings"))
    for turn in range(300):
        await shop.store.emit(busy, Event("CommandRefused", f"no command: {turn}", warning=True), permitted)
    clock.time += timedelta(seconds=12)
    for turn in range(300, 310):
        await shop.store.emit(busy, Event("CommandRefused", f"no command: {turn}", warning=True), permitted)
    await shop.store.emit(quiet, Event("Promoted", "v2 serves"), permitted)
    told = [event["message"] for event in await shop.events() if event["involvedObject"]["name"] == "reviews"]
    assert sorted(told, key=lambda message: int(message.rpartition(" ")[2])) == [
        f"no command: {turn}" for turn in (*range(100), 300, 301)
    ]
    assert len(await shop.events()) == 103


async def test_an_event_is_shown_with_its_rollout(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        await shop.store.emit(known, Event("Promoted", "v2 serves"), permitted)
        shown = apiserver.kubectl("describe", "canaryrollout", "reviews", "-n", shop.namespace)
        assert "Promoted" in shown
        assert "v2 serves" in shown


async def test_an_event_that_cannot_be_created_is_no_reason_to_fail(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        nowhere = replace(known, identity=replace(known.identity, namespace="no-such-namespace"))
        await shop.store.emit(nowhere, Event("Promoted", "v2 serves"), permitted)
        assert await shop.events() == []


async def test_who_leads_no_more_writes_nothing_and_tells_nothing(apiserver: Lab) -> None:
    def former() -> None:
        raise NotLeading("this replica does not hold the lease")

    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        for write in (shop.store.write_status(known, STATUS, former), shop.store.set_finalizer(known, True, former)):
            with pytest.raises(NotLeading):
                await write
        assert (await shop.read())["metadata"]["resourceVersion"] == known.resource_version
        await shop.store.emit(known, Event("Promoted", "v2 serves"), former)
        assert await shop.events() == []
        for permit in (permitted, former):
            await shop.store.emit(known, Event("Promoted", "v2 serves"), permit)
        assert [event["count"] for event in await shop.events()] == [1]


async def test_a_long_message_is_cut_to_what_the_api_server_takes(apiserver: Lab) -> None:
    async with new_shop(apiserver) as shop:
        known = await shop.create(body())
        await shop.store.emit(known, Event("Blocked", "x" * 5000, warning=True), permitted)
        (event,) = await shop.events()
        assert len(event["message"]) == 1024
        assert event["message"].endswith("...")
