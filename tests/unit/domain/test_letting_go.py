from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, ChangeKind, Phase
from canaryrollout.domain.decision import Decision, Order, SetFinalizer
from canaryrollout.domain.draft import Draft, situation
from canaryrollout.domain.letting_go import bounded, decide_unread
from canaryrollout.domain.observation import Identity, Observation
from canaryrollout.domain.settings import DomainSettings
from tests.world import NAMESPACE, SETTINGS, START, World, spec

LIMIT = SETTINGS.release.total_seconds()
PROBLEMS = ("status.phase is 'Baking': must be one of Stable",)


def at_ten_percent() -> World:
    world = World(rollout=spec(hold="30m", progressDeadline="2h")).run(60, lambda world: world.share("v2") == 10)
    assert world.share("v2") == 10
    return world


def test_an_object_whose_traffic_has_nowhere_to_go_is_let_go_after_a_while_and_says_what_it_leaves() -> None:
    world = at_ten_percent()
    world.ready = {"v1": 0, "v2": 2}
    world.deleting = True
    began = world.now
    world.run(LIMIT - 10)
    assert world.finalizer, "there is hope"
    assert (world.phase, world.reason) == (Phase.BLOCKED, "StableGone")
    assert world.state.deadline == world.state.release_at == began + SETTINGS.release
    world.run(20)
    assert not world.finalizer
    assert world.share("v2") == 10, "the version that answers keeps its requests"
    assert world.events.count("ReleasedUnfinished") == 1
    told = world.state.history[-1]
    assert told.message.startswith("the traffic could not be given back within 10m (v2 should be taken back")
    assert "v2 10" in told.message
    assert {change.kind for change in world.state.changes} >= {ChangeKind.SUBSET, ChangeKind.DESTINATION}


def test_writes_that_are_always_refused_keep_an_object_no_longer_than_that() -> None:
    world = at_ten_percent()
    world.refusing = frozenset({"reviews"})
    world.deleting = True
    world.run(LIMIT - 10)
    assert world.finalizer
    world.run(60)
    assert not world.finalizer


def test_the_wait_begins_when_an_operator_first_sees_the_deletion() -> None:
    """Were it counted from the deletion, an operator that was away for longer would give nothing back."""
    world = at_ten_percent()
    world.deleting = True
    world.now += timedelta(days=1)
    world.run(60)
    assert not world.finalizer
    assert world.share("v2") == 0
    assert "ReleasedUnfinished" not in world.events


def test_a_clock_that_is_set_back_makes_the_wait_no_longer() -> None:
    world = at_ten_percent()
    world.ready = {"v1": 0, "v2": 2}
    world.deleting = True
    world.run(30)
    world.now -= timedelta(hours=1)
    world.step()
    assert world.state.release_at == world.now + SETTINGS.release


def unread(minutes: float, *, deleting: bool = True, finalizer: bool = True, readable: bool = True) -> Decision:
    """The answer to a status that cannot be read, so long after the deletion."""
    identity = Identity(NAMESPACE, "reviews", "uid-1", 3, START, deleting, finalizer, deleted_at=START)
    wanted = spec() if readable else None
    return decide_unread(wanted, identity, PROBLEMS, START + timedelta(minutes=minutes), DomainSettings())


def test_an_unreadable_status_is_left_alone_until_the_object_is_deleted() -> None:
    (event,) = unread(60, deleting=False).events
    assert (event.reason, event.message) == (
        "StatusUnreadable",
        f"status cannot be read, so nothing is done: {PROBLEMS[0]}",
    )
    assert not unread(60, deleting=False).actions


def test_an_unreadable_status_keeps_a_deleted_object_for_a_while_that_is_named() -> None:
    decision = unread(9)
    assert not decision.actions
    assert decision.wake_at == START + timedelta(minutes=10)
    (event,) = decision.events
    assert "let go as it is at 12:10:00 UTC" in event.message


