import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
import structlog

from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.decision import Action, Decision, Event, Needs, Order, SetFinalizer, SetWeights
from canaryrollout.domain.evidence import EvidenceRequest
from canaryrollout.domain.observation import Mesh, Observation, Unreadable, VirtualServiceState
from canaryrollout.engine.ports import Conflict, Later, NotLeading
from canaryrollout.engine.settings import EngineSettings
from tests.unit.engine.fakes import EPOCH, Decide, LoopClock, Running, World, engine, rollout

pytestmark = pytest.mark.looptime

KEY = "shop/reviews"
EVENT = Event("WeightSet", "10 %")


def weights(name: str) -> Action:
    return SetWeights(VirtualServiceState(name, 1, "", True, {}), ())


@pytest.fixture
def world() -> World:
    world = World()
    world.put(rollout(phase=Phase.PROGRESSING))
    return world


def script(*moves: Decision | Exception, seen: list[Observation] | None = None) -> Decide:
    """Decide these moves one after the other, then keep the status and ask for nothing."""
    left = list(moves)

    def decide(spec: object, status: object, observation: Observation, now: object) -> Decision:
        if seen is not None:
            seen.append(observation)
        move = left.pop(0) if left else Decision(status)  # type: ignore[arg-type]
        if isinstance(move, Exception):
            raise move
        return move

    return decide


def move(
    order: Order, *actions: Action, phase: Phase = Phase.PROGRESSING, events: tuple[Event, ...] = (EVENT,)
) -> Decision:
    status = rollout(phase=phase).status.model_copy(update={"message": "next"})
    return Decision(status, actions, order, events=events)


async def run(world: World, decide: Decide, seconds: float = 1.0, **kwargs: object) -> None:
    async with Running(engine(world, decide, **kwargs)) as subject:  # type: ignore[arg-type]
        for known in list(world.objects.values()):
            subject.seen(known)
        await asyncio.sleep(seconds)


async def test_status_first_writes_the_status_then_all_actions_at_once(world: World) -> None:
    world.delays = {"write_status": 1, "SetWeights/a": 1, "SetWeights/b": 1}
    await run(world, script(move(Order.STATUS_FIRST, weights("a"), weights("b"))), 5)
    assert [(what, when) for when, what, _ in world.calls] == [
        ("write_status", 0),
        ("SetWeights/a", 1),
        ("SetWeights/b", 1),
    ]
    assert world.events == [(KEY, "WeightSet")]


async def test_a_status_that_was_not_written_drops_the_actions(world: World) -> None:
    world.errors = {"write_status": [OSError("no route to host")]}
    await run(world, script(move(Order.STATUS_FIRST, weights("a"))), 0.1)
    assert world.order() == ["write_status"]
    assert world.events == []


async def test_mesh_first_reads_the_object_then_acts_and_writes_the_status_whatever_happened(world: World) -> None:
    world.errors = {"SetWeights/a": [OSError("refused")]}
    decide = script(move(Order.MESH_FIRST, weights("a"), weights("b"), phase=Phase.ROLLING_BACK))
    await run(world, decide, 0.1)
    assert world.order() == ["get", "SetWeights/a", "SetWeights/b", "write_status"]
    assert world.events == [(KEY, "WeightSet")]


async def test_traffic_is_taken_back_even_if_the_object_cannot_be_read(world: World) -> None:
    world.errors = {"get": [OSError("refused")]}
    await run(world, script(move(Order.MESH_FIRST, weights("a"))), 0.1)
    assert world.order() == ["get", "SetWeights/a", "write_status"]


async def test_actions_without_a_status_write_need_a_reading_and_are_given_up_without_it(world: World) -> None:
    same = Decision(world.objects[KEY].status, (weights("a"),))
    world.errors = {"get": [OSError("refused")]}
    await run(world, script(same, same), 0.3)
    assert world.order() == ["get", "get", "SetWeights/a"]


