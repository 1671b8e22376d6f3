"""Weights that somebody else changes: how long a change is respected, how often it is answered, and what comes then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Contest, Phase
from tests.unit.domain.watchedworld import on_two, set_to
from tests.world import OURS, SETTINGS, World, destination, destination_rule, spec, virtual_service

INTERVAL = timedelta(seconds=10)


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def edit(world: World, weight: int, manager: str = "argocd") -> None:
    def change(mesh: dict[str, Any]) -> None:
        route = mesh["http"][0]["route"]
        route[0]["weight"], route[1]["weight"] = 100 - weight, weight

    world.edit("reviews", change, manager)
    world.step()


def contest(world: World) -> Contest:
    found = world.state.contest
    assert found is not None
    return found


def answered(world: World, weight: int, *, of: str = "v2", stable: int | None = None) -> timedelta:
    """Return how long it takes until the weights are as recorded."""
    since = world.now
    world.run(600, until=lambda w: w.share(of) == weight and stable in (None, w.share("v1")))
    return world.now - since


def test_every_change_is_respected_twice_as_long_as_the_one_before() -> None:
    world = at(30, rollout=spec(hold="5m"))
    waits = []
    for _ in range(3):
        edit(world, 0)
        waits.append(answered(world, 30))
        world.run(100)  # longer than any wait: what counts is when the weights were changed
    assert [round(wait / INTERVAL) for wait in waits] == [1, 2, 4]


def test_the_fourth_change_is_given_way_to_at_once() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(3):
        edit(world, 5)
        answered(world, 30)
    edit(world, 5)
    world.step()
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "WeightContested", 0)
    assert "argocd keeps changing the weights that should be v1 70 / v2 30" in world.state.message
    assert world.state.weight == 30


def test_pausing_a_canary_that_was_given_up_gives_it_no_traffic_until_the_pause_is_lifted() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(4):
        edit(world, 5)
        answered(world, 30) if contest(world).given_up_generation is None else world.run(5)
    assert "then edit the rollout's spec or give the retry command" in world.state.message
    world.apply(paused=True)
    world.run(120)
    assert (world.reason, world.share("v2")) == ("WeightContested", 0)
    assert "then set spec.paused to false or give the retry command" in world.state.message
    world.apply(paused=False)
    world.run(60, until=lambda w: w.share("v2") == 30)
    assert world.share("v2") == 30


@pytest.mark.parametrize("taken_back", [False, True])
def test_a_pause_holds_nothing_up_at_rest(taken_back: bool) -> None:
    world = at(30) if taken_back else World()
    if taken_back:
        world.command = "abort/v2/1"
    world.run()
    serving, gone = ("v1", "v2") if taken_back else ("v2", "v1")
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]
    while world.reason != "WeightContested":
        world.edit("reviews", set_to((gone, 100)))
        world.run(300, until=lambda w: w.share(serving) == 100 or w.reason == "WeightContested")
    assert "then edit the rollout's spec or give the retry command" in world.state.message
    world.apply(paused=True)
    world.step()
    assert contest(world).given_up_generation is None
    world.run(60)
    assert world.share(serving) == 100


def test_weights_that_are_put_right_by_others_end_the_wait() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 0)
    world.run(5)
    edit(world, 30)
    world.step()
    assert contest(world).changed_at is None
    world.run(30)
    edit(world, 0)
    assert timedelta(seconds=10) <= answered(world, 30) < timedelta(seconds=12)


def test_an_answer_that_is_not_accepted_is_given_again_and_counts_once() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 0)
    world.refusing = frozenset({"reviews"})
    world.run(120)
    assert contest(world).count == 1
    assert world.phase is not Phase.BLOCKED
    world.refusing = frozenset()
    assert answered(world, 30) < INTERVAL


def test_weights_at_0_from_giving_way_are_no_rollback_when_the_answer_after_a_retry_is_cut_short() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(4):
        edit(world, 5)
        answered(world, 30) if contest(world).given_up_generation is None else world.run(5)
    assert world.reason == "WeightContested"
    world.command = "retry/v2/1"
    status_and_answer = len(world.writes) + 2
    world.crash_at = status_and_answer
    world.run(300, until=lambda w: w.share("v2") == 30)
    assert len(world.writes) >= status_and_answer
    assert (world.share("v2"), world.phase) == (30, Phase.PROGRESSING)
    assert "RollbackResumed" not in world.events


def test_a_version_that_was_taken_back_is_lowered_at_once_whoever_raises_it() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.run()
    assert world.phase is Phase.ROLLED_BACK
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]

    def raise_again(mesh: dict[str, Any]) -> None:
        mesh["http"][0]["route"] = [destination("v1", 80), destination("v2", 20)]

    for _ in range(4):
        world.edit("reviews", raise_again)
        world.step()
        world.step()
        assert world.share("v2") == 0
    assert [world.events.count(reason) for reason in ("WeightReasserted", "WeightContested")] == [3, 1]
    world.edit("reviews", raise_again)
    world.step()
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "WeightContested", 20)
    record = world.state.rollout
    assert record is not None
    assert record.awaiting_since is None
    world.now += timedelta(seconds=90)
    world.step()
    assert world.share("v2") == 0


def test_a_virtual_service_that_lost_the_host_blocks_until_it_has_it_again() -> None:
    world = at(30, rollout=spec(hold="5m"))
    world.edit("reviews", lambda mesh: mesh.update(hosts=["ratings"]))
    world.step()
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "HostsChanged", 30)
    assert "spec.hosts of VirtualService reviews is without reviews now" in world.state.message
    world.edit("reviews", lambda mesh: mesh.update(hosts=["*.svc.cluster.local"]))
    world.run(60)
    assert (world.phase, world.share("v2")) == (Phase.PROGRESSING, 30)


def test_a_virtual_service_without_the_host_is_none_that_lost_it() -> None:
    world = World()
    world.edit("reviews", lambda mesh: mesh.update(hosts=["shop.example.com"], gateways=["shop"]))
    assert world.run().state.stable_version == "v2"


def test_who_gave_way_waits_for_a_person_without_a_deadline_and_writes_nothing_meanwhile() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(4):
        edit(world, 5)
        answered(world, 30) if contest(world).given_up_generation is None else world.run(5)
    assert world.reason == "WeightContested"
    before = world.writes.count("status")
    world.run(3600)
    assert (world.reason, world.writes.count("status")) == ("WeightContested", before)


def test_weights_that_leave_the_canarys_share_are_respected_as_long_as_others() -> None:
    world = at(30, rollout=spec(hold="5m"), rule=destination_rule("v1", "v9"))
    world.edit("reviews", set_to(("v9", 70), ("v2", 30)))
    world.step()
    assert INTERVAL <= answered(world, 30, of="v2", stable=70) < INTERVAL + timedelta(seconds=2)


def test_a_stable_version_under_another_label_is_no_rollback_that_was_under_way() -> None:
    world = at(30, rollout=spec(hold="5m"))
    assert world.rule is not None
    world.rule["spec"]["subsets"][0]["labels"] = {"version": "v9"}
    world.run(5)
    assert "RollbackResumed" not in world.events
    assert world.phase is not Phase.ROLLING_BACK


def test_plain_traffic_at_rest_is_respected_like_any_other_change() -> None:
    world = World(rollout=spec(version="v1")).run()
    world.edit("reviews", set_to(("v1", 60), (None, 40)))
    world.step()
    assert INTERVAL <= answered(world, 100, of="v1") < INTERVAL + timedelta(seconds=2)


def test_traffic_is_moved_from_a_dead_version_to_one_that_answers() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 5)
    world.ready = {"v2": 2}
    assert answered(world, 30) < INTERVAL + timedelta(seconds=2)


def test_an_answer_that_is_given_again_is_told_once() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 0)
    world.refusing = frozenset({"reviews"})
    world.run(60)
    assert world.events.count("WeightReasserted") == 1


def test_who_gives_way_leaves_traffic_where_it_is_answered() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(3):
        edit(world, 5)
        answered(world, 30)
    world.ready = {"v2": 2}
    edit(world, 5)
    world.run(600)
    assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "WeightContested", 5)


def test_who_gave_way_at_rest_goes_on_at_the_word_of_a_person_for_the_version_that_is_wanted() -> None:
    world = World(rollout=spec(version="v1")).run()
    for _ in range(4):
        world.edit("reviews", set_to(("v1", 60), (None, 40)))
        world.run(100)
    assert world.reason == "WeightContested"
    world.run(300)
    world.command = "retry/v9/1"
    world.run(30)
    assert (world.reason, world.share("v1")) == ("WeightContested", 60)
    world.command = "retry/v1/2"
    world.run(30)
    assert (world.phase, world.share("v1")) == (Phase.STABLE, 100)


def test_a_contest_is_forgotten_after_a_hold_and_the_longest_pause() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 0)
    answered(world, 30)
    until = contest(world).not_before + timedelta(minutes=5) + 8 * INTERVAL
    world.now = until - timedelta(milliseconds=1)
    world.step()
    assert world.state.contest is not None
    world.now = until
    world.step()
    assert world.state.contest is None


def test_the_mesh_is_looked_at_while_a_change_is_respected() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 0)
    wake_at = world.step().wake_at
    assert wake_at is not None
    assert wake_at - world.now <= timedelta(seconds=5)


def test_who_goes_on_after_giving_way_contests_as_anew_once_the_weights_are_right() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(4):
        edit(world, 5)
        world.run(90)
    assert world.reason == "WeightContested"
    world.command = "retry/v2/1"
    world.step()
    assert (contest(world).resumed, contest(world).given_up_generation) == (True, None)
    assert "Retried" in world.events
    world.run(5)
    assert (world.share("v2"), contest(world).resumed, contest(world).count) == (30, False, 1)


def test_a_rollback_in_the_middle_of_a_contest_is_finished_by_a_successor() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 5)
    world.command, world.crash_at, world.crash_after = "abort/v2/1", len(world.writes) + 1, True
    world.run(1)
    assert world.writes[-1] == "SetWeights/reviews"
    world.command, world.status["lastCommand"] = "", {}
    del world.status["lastCommand"]
    world.run(3)
    assert (world.share("v2"), world.phase) == (0, Phase.ROLLING_BACK)
    assert "RollbackResumed" in world.events


def test_a_canary_that_was_lowered_is_not_raised_again_while_it_is_short_of_endpoints() -> None:
    world = at(30, rollout=spec(hold="5m", readiness={"minReady": 2}))
    edit(world, 5)
    world.ready = {"v1": 2, "v2": 1}
    world.run(120)
    assert (world.reason, world.share("v2")) == ("CanaryNotReady", 5)
    world.ready = {"v1": 2, "v2": 2}
    world.run(30)
    assert world.share("v2") == 30


def test_a_canary_that_was_raised_is_lowered_however_short_of_endpoints_or_subsets_it_is() -> None:
    world = at(30, rollout=spec(hold="5m", readiness={"minReady": 2}))
    world.ready = {"v1": 2, "v2": 1}
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]
    before = len(world.writes)
    edit(world, 60)
    world.step()
    assert world.share("v2") == 30
    assert next(write for write in world.writes[before:] if "/" in write) == "SetWeights/reviews"


def test_weights_are_not_raised_before_a_lost_subset_is_back_whatever_other_routes_show() -> None:
    world = on_two(30, rollout={"hold": "5m"})
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.edit("gateway", set_to(("v1", 40), ("v2", 60)))
    assert world.rule is not None
    world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]
    before = len(world.writes)
    world.run(20)
    assert next(write for write in world.writes[before:] if "/" in write) == "AddSubset/reviews"
    assert world.shares("v2") == [30, 30]


def test_a_route_that_is_newly_listed_cuts_no_change_short_that_is_respected() -> None:
    world = at(30, rollout=spec(hold="5m"))
    world.services["gateway"] = virtual_service("gateway", {"route": [destination("v1", 100)]})
    edit(world, 5)
    listed = [{"name": "reviews"}, {"name": "gateway"}]
    world.apply(istio={"virtualServices": listed, "destinationRule": {"name": "reviews"}})
    world.run(5)
    assert world.shares("v2") == [5, 0]
    world.run(10)
    assert world.shares("v2") == [30, 30]


def test_a_plain_route_that_was_given_a_subset_is_given_it_again_and_one_that_was_not_is_left_alone() -> None:
    services = {"reviews": virtual_service("reviews", {"route": [destination(None)]})}
    world = World(services=services, rollout=spec(initialStableVersion="v1"), ready={"v1": 2}).run(30)
    world.command = "abort/v2/1"
    world.run(30)
    assert (world.phase, world.share("v1")) == (Phase.ROLLED_BACK, 100)
    world.edit("reviews", set_to((None, 100)))
    world.run(30)
    assert world.share("v1") == 100
    world = World(services=services, rollout=spec(version="v1", initialStableVersion="v1")).run()
    assert [write for write in world.writes if "/" in write] == []


@pytest.mark.parametrize(("ready", "reason", "share"), [({}, "Serving", 100), ({"v9": 2}, "StableGone", 60)])
def test_requests_go_from_a_version_that_answers_to_no_dead_one(ready: dict[str, int], reason: str, share: int) -> None:
    world = World(rollout=spec(version="v1"), rule=destination_rule("v1", "v9")).run()
    world.ready = ready
    world.edit("reviews", set_to(("v1", 60), ("v9", 40)))
    world.run(15)
    assert (world.reason, world.share("v1")) == (reason, share)


def test_after_each_answer_the_next_is_twice_as_far_and_evidence_begins_anew() -> None:
    world = at(30, rollout=spec(hold="5m")).run(60)
    for count in (1, 2):
        edit(world, 0)
        answered(world, 30)
        asserted = contest(world).not_before - 2**count * INTERVAL
        assert timedelta() <= world.now - asserted < timedelta(seconds=2)
        world.step()
        record = world.state.rollout
        assert record is not None
        assert record.applied_at is not None
        assert record.applied_at >= asserted
        assert record.in_effect_at is None


def test_a_version_that_was_taken_back_has_no_part_in_what_is_set_again() -> None:
    world = at(30)
    world.command = "abort/v2/1"
    world.run()
    world.edit("reviews", set_to(("v1", 80), ("v2", 20)))
    world.run(2)
    told = [entry.message for entry in world.state.history if entry.reason == "WeightReasserted"]
    assert told == ["weights set to v1 100 again, 1 of 3 times"]


def test_weights_that_are_not_as_intended_are_not_ready() -> None:
    world = World(rollout=spec(version="v1")).run()
    assert world.condition("Ready").status == "True"
    world.edit("reviews", set_to(("v1", 60), (None, 40)))
    world.step()
    assert (world.phase, world.condition("Ready").status) == (Phase.STABLE, "False")
    assert world.condition("Reconciling").status == "True"


def test_a_newly_listed_route_that_splits_traffic_is_somebodys_change() -> None:
    world = at(30, rollout=spec(hold="5m"))
    world.services["gateway"] = virtual_service("gateway", {"route": [destination("v1", 95), destination("v2", 5)]})
    listed = [{"name": "reviews"}, {"name": "gateway"}]
    world.apply(istio={"virtualServices": listed, "destinationRule": {"name": "reviews"}})
    world.run(5)
    assert world.shares("v2") == [30, 5]
    world.run(10)
    assert world.shares("v2") == [30, 30]


def test_weights_that_others_put_right_after_the_promotion_end_the_wait_too() -> None:
    world = World().run(until=lambda w: w.phase is Phase.PROMOTING)
    world.edit("reviews", set_to(("v1", 40), ("v2", 60)))
    world.step()
    assert contest(world).changed_at == world.now
    world.edit("reviews", set_to(("v1", 0), ("v2", 100)))
    world.step()
    assert contest(world).changed_at is None


def test_an_answer_that_is_not_accepted_is_given_at_every_look() -> None:
    world = at(30, rollout=spec(hold="5m"))
    edit(world, 0)
    world.refusing = frozenset({"reviews"})
    world.run(60, until=lambda w: bool(w.failures))
    for _ in range(4):
        world.now += timedelta(seconds=1)
        assert world.step().actions
        assert contest(world).changed_at is None


def test_a_change_is_respected_although_an_earlier_write_was_not_accepted() -> None:
    world = at(10, rollout=spec(steps=[{"weight": 10}, {"weight": 30}, {"weight": 100}]))
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    edit(world, 5)
    world.refusing = frozenset()
    world.run(5)
    assert world.share("v2") == 5
    assert INTERVAL - timedelta(seconds=7) <= answered(world, 10) <= INTERVAL


def test_a_route_of_the_destination_rules_name_that_is_newly_listed_is_brought_along() -> None:
    """Our subset is on record under the same name as the VirtualService."""
    services = {name: virtual_service(name, {"route": [destination("v1", 100)]}) for name in ("gateway", "reviews")}
    rule = {"destinationRule": {"name": "reviews"}}
    world = World(rollout=spec(hold="5m", istio={"virtualServices": [{"name": "gateway"}]} | rule), services=services)
    world.run(until=lambda w: w.share("v2") == 30 and w.state.weight == 30)
    world.apply(istio={"virtualServices": [{"name": "gateway"}, {"name": "reviews"}]} | rule)
    world.run(3)
    assert world.shares("v2") == [30, 30]
    assert "DriftDetected" not in world.events


def test_one_route_that_was_raised_is_reason_enough_to_answer_at_once() -> None:
    world = on_two(30, rollout={"hold": "5m"})
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.edit("gateway", set_to(("v1", 40), ("v2", 60)))
    world.step()
    world.step()
    assert world.shares("v2") == [30, 30]


def test_a_contest_at_rest_is_forgotten_too() -> None:
    world = World(rollout=spec(version="v1")).run()
    world.edit("reviews", set_to(("v1", 60), (None, 40)))
    world.run(60)
    assert (world.share("v1"), contest(world).changed_at) == (100, None)
    world.run(300)
    assert world.state.contest is None


def test_the_deadline_runs_again_after_a_pause_whoever_changes_weights_meanwhile() -> None:
    world = at(30, rollout=spec(hold="0s"))
    world.apply(paused=True)
    world.run(120)
    assert world.reason == "Paused"
    edit(world, 5)
    world.apply(paused=False)
    world.step()
    record = world.state.rollout
    assert record is not None
    assert record.awaiting_since is None
    assert world.state.deadline is not None


@pytest.mark.parametrize("weight", [None, 100])
def test_a_plain_route_is_pinned_again_whatever_its_author_wrote(weight: int | None) -> None:
    services = {"reviews": virtual_service("reviews", {"route": [destination(None, weight)]})}
    world = World(services=services, rollout=spec(initialStableVersion="v1"), ready={"v1": 2}).run(30)
    world.command = "abort/v2/1"
    world.run(30)
    world.edit("reviews", set_to((None, 100)))
    world.run(30)
    assert world.share("v1") == 100


def test_only_who_goes_on_after_giving_way_is_called_so() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(2):
        edit(world, 0)
        assert not contest(world).resumed
        answered(world, 30)


def test_a_dead_version_that_gains_nothing_keeps_no_traffic_from_the_canary() -> None:
    world = at(30, rollout=spec(hold="5m"), rule=destination_rule("v1", "v9"))
    world.edit("reviews", set_to(("v1", 70), ("v9", 30), ("v2", 0)))
    world.ready = {"v2": 2, "v9": 2}
    world.step()
    assert answered(world, 30) < INTERVAL + timedelta(seconds=2)


def test_a_dead_version_that_gains_on_one_route_keeps_the_others_as_they_are_too() -> None:
    world = on_two(30, rollout={"hold": "5m"}, rule=destination_rule("v1", "v9"))
    world.edit("reviews", set_to(("v1", 60), ("v9", 40), ("v2", 0)))
    world.edit("gateway", set_to(("v1", 80), ("v2", 20)))
    world.ready = {"v2": 2, "v9": 2}
    world.run(30)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "StableGone")
    assert world.shares("v1") == [60, 80]


def test_plain_traffic_may_well_be_answered_and_is_not_moved_to_a_dead_version() -> None:
    world = World(rollout=spec(version="v1")).run()
    world.ready = {"v7": 2}
    world.edit("reviews", set_to(("v1", 60), (None, 40)))
    world.run(30)
    assert (world.phase, world.reason, world.share("v1")) == (Phase.BLOCKED, "StableGone", 60)


def test_a_canary_that_has_its_share_needs_no_more_endpoints_for_stable_to_have_its_own() -> None:
    world = at(30, rollout=spec(hold="5m", readiness={"minReady": 2}), rule=destination_rule("v1", "v9"))
    world.edit("reviews", set_to(("v9", 70), ("v2", 30)))
    world.ready = {"v1": 2, "v2": 1, "v9": 2}
    world.step()
    assert answered(world, 30, stable=70) < INTERVAL + timedelta(seconds=2)


def test_a_canary_that_was_lowered_and_lacks_endpoints_has_a_deadline() -> None:
    world = at(30, rollout=spec(hold="5s", readiness={"minReady": 2}, progressDeadline="2m"))
    edit(world, 5)
    world.ready = {"v1": 2, "v2": 1}
    world.run(60)
    assert (world.reason, world.share("v2")) == ("CanaryNotReady", 5)
    world.run(180)
    record = world.state.rollout
    assert record is not None
    assert (world.share("v2"), record.reason) == (0, "DeadlineExceeded")


def test_who_gives_way_sees_to_it_that_the_canary_is_at_0_and_then_looks_seldom() -> None:
    world = at(30, rollout=spec(hold="5m"))
    for _ in range(3):
        edit(world, 5)
        answered(world, 30)
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    decision = world.step()
    assert decision.actions
    assert decision.wake_at == world.now + SETTINGS.retry
    decision = world.step()
    assert not decision.actions
    assert decision.wake_at == world.now + SETTINGS.blocked_retry


def test_a_sync_is_no_rollback_although_another_rollout_writes_the_same_virtual_service_after_it() -> None:
    world = at(30)
    world.edit("reviews", set_to(("v1", 100)))
    world.run(1)
    world.edit("reviews", lambda mesh: mesh.update(gateways=["mesh"]), OURS)
    world.run(15)
    assert world.share("v2") == 30
    assert "RollbackResumed" not in world.events
    assert "WeightReasserted" in world.events


@pytest.mark.parametrize("gone", [True, False])
def test_a_canary_that_was_raised_is_lowered_although_another_virtual_service_cannot_be_used(gone: bool) -> None:
    world = on_two(10)
    if gone:
        del world.services["gateway"]
    else:
        world.unread = frozenset({"gateway"})
    world.edit("reviews", set_to(("v1", 10), ("v2", 90)))
    world.run(10)
    assert world.shares("v2")[0] == 10
    assert world.reason == ("VirtualServiceNotFound" if gone else "MeshUnreadable")
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.run(60)
    assert world.shares("v2")[0] == 5


@pytest.mark.parametrize("failing", [True, False])
def test_at_rest_weights_are_set_again_although_another_virtual_service_is_gone(failing: bool) -> None:
    world = on_two(10)
    world.error_rate = lambda version, *_: 0.5 if failing and version == "v2" else 0.0
    world.run()
    serves, other = ("v1", "v2") if failing else ("v2", "v1")
    assert world.share(serves) == 100
    assert world.rule is not None
    if failing:
        world.rule["spec"]["subsets"].append({"name": "v2", "labels": {"version": "v2"}})
    del world.services["gateway"]
    world.edit("reviews", set_to((serves, 70), (other, 30)))
    world.run(60)
    assert world.share(serves) == 100
    assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")


def test_a_rollback_cut_short_is_finished_although_another_virtual_service_is_gone() -> None:
    names = ("reviews", "gateway", "edge")
    services = {name: virtual_service(name, {"route": [destination("v1", 100)]}) for name in names}
    istio = {"virtualServices": [{"name": name} for name in names], "destinationRule": {"name": "reviews"}}
    world = at(30, rollout=spec(istio=istio), services=services)
    edit(world, 30, OURS)
    for entry, weight in zip(world.services["gateway"]["spec"]["http"][0]["route"], (100, 0), strict=True):
        entry["weight"] = weight
    world.services["gateway"]["metadata"] = {**world.services["reviews"]["metadata"], "name": "gateway"}
    del world.services["edge"]
    world.run(60, until=lambda w: w.shares("v2") == [0, 0])
    assert world.shares("v2") == [0, 0]
    assert "RollbackResumed" in world.events


def test_who_gave_way_at_rest_takes_requests_off_a_version_that_is_gone_and_then_looks_seldom() -> None:
    world = World()
    world.run(until=lambda w: w.phase is Phase.STABLE and w.state.stable_version == "v2")
    world.ready = {"v2": 2}
    while world.reason != "WeightContested":
        world.edit("reviews", set_to(("v1", 100)))
        world.run(30, until=lambda w: w.share("v2") == 100 or w.reason == "WeightContested")
    world.run(60, until=lambda w: w.share("v2") == 100)
    assert world.share("v2") == 100
    since = world.now
    world.edit("reviews", set_to(("v1", 100)))
    world.run(600, until=lambda w: w.share("v2") == 100)
    assert world.now - since >= 8 * INTERVAL
    world.ready = {"v1": 2, "v2": 2}
    world.edit("reviews", set_to(("v1", 100)))
    world.run(600)
    assert world.share("v1") == 100
    assert world.reason == "WeightContested"


def test_a_virtual_service_that_is_gone_is_missed_as_soon_as_a_promotion_is_done() -> None:
    world = at(100)
    world.run(until=lambda w: w.phase is Phase.PROMOTING)
    del world.services["reviews"]
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")


def test_a_rollback_cut_short_is_told_where_the_user_has_listed_both_destinations() -> None:
    names = ("reviews", "gateway")
    services = {n: virtual_service(n, {"route": [destination("v1", 100), destination("v2", 0)]}) for n in names}
    istio = {"virtualServices": [{"name": name} for name in services], "destinationRule": {"name": "reviews"}}
    world = at(30, rollout=spec(istio=istio), services=services, rule=destination_rule("v1", "v2"))
    edit(world, 0, OURS)
    world.run(60, until=lambda w: w.shares("v2") == [0, 0])
    assert world.shares("v2") == [0, 0]
    assert "RollbackResumed" in world.events
