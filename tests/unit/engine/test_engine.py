import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Change, ChangeKind, Phase
from canaryrollout.domain.decision import Decision, Event, Needs
from canaryrollout.domain.observation import Observation
from canaryrollout.engine.core import Core
from canaryrollout.engine.ports import NotLeading, Rollout
from canaryrollout.engine.settings import EngineSettings
from tests.unit.engine.fakes import EPOCH, SPEC, LoopClock, Running, World, core, engine, rollout

pytestmark = pytest.mark.looptime

MESH = Needs(mesh=True, endpoints=True)


def keep(spec: CanaryRolloutSpec, status: CanaryRolloutStatus, observation: Observation, now: datetime) -> Decision:
    return Decision(status)


def on_own_host(known: Rollout) -> Rollout:
    return replace(known, spec=SPEC.model_copy(update={"host": known.identity.name}))


class Switch:
    """Leadership that a test turns on and off."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def leads(self) -> bool:
        return self.on

    def permit(self) -> None:
        if not self.on:
            raise NotLeading


@pytest.fixture
def world() -> World:
    return World()


async def test_a_rollout_at_rest_costs_nothing_between_resyncs(world: World) -> None:
    known = world.put(rollout())
    settings = EngineSettings(workers=4, resync=300, sweep=10**9)
    async with Running(engine(world, keep, needs=MESH, settings=settings)) as subject:
        subject.seen(known)
        await asyncio.sleep(900)
        for _ in range(50):  # echoes of status writes, changes of labels
            subject.seen(world.put(known))
        await asyncio.sleep(900)
    assert len(world.at("get")) == len(world.at("observe")) == len(world.at("ready")) == 6
    gaps = [later - sooner for sooner, later in pairwise(world.at("observe"))]
    assert gaps == pytest.approx([300] * 5, abs=0.01)
    assert set(world.order()) == {"get", "observe", "ready"}


async def test_resyncs_of_many_rollouts_are_spread(world: World) -> None:
    known = [world.put(on_own_host(rollout(f"r{n}"))) for n in range(300)]
    async with Running(engine(world, keep, needs=MESH, settings=EngineSettings(workers=4, sweep=10**9))) as subject:
        for one in known:
            subject.seen(one)
        await asyncio.sleep(300)
    assert len(world.at("observe")) == 300
    for minute in range(5):
        assert 35 <= sum(60 * minute <= when < 60 * (minute + 1) for when in world.at("observe")) <= 85


async def test_a_follower_takes_in_and_does_nothing(world: World) -> None:
    leadership = Switch(on=False)
    async with Running(engine(world, keep, needs=MESH, leadership=leadership)) as subject:
        subject.seen(world.put(rollout("a", Phase.PROGRESSING)))
        subject.seen(world.put(rollout("b")))
        await asyncio.sleep(1000)
        assert world.calls == []
        assert subject.phases() == {"Progressing": 1, "Stable": 1}
        leadership.on = True
        subject.lead(True)
        await asyncio.sleep(1)
        assert world.at("observe")[:1] == [1000], "what is under way is taken up at once"
        assert "list" in world.order(), "a new leader makes sure of what exists"
        leadership.on = False
        subject.lead(False)
        world.calls.clear()
        await asyncio.sleep(1000)
        assert world.calls == []


async def test_what_a_watch_has_missed_is_found_by_the_list(world: World) -> None:
    change = Change(kind=ChangeKind.SUBSET, object="reviews", subset="v2", version="v2")
    a = rollout("a")
    a = world.put(replace(a, status=a.status.model_copy(update={"changes": (change,)})))
    async with Running(engine(world, keep, settings=EngineSettings(workers=4, sweep=120))) as subject:
        subject.seen(a)
        world.objects.clear()
        world.put(rollout("b", Phase.PROGRESSING))
        await asyncio.sleep(121)
        assert subject.phases() == {"Progressing": 1}
        assert world.events == [("shop/a", "LeftInPlace")]


async def test_a_wait_that_was_reckoned_by_a_wrong_clock_ends_when_the_clock_is_set(world: World) -> None:
    def wait(spec: CanaryRolloutSpec, status: CanaryRolloutStatus, observed: Observation, now: datetime) -> Decision:
        return Decision(status, wake_at=EPOCH + timedelta(seconds=10))

    clock = LoopClock()
    settings = EngineSettings(resync=10**9, sweep=10**9)
    async with Running(engine(world, wait, needs=MESH, settings=settings, clock=clock)) as subject:
        clock.step = timedelta(minutes=-5)
        await asyncio.sleep(2)
        subject.seen(world.put(rollout("a", Phase.PROGRESSING)))
        await asyncio.sleep(3)
        assert len(world.at("observe")) == 1
        clock.step = timedelta()
        await asyncio.sleep(5.5)
        assert [round(when) for when in world.at("observe")][:2] == [2, 5]


async def test_a_list_that_fails_makes_nobody_forget(world: World) -> None:
    world.errors = {"list": [OSError("refused")]}
    async with Running(engine(world, keep, settings=EngineSettings(workers=4, sweep=120))) as subject:
        subject.seen(world.put(rollout("a")))
        world.objects.clear()
        await asyncio.sleep(130)
        assert subject.phases() == {"Stable": 1}
        await asyncio.sleep(120)
        assert subject.phases() == {}


async def test_a_deleted_rollout_says_what_stays_and_is_forgotten(world: World) -> None:
    change = Change(kind=ChangeKind.DESTINATION, object="reviews", route="primary", subset="v2")
    async with Running(engine(world, keep)) as subject:
        known = world.put(rollout())
        subject.seen(known)
        world.objects.clear()
        last = replace(known, resource_version="999", status=known.status.model_copy(update={"changes": (change,)}))
        subject.vanished(last)
        await asyncio.sleep(1000)
        assert subject.phases() == {}
    assert world.events == [("shop/reviews", "LeftInPlace")]
    assert "get" not in world.order()


async def test_what_was_seen_deleted_is_not_taken_in_again_by_what_is_late(world: World) -> None:
    async with Running(engine(world, keep)) as subject:
        known = world.put(rollout(phase=Phase.ROLLING_BACK))
        subject.seen(known)
        subject.vanished(known)
        subject.seen(replace(known, resource_version="999"))
        assert subject.phases() == {}


async def test_a_deleted_rollout_that_leaves_nothing_says_nothing(world: World) -> None:
    async with Running(engine(world, keep)) as subject:
        subject.seen(world.put(rollout()))
        subject.vanished(rollout(version=999))
        await asyncio.sleep(1)
    assert world.events == []


@pytest.mark.parametrize(("namespaces", "at_once"), [(10, 4), (1, 3)])
async def test_no_more_rollouts_are_worked_on_at_once_than_there_are_workers_and_fewer_of_one_namespace(
    world: World, namespaces: int, at_once: int
) -> None:
    world.delays = {"observe": 1}
    async with Running(engine(world, keep, needs=Needs(mesh=True), settings=EngineSettings(workers=4))) as subject:
        for n in range(12):
            known = rollout(f"r{n}", Phase.PROGRESSING)
            subject.seen(world.put(replace(known, identity=replace(known.identity, namespace=f"n{n % namespaces}"))))
        await asyncio.sleep(10)
    assert world.most_busy == at_once
    assert world.at("observe") == [n // at_once for n in range(12)]


async def test_a_change_of_intent_overtakes_the_crowd(world: World) -> None:
    world.delays = {"observe": 1}
    calls: list[str] = []

    def note(spec: object, status: object, observation: Observation, now: object) -> Decision:
        calls.append(observation.identity.name)
        return Decision(status, wake_at=EPOCH + timedelta(seconds=20))  # type: ignore[arg-type]

    async with Running(engine(world, note, needs=Needs(mesh=True), settings=EngineSettings(workers=1))) as subject:
        known = [world.put(rollout(f"r{n}", Phase.PROGRESSING)) for n in range(10)]
        for one in known:
            subject.seen(one)
        await asyncio.sleep(19.5)
        calls.clear()
        await asyncio.sleep(1)
        subject.seen(world.put(replace(known[9], identity=replace(known[9].identity, generation=2))))
        await asyncio.sleep(3)
    assert calls[1] == "r9"


async def test_stopping_lets_passes_under_way_end(world: World) -> None:
    world.delays = {"observe": 5}
    decided: list[float] = []

    def note(spec: object, status: object, observation: object, now: object) -> Decision:
        decided.append(asyncio.get_running_loop().time())
        return Decision(status)  # type: ignore[arg-type]

    async with Running(engine(world, note, needs=Needs(mesh=True))) as subject:
        subject.seen(world.put(rollout(phase=Phase.PROGRESSING)))
        await asyncio.sleep(1)
    assert decided == [pytest.approx(5, abs=0.01)]
    assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.01)


async def test_stopping_lets_a_pass_that_ends_meanwhile_tell_what_it_did(world: World) -> None:
    def note(spec: CanaryRolloutSpec, status: CanaryRolloutStatus, observation: Observation, now: datetime) -> Decision:
        return Decision(status, events=(Event("StepPassed", "10 % passed"), Event("WeightRaised", "30 % now")))

    world.delays = {"observe": 5, "emit": 1}
    async with Running(engine(world, note, needs=Needs(mesh=True))) as subject:
        subject.seen(world.put(rollout(phase=Phase.PROGRESSING)))
        await asyncio.sleep(1)
    assert [reason for _, reason in world.events] == ["StepPassed", "WeightRaised"]


async def test_stopping_gives_up_on_passes_that_do_not_end(world: World) -> None:
    world.delays = {"get": 3600}
    settings = EngineSettings(workers=2, stop_grace=3, read_timeout=3600)
    async with Running(engine(world, keep, settings=settings)) as subject:
        subject.seen(world.put(rollout(deleting=True)))
        subject.seen(world.put(rollout(deleting=False)))
        await asyncio.sleep(1)
    assert asyncio.get_running_loop().time() == pytest.approx(4, abs=0.01)


async def test_it_says_when_it_is_stuck(world: World) -> None:
    world.delays = {"observe": 3600}
    settings = EngineSettings(workers=1, read_timeout=3600, pass_timeout=3600, stop_grace=0.1, stuck_after=120)
    async with Running(engine(world, keep, needs=Needs(mesh=True), settings=settings)) as subject:
        for n in range(2):
            subject.seen(world.put(rollout(f"r{n}", Phase.PROGRESSING)))
        await asyncio.sleep(119)
        assert subject.stuck() == ""
        await asyncio.sleep(2)
        assert subject.stuck() == "rollouts wait, and no worker has taken one for 121 s"


async def test_other_functions_decide_from_the_next_pass_on_and_at_once_where_something_is_under_way(
    world: World,
) -> None:
    world.delays = {"observe": 1}
    decided: list[tuple[str, str, float]] = []

    def by(who: str) -> Core:
        def decide(
            spec: CanaryRolloutSpec, status: CanaryRolloutStatus, observation: Observation, now: datetime
        ) -> Decision:
            decided.append((who, observation.identity.name, (now - EPOCH).total_seconds()))
            return Decision(status)

        return core(decide, Needs(mesh=True))

    settings = EngineSettings(workers=4, resync=10**6, sweep=10**9)
    async with Running(engine(world, keep, settings=settings)) as subject:
        subject.use(by("old"))
        subject.seen(world.put(rollout("moving", Phase.PROGRESSING)))
        subject.seen(world.put(on_own_host(rollout("resting"))))
        await asyncio.sleep(0.5)
        subject.use(by("new"))
        await asyncio.sleep(100)
    assert decided == [("old", "moving", 1), ("new", "moving", 2)]


async def test_a_follower_that_is_given_other_functions_does_nothing(world: World) -> None:
    async with Running(engine(world, keep, needs=MESH, leadership=Switch(on=False))) as subject:
        subject.seen(world.put(rollout("a", Phase.PROGRESSING)))
        subject.use(core(keep, MESH))
        await asyncio.sleep(100)
    assert world.calls == []