async def test_the_decision_is_made_anew_when_the_object_has_changed(world: World) -> None:
    seen: list[Observation] = []
    first = Decision(world.objects[KEY].status, (weights("stale"),), Order.MESH_FIRST)
    async with Running(engine(world, script(first, move(Order.MESH_FIRST, weights("new")), seen=seen))) as subject:
        known = world.objects[KEY]
        world.put(replace(known, identity=replace(known.identity, generation=2)))
        subject.seen(known)
        await asyncio.sleep(0.1)
    assert "SetWeights/stale" not in world.order()
    assert "SetWeights/new" in world.order()
    assert [observation.identity.generation for observation in seen[:2]] == [1, 2]


async def test_a_change_of_resource_version_alone_does_not_disturb(world: World) -> None:
    async with Running(engine(world, script(move(Order.MESH_FIRST, weights("a"))))) as subject:
        known = world.objects[KEY]
        world.put(known)
        subject.seen(known)
        await asyncio.sleep(0.1)
    assert world.order() == ["get", "SetWeights/a", "write_status"]
    assert len(world.statuses) == 1, "the status write is guarded by the version that was read last"


async def test_a_conflict_is_answered_at_once_with_a_fresh_reading(world: World) -> None:
    seen: list[Observation] = []
    world.errors = {"SetWeights/a": [Conflict("409"), Conflict("422")]}
    next_move = move(Order.STATUS_FIRST, weights("a"))
    await run(world, script(next_move, next_move, next_move, seen=seen), 0.01)
    assert world.at("SetWeights/a") == [0, 0, 0]
    assert world.at("get") == [0, 0]
    assert seen[2].failures == {}, "a conflict is not a failure"


async def test_endless_conflicts_slow_down_and_become_failures(world: World) -> None:
    seen: list[Observation] = []
    world.errors = {"SetWeights/a": [Conflict("409")] * 1000}
    await run(world, script(*[move(Order.STATUS_FIRST, weights("a"))] * 1000, seen=seen), 60)
    at = world.at("SetWeights/a")
    assert at[:6] == [0] * 6
    assert len(at) < 20
    assert seen[-1].failures["SetWeights/a"].message == "409"


async def test_a_rollback_is_tried_again_at_least_once_a_second_for_ever(world: World) -> None:
    world.errors = {"SetWeights/a": [OSError("refused")] * 1000}
    await run(world, script(*[move(Order.MESH_FIRST, weights("a"), weights("b"))] * 1000), 120)
    at = world.at("SetWeights/a")
    assert max(later - sooner for sooner, later in pairwise(at)) <= 1.0
    assert at[-1] > 118


async def test_other_failures_back_off_up_to_half_a_minute(world: World) -> None:
    world.errors = {"SetWeights/a": [OSError("refused")] * 1000}
    await run(world, script(*[move(Order.STATUS_FIRST, weights("a"))] * 1000), 600)
    at = world.at("SetWeights/a")
    gaps = [later - sooner for sooner, later in pairwise(at)]
    assert gaps[0] < 0.3
    assert all(15 <= gap <= 30.1 for gap in gaps[8:])


@pytest.mark.parametrize("what", ["SetWeights/a", "write_status"])
async def test_what_is_refused_with_a_wait_is_tried_again_after_that_wait(world: World, what: str) -> None:
    world.errors = {what: [Later("busy", 3)] * 1000}
    await run(world, script(*[move(Order.STATUS_FIRST, weights("a"))] * 1000), 120)
    gaps = [later - sooner for sooner, later in pairwise(world.at(what))]
    assert len(gaps) > 30
    assert all(3 <= gap <= 3.4 for gap in gaps)


async def test_a_rollback_does_not_wait_because_it_is_asked_to(world: World) -> None:
    world.errors = {"SetWeights/a": [Later("busy", 30)] * 1000}
    await run(world, script(*[move(Order.MESH_FIRST, weights("a"))] * 1000), 60)
    assert max(later - sooner for sooner, later in pairwise(world.at("SetWeights/a"))) <= 1.0