@pytest.mark.parametrize(
    ("readable", "where"),
    [
        (True, "in VirtualService reviews and DestinationRule reviews, which stay as they are"),
        (False, "in the VirtualServices and DestinationRules of namespace shop, which stay as they are"),
    ],
)
def test_an_unreadable_status_does_not_keep_a_deleted_object_for_ever(readable: bool, where: str) -> None:
    decision = unread(10, readable=readable)
    assert decision.actions == (SetFinalizer(False),)
    (event,) = decision.events
    assert event.warning
    assert event.reason == "ReleasedUnfinished"
    assert event.message.startswith("status could not be read for 10m, and the object goes; look at weights, ")
    assert where in event.message


def test_what_another_left_without_our_finalizer_is_not_touched() -> None:
    decision = unread(60, finalizer=False)
    assert (decision.actions, decision.events) == ((), ())


class TestDue:
    """Until when an object is kept."""

    LATEST = START + SETTINGS.release

    def decided(self, *, given: Decision | None = None, **seen: Any) -> Decision:
        status = CanaryRolloutStatus(stable_version="v1", release_at=seen.pop("release_at", None))
        who = Identity(NAMESPACE, "reviews", "uid-1", 1, START, deleting=True, finalizer=True)
        draft = Draft(situation(spec(), status, Observation(who, **seen), START, SETTINGS))
        return bounded(draft, lambda draft: given or Decision(draft.status))

    @pytest.mark.parametrize(
        ("seen", "due"),
        [
            ({}, 600),
            ({"release_at": 120}, 120),
            ({"unstored": 60}, 60),
            ({"release_at": 120, "unstored": 60}, 120),
            ({"release_at": 120, "clock_step": 4}, 120),
            ({"release_at": 120, "clock_step": 5}, 125),
            ({"release_at": 120, "clock_step": 3600}, 600),
            ({"release_at": 120, "clock_step": -60}, 120),
            ({"release_at": 3600}, 600),
        ],
    )
    def test_it_is_counted_once_and_neither_a_clock_nor_a_refused_status_makes_it_longer(
        self, seen: dict[str, int], due: int
    ) -> None:
        spelled: dict[str, Any] = {name: timedelta(seconds=value) for name, value in seen.items()}
        if "release_at" in seen:
            spelled["release_at"] += START
        if "unstored" in seen:
            spelled["unstored"] = CanaryRolloutStatus(release_at=START + spelled["unstored"])
        decision = self.decided(**spelled)
        expected = START + timedelta(seconds=due)
        assert (decision.status.release_at, decision.status.deadline, decision.wake_at) == (expected,) * 3

    @pytest.mark.parametrize(("wake", "looked"), [(None, 600), (5, 5), (3600, 600)])
    def test_it_is_looked_at_again_then_at_the_latest(self, wake: int | None, looked: int) -> None:
        wake_at = None if wake is None else START + timedelta(seconds=wake)
        decision = self.decided(given=Decision(CanaryRolloutStatus(stable_version="v1"), wake_at=wake_at))
        assert decision.wake_at == START + timedelta(seconds=looked)

    @pytest.mark.parametrize(
        ("seen", "order"),
        [({}, Order.STATUS_FIRST), ({"unstored": CanaryRolloutStatus()}, Order.MESH_FIRST)],
    )
    def test_what_stays_is_on_record_first_unless_it_may_never_be(self, seen: dict[str, Any], order: Order) -> None:
        assert self.decided(release_at=START, **seen).order is order

    def test_it_goes_at_that_moment(self) -> None:
        assert self.decided(release_at=START).actions == (SetFinalizer(False),)
        assert not self.decided(release_at=START + timedelta(milliseconds=1)).actions


def test_both_what_waits_and_what_was_left_are_warnings() -> None:
    for decision in (unread(60, deleting=False), unread(9), unread(10)):
        assert [event.warning for event in decision.events] == [True]


def test_a_deletion_without_a_time_is_one_of_now() -> None:
    identity = Identity(NAMESPACE, "reviews", "uid-1", 3, START, deleting=True, finalizer=True)
    decision = decide_unread(spec(), identity, PROBLEMS, START, SETTINGS)
    assert (decision.actions, decision.wake_at) == ((), START + SETTINGS.release)