async def test_a_rollout_that_cannot_be_read_is_read_again_after_the_wait_that_was_asked_for(world: World) -> None:
    world.errors = {"get": [Later("busy", 3)] * 3}
    await run(world, script(move(Order.MESH_FIRST, SetFinalizer(False))), 60)
    gaps = [later - sooner for sooner, later in pairwise(world.at("get")[:3])]
    assert all(3 <= gap <= 3.4 for gap in gaps), world.at("get")


async def test_a_rollout_that_is_not_read_in_time_is_no_crash(world: World) -> None:
    world.delays = {"get": 3600}

    def decide(spec: object, status: CanaryRolloutStatus, observation: Observation, now: datetime) -> Decision:
        return Decision(status, (weights("a"),), Order.STATUS_FIRST)

    with structlog.testing.capture_logs() as logs:
        await run(world, decide, 60)
    assert len(world.at("get")) > 3
    assert world.at("SetWeights/a") == []
    assert {(line["event"], line.get("error")) for line in logs} == {("rollout unreadable", "no answer in time")}


@pytest.mark.parametrize("asked", ["by itself", "by others"])
async def test_a_write_that_is_refused_waits_while_the_rollout_is_looked_at_as_ever(world: World, asked: str) -> None:
    """Else a canary would not be judged while its raise is stuck, or each block of evidence would repeat the write."""
    looks: list[float] = []
    world.errors = {"SetWeights/a": [OSError("refused")] * 1000}

    def decide(spec: object, status: CanaryRolloutStatus, observation: Observation, now: datetime) -> Decision:
        looks.append(asyncio.get_running_loop().time())
        wake_at = now + timedelta(seconds=1) if asked == "by itself" else None
        return Decision(status, (weights("a"),), wake_at=wake_at)

    async with Running(engine(world, decide)) as subject:
        subject.seen(world.objects[KEY])
        for second in range(120):
            if asked == "by others":
                known = world.objects[KEY]
                subject.seen(world.put(replace(known, identity=replace(known.identity, command=f"retry/v2/{second}"))))
            await asyncio.sleep(1)
    at = world.at("SetWeights/a")
    gaps = [later - sooner for sooner, later in pairwise(at)]
    assert len(looks) >= 118
    assert len(at) <= 14
    assert all(15 <= gap <= 30.1 for gap in gaps[8:])


async def test_what_is_refused_after_it_was_done_starts_to_wait_anew(world: World) -> None:
    world.errors = {"SetWeights/a": [OSError("refused")] * 8}

    def decide(spec: object, status: CanaryRolloutStatus, observation: Observation, now: datetime) -> Decision:
        done = len(world.at("SetWeights/a")) == 9
        if done:
            world.errors["SetWeights/a"] = [OSError("refused")]
        return Decision(status, (weights("a"),), wake_at=now + timedelta(seconds=60 if done else 1))

    await run(world, decide, 300)
    at = world.at("SetWeights/a")
    assert at[10] - at[9] < 0.3


async def test_failures_are_shown_to_the_next_decision_until_they_succeed(world: World) -> None:
    seen: list[Observation] = []
    world.errors = {"SetWeights/a": [OSError("refused"), TimeoutError()]}
    await run(world, script(*[move(Order.MESH_FIRST, weights("a"))] * 3, seen=seen), 400)
    assert seen[0].failures == {}
    assert seen[1].failures["SetWeights/a"].count == 1
    assert "refused" in seen[1].failures["SetWeights/a"].message
    assert seen[2].failures["SetWeights/a"].count == 2
    assert seen[2].failures["SetWeights/a"].message == "timed out"
    assert seen[3].failures == {}


async def test_a_write_that_hangs_is_given_up(world: World) -> None:
    world.delays = {"SetWeights/a": 3600}
    await run(world, script(move(Order.MESH_FIRST, weights("a"), weights("b"))), 7)
    assert world.at("write_status") == [5.0]


async def test_nothing_is_written_when_nothing_changes(world: World) -> None:
    await run(world, script(), 200)
    assert world.calls == []


async def test_events_are_emitted_at_once_when_the_status_does_not_change(world: World) -> None:
    await run(world, script(Decision(world.objects[KEY].status, events=(EVENT,))))
    assert world.events == [(KEY, "WeightSet")]
    assert world.calls == []


async def test_a_move_that_prepares_the_next_is_followed_at_once(world: World) -> None:
    seen: list[Observation] = []
    status = world.objects[KEY].status
    await run(world, script(Decision(status, again=True), Decision(status, again=True), seen=seen), 0.01)
    assert len(seen) == 3


async def test_moves_that_never_end_are_slowed_down(world: World) -> None:
    seen: list[Observation] = []
    status = world.objects[KEY].status
    await run(world, script(*[Decision(status, again=True)] * 10_000, seen=seen), 60)
    assert 21 < len(seen) <= 82


async def test_a_decision_is_woken_when_it_asked_to(world: World) -> None:
    at: list[float] = []

    def decide(spec: object, status: object, observation: object, now: object) -> Decision:
        at.append(round(asyncio.get_running_loop().time(), 2))
        return Decision(status, wake_at=EPOCH + timedelta(seconds=[10, 17.5, 30][len(at) - 1]))  # type: ignore[arg-type]

    await run(world, decide, 29)
    assert at == [0, 10, 17.5]


async def test_a_time_that_has_passed_does_not_spin(world: World) -> None:
    seen: list[Observation] = []
    late = Decision(world.objects[KEY].status, wake_at=EPOCH - timedelta(hours=1))
    await run(world, script(*[late] * 1000, seen=seen), 1)
    assert len(seen) <= 11


async def test_evidence_that_comes_in_wakes_the_rollout(world: World) -> None:
    seen: list[Observation] = []
    request = EvidenceRequest("default", "shop", "reviews", "v1", "v2", "version", EPOCH, timedelta(seconds=10))
    async with Running(engine(world, script(seen=seen), needs=Needs(evidence=request))) as subject:
        subject.seen(world.objects[KEY])
        await asyncio.sleep(3)
        world.wakes[0]()
        world.wakes[0]()
        await asyncio.sleep(1)
    assert world.at("latest") == [0, 3]
    assert len(seen) == 2


async def test_mesh_and_endpoints_are_read_side_by_side(world: World) -> None:
    world.delays = {"observe": 1, "ready": 1}
    await run(world, script(), 3, needs=Needs(mesh=True, endpoints=True))
    assert world.at("observe") == [0]
    assert world.at("ready") == [0]


async def test_what_cannot_be_read_is_unreadable_and_decided_upon(world: World) -> None:
    seen: list[Observation] = []
    world.errors = {"observe": [OSError("refused")]}
    world.delays = {"ready": 3600}
    await run(world, script(seen=seen), 8, needs=Needs(mesh=True, endpoints=True))
    (first,) = seen
    assert isinstance(first.endpoints, Unreadable)
    assert "in time" in first.endpoints.message
    unreadable = Unreadable("OSError: refused")
    assert first.mesh == Mesh({"reviews": unreadable}, unreadable)


async def test_a_crash_is_confined_to_its_rollout_and_repeated_later(world: World) -> None:
    world.put(rollout("other", Phase.PROGRESSING))
    decided: list[str] = []

    def decide(spec: object, status: object, observation: Observation, now: object) -> Decision:
        decided.append(observation.identity.name)
        if observation.identity.name == "reviews":
            raise ZeroDivisionError
        return Decision(status, wake_at=EPOCH + timedelta(seconds=100))  # type: ignore[arg-type]

    await run(world, decide, 60, settings=EngineSettings(workers=1))
    assert decided.count("other") == 1
    assert 5 < decided.count("reviews") < 15


async def test_a_pass_that_hangs_ends_and_is_repeated(world: World) -> None:
    world.objects.clear()
    known = world.put(rollout())
    world.delays = {"get": 3600}
    async with Running(engine(world, script())) as subject:
        subject.seen(replace(known, identity=replace(known.identity, generation=2)))
        subject.seen(replace(known, resource_version="999"))
        await asyncio.sleep(20)
    assert len(world.at("get")) >= 3


async def test_an_object_that_cannot_be_read_as_a_rollout_is_decided_on_its_own(world: World) -> None:
    known = rollout(phase=None)
    world.put(replace(known, spec=None, problems=("spec.host is empty",)))
    await run(world, script())
    assert world.statuses[0].phase is Phase.BLOCKED
    assert world.statuses[0].message == "spec.host is empty"


async def test_a_status_that_cannot_be_read_is_never_written_over(world: World) -> None:
    problem = "status.phase: 'Baking' is not a phase"
    world.put(replace(rollout(phase=None), status_problems=(problem,)))
    await run(world, script(move(Order.MESH_FIRST, weights("reviews"))), 2000)
    assert world.statuses == []
    assert "SetWeights/reviews" not in world.order()
    assert world.events == [(KEY, "StatusUnreadable")], "said once, whatever the number of passes"


@pytest.mark.parametrize("error", [OSError("no route to host"), Conflict("422 Invalid")], ids=["error", "invalid"])
async def test_what_is_wrong_is_said_once_although_no_status_is_taken(world: World, error: Exception) -> None:
    world.errors = {"write_status": [error] * 20}
    await run(world, script(*[move(Order.STATUS_FIRST, phase=Phase.BLOCKED)] * 21), 2000)
    assert len(world.statuses) == 1, "it is tried again"
    assert world.events == [(KEY, "WeightSet")]


async def test_a_deleted_object_whose_status_cannot_be_read_is_let_go_after_a_while(world: World) -> None:
    known = rollout(phase=None, deleting=True, finalizer=True, deleted_at=EPOCH)
    world.put(replace(known, status_problems=("status.phase: 'Baking' is not a phase",)))
    await run(world, script(move(Order.MESH_FIRST, weights("reviews"))), 2000)
    (released,) = world.at("set_finalizer")
    assert 600 <= released < 601
    assert world.statuses == []
    assert world.events == [(KEY, "StatusUnreadable"), (KEY, "ReleasedUnfinished")]


async def test_a_readable_spec_with_problems_is_answered_unless_traffic_has_to_be_taken_back(world: World) -> None:
    seen: list[Observation] = []
    world.put(replace(rollout("idle", phase=None), problems=("spec.host lies elsewhere",)))
    world.put(replace(rollout("moving", Phase.PROGRESSING), problems=("spec.host lies elsewhere",)))
    world.put(replace(rollout("going", deleting=True), problems=("spec.host lies elsewhere",)))
    del world.objects[KEY]
    await run(world, script(seen=seen))
    assert {observation.identity.name for observation in seen} == {"moving", "going"}
    assert [status.message for status in world.statuses] == ["spec.host lies elsewhere"]


async def test_the_finalizer_and_the_status_are_written_one_after_the_other(world: World) -> None:
    await run(world, script(move(Order.STATUS_FIRST, SetFinalizer(present=True))), 0.1)
    assert world.order() == ["write_status", "set_finalizer"]
    assert world.objects[KEY].identity.finalizer
    world.calls.clear()
    await run(world, script(move(Order.MESH_FIRST, SetFinalizer(present=False), phase=Phase.ROLLING_BACK)), 0.1)
    assert world.order() == ["get", "set_finalizer", "write_status"]
    assert len(world.statuses) == 2, "the second write is guarded by what the first one returned"


async def test_an_object_that_is_gone_is_forgotten(world: World) -> None:
    settings = EngineSettings(workers=1, sweep=10**9)
    async with Running(engine(world, script(move(Order.STATUS_FIRST, weights("a"))), settings=settings)) as subject:
        known = world.objects.pop(KEY)
        subject.seen(known)
        await asyncio.sleep(1000)
        assert subject.phases() == {}
    assert world.order() == ["write_status"]


async def test_a_replica_that_lost_the_lease_on_the_way_writes_nothing_more(world: World) -> None:
    class Fading:
        permits = 1

        def leads(self) -> bool:
            return True

        def permit(self) -> None:
            if not self.permits:
                raise NotLeading
            self.permits -= 1

    await run(world, script(move(Order.STATUS_FIRST, weights("a"))), 100, leadership=Fading())
    assert world.order() == ["write_status"]


async def test_a_jump_of_the_wall_clock_is_shown_once(world: World) -> None:
    seen: list[Observation] = []
    clock = LoopClock()
    async with Running(engine(world, script(seen=seen), clock=clock)) as subject:
        subject.seen(world.objects[KEY])
        await asyncio.sleep(1)
        clock.step = timedelta(hours=1)
        for version in (1, 2):
            known = world.objects[KEY]
            subject.seen(world.put(replace(known, identity=replace(known.identity, command=f"retry/v2/{version}"))))
            await asyncio.sleep(1)
    assert [observation.clock_step for observation in seen] == [timedelta(), timedelta(hours=1), timedelta()]


async def test_what_could_not_be_stored_is_shown_to_the_next_decision(world: World) -> None:
    seen: list[Observation] = []
    world.errors = {"write_status": [RuntimeError("refused by a webhook")] * 2}
    decided = move(Order.STATUS_FIRST)
    await run(world, script(decided, decided, decided, seen=seen), 10)
    assert [observation.unstored for observation in seen] == [None, decided.status, decided.status]


@pytest.mark.parametrize("change", ["status", "leader"])
async def test_what_could_not_be_stored_is_forgotten_once_others_decide(world: World, change: str) -> None:
    seen: list[Observation] = []
    world.errors = {"write_status": [RuntimeError("refused by a webhook")]}
    async with Running(engine(world, script(move(Order.STATUS_FIRST), seen=seen))) as subject:
        subject.seen(world.objects[KEY])
        await asyncio.sleep(0.1)
        if change == "status":
            known = world.objects[KEY]
            world.put(replace(known, status=known.status.model_copy(update={"message": "theirs"})))
        else:
            subject.lead(False)
            subject.lead(True)
        await asyncio.sleep(10)
    assert [observation.unstored for observation in seen] == [None, None]


async def test_a_wait_ends_in_time_although_the_status_is_refused(world: World) -> None:
    world.errors = {"write_status": [RuntimeError("refused")] * 200}
    wait = replace(move(Order.STATUS_FIRST, weights("a")), wake_at=EPOCH)
    await run(world, script(*[wait] * 200), 300)
    attempts = world.at("write_status")
    assert 1 < attempts[-1] - attempts[-2] <= 5


@pytest.mark.parametrize(("what", "jumps"), [("SetWeights/a", [0, 1, 0]), ("write_status", [0, 1, 1])])
async def test_a_jump_of_the_clock_is_shown_until_the_decision_on_it_is_stored(
    world: World, what: str, jumps: list[int]
) -> None:
    seen: list[Observation] = []
    clock = LoopClock()
    world.errors = {what: [RuntimeError("refused by a webhook")]}
    moves = script(Decision(rollout(phase=Phase.PROGRESSING).status), move(Order.STATUS_FIRST, weights("a")), seen=seen)
    async with Running(engine(world, moves, clock=clock)) as subject:
        subject.seen(world.objects[KEY])
        await asyncio.sleep(1)
        clock.step = timedelta(hours=1)
        known = world.objects[KEY]
        subject.seen(world.put(replace(known, identity=replace(known.identity, command="retry/v2/1"))))
        await asyncio.sleep(5)
    assert [observation.clock_step for observation in seen] == [timedelta(hours=jump) for jump in jumps]
