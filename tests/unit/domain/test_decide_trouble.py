"""What `decide` makes of other hands and of a mesh that is not as it was, replayed in a world in memory."""

from __future__ import annotations

from datetime import timedelta

import pytest

from canaryrollout.api.status import Phase
from canaryrollout.domain.decide import rival_claim
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Claim, Identity
from tests.unit.domain.watchedworld import at, edit, history
from tests.world import SETTINGS, START, World, destination, destination_rule, spec, virtual_service


class TestDrift:
    def test_a_lowered_canary_is_respected_then_raised_again(self) -> None:
        world = at(30)
        world.run(5)
        edit(world, 0)
        lowered = world.now
        world.run(until=lambda w: w.share("v2") == 30)
        assert world.now - lowered >= timedelta(seconds=10)
        assert "DriftDetected" in history(world)
        assert "argocd" in next(e.message for e in world.state.history if e.reason == "DriftDetected")
        assert [weight for _, weight in world.run().weights] == [0, 10, 30, 0, 30, 50, 100]

    def test_a_raised_canary_is_lowered_at_once(self) -> None:
        world = at(10)
        world.run(3)
        edit(world, 80)
        world.step()
        assert world.share("v2") == 10

    def test_a_stubborn_manager_is_given_way_to_and_named(self) -> None:
        world = at(30)
        for _ in range(8):
            world.run(200, until=lambda w: w.share("v2") == 30)
            edit(world, 5)
            world.step()
        world.run(600)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "WeightContested")
        assert "argocd" in world.state.message
        assert world.share("v2") == 0
        assert world.state.weight == 30
        assert world.state.history[-1].reason == "WeightContested"
        world.command = "retry/v2/1"
        assert world.run().phase is Phase.STABLE
        assert [weight for _, weight in world.weights][-2:] == [50, 100]

    def test_a_sync_that_sends_a_stable_rollouts_traffic_to_a_dead_version_is_answered_at_once(self) -> None:
        world = World().run()
        assert world.state.stable_version == "v2"
        edit(world, 0)
        world.ready = {"v2": 2}
        world.run(5)
        assert world.share("v2") == 100


class TestClaims:
    def test_the_older_of_two_judges_the_host(self) -> None:
        older = Claim("shop/other", "uid-0", START - timedelta(hours=1), active=False)
        world = World(claims=(older,)).run(5)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "HostClaimed")
        assert "shop/other" in world.state.message
        assert world.events == ["HostClaimed"], "what serves is the other's business"
        world.claims = ()
        assert world.run().phase is Phase.STABLE

    def test_an_active_one_wins_over_an_older_one(self) -> None:
        mine = Identity("shop", "reviews", "uid-1", 1, START)
        older = Claim("shop/other", "uid-0", START - timedelta(hours=1), active=False)
        assert rival_claim(mine, active=True, claims=[older]) is None
        assert rival_claim(mine, active=False, claims=[older]) is older

    @pytest.mark.parametrize(("uid", "wins"), [("uid-0", True), ("uid-2", False)])
    def test_of_two_that_are_as_old_as_each_other_the_uid_decides(self, uid: str, wins: bool) -> None:
        mine = Identity("shop", "reviews", "uid-1", 1, START)
        other = Claim("shop/other", uid, START, active=True)
        assert (rival_claim(mine, active=True, claims=[other]) is other) is wins

    def test_of_several_rivals_the_first_is_named(self) -> None:
        mine = Identity("shop", "reviews", "uid-1", 1, START)
        claims = [Claim(f"shop/{age}", "uid-0", START - timedelta(hours=age), active=age == 2) for age in (1, 2, 3)]
        assert rival_claim(mine, active=False, claims=claims) == claims[1]

    def test_a_rollout_at_rest_yields_too(self) -> None:
        world = World().run()
        world.claims = (Claim("shop/other", "uid-0", START - timedelta(hours=1), active=True),)
        world.run(5)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "HostClaimed", 100)

    def test_a_canary_with_traffic_whose_host_is_claimed_is_held_and_still_judged(self) -> None:
        world = at(30)
        world.claims = (Claim("shop/other", "uid-0", START - timedelta(hours=1), active=True),)
        world.run(120)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "HostClaimed", 30)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(60)
        assert world.share("v2") == 0

    @pytest.mark.parametrize(("weight", "pause"), [(0, SETTINGS.blocked_retry), (30, SETTINGS.poll)])
    def test_how_often_a_claimed_host_is_looked_at_depends_on_its_traffic(self, weight: int, pause: timedelta) -> None:
        world = at(weight) if weight else World(ready={"v1": 2}).run(20)
        world.claims = (Claim("shop/other", "uid-0", START - timedelta(hours=1), active=True),)
        decision = world.step()
        assert (world.reason, world.state.weight) == ("HostClaimed", weight)
        assert decision.wake_at == world.now + pause


class TestMeshTrouble:
    """Objects go missing, change shape, or refuse writes, while traffic is split."""

    def test_deletion_does_not_wait_for_a_virtual_service_that_is_gone(self) -> None:
        world = at(30)
        world.services.clear()
        world.deleting = True
        world.run(600)
        assert not world.finalizer
        assert [s["name"] for s in (world.rule or {})["spec"]["subsets"]] == ["v1"]

    def test_a_canary_on_a_route_that_cannot_be_moved_is_not_called_rolled_back(self) -> None:
        world = at(30)
        split = [destination("v1", 50), destination("v2", 30), destination("v3", 20)]
        assert world.rule is not None
        world.rule["spec"]["subsets"].append({"name": "v3", "labels": {"version": "v3"}})
        world.edit("reviews", lambda mesh: mesh["http"][0].update(route=split))
        world.command = "abort/v2/1"
        world.run(60)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "TooManyDestinations")
        world.edit("reviews", lambda mesh: mesh["http"][0].update(route=split[:2]))
        world.run()
        assert world.phase is Phase.ROLLED_BACK
        assert world.share("v2") == 0

    def test_a_canary_is_judged_while_its_raise_is_stuck(self) -> None:
        names = ("gateway", "reviews")
        routing = {"virtualServices": [{"name": name} for name in names], "destinationRule": {"name": "reviews"}}
        world = World(rollout=spec(istio=routing), services={name: virtual_service(name) for name in names})
        world.run(until=lambda w: w.share("v2") == 10)
        world.refusing = frozenset({"gateway"})
        world.run(until=lambda w: max(w.shares("v2")) == 30)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(60)
        assert world.phase is Phase.ROLLING_BACK
        assert world.shares("v2") == [10, 0]
        world.refusing = frozenset()
        assert world.run().phase is Phase.ROLLED_BACK

    def test_a_write_that_lastingly_fails_is_told_once_going_up_and_once_coming_back(self) -> None:
        world = at(10)
        world.refusing = frozenset({"reviews"})
        world.run(60, until=lambda w: len(w.failures) > 0)
        assert "WriteFailed" not in world.events, "once may happen to anybody"
        world.run(60)
        assert world.events.count("WriteFailed") == 1
        assert world.state.message.endswith("not yet accepted: refused by a webhook")
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(60)
        assert world.phase is Phase.ROLLING_BACK
        assert world.events.count("WriteFailed") == 2
        told = [entry.message for entry in world.state.history if entry.reason == "WriteFailed"]
        assert told == ["not accepted, trying again: refused by a webhook"] * 2

    def test_a_raise_that_is_never_accepted_ends_at_the_deadline(self) -> None:
        world = World()
        world.refusing = frozenset({"reviews"})
        world.rule = destination_rule("v1", "v2")
        world.run(3600, until=lambda w: w.phase is Phase.ROLLED_BACK)
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")

    def test_no_raise_without_the_destination_rule(self) -> None:
        world = at(30)
        world.rule = None
        world.run(300)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "DestinationRuleNotFound")
        route = world.services["reviews"]["spec"]["http"][0]["route"]
        assert [entry["weight"] for entry in route] == [70, 30]

    def test_a_subset_that_somebody_removed_is_added_again(self) -> None:
        world = at(30)
        assert world.rule is not None
        world.rule["spec"]["subsets"].pop()
        world.run(10)
        assert [s["name"] for s in world.rule["spec"]["subsets"]] == ["v1", "v2"]
        assert "SubsetLost" in history(world)
        assert world.run().phase is Phase.STABLE

    def test_a_promoted_version_keeps_its_subset(self) -> None:
        world = World().run()
        assert world.rule is not None
        world.rule["spec"]["subsets"].pop()
        world.run(10)
        assert world.share("v2") == 100
        assert "SubsetLost" in history(world)

    def test_traffic_is_not_sent_back_to_a_version_that_is_gone(self) -> None:
        world = World(rollout=spec(version="v1"), rule=destination_rule("v1", "v2")).run()
        world.ready = {"v2": 2}
        world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 0), destination("v2", 100)]))
        world.run(120)
        assert world.share("v2") == 100
        assert (world.phase, world.reason) == (Phase.BLOCKED, "StableGone")
        world.apply(version="v2")
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")

    def test_a_route_that_comes_onto_the_list_gets_the_present_weight(self) -> None:
        routes = [{"name": name, "route": [destination("v1")]} for name in ("primary", "second")]
        listed = {
            "virtualServices": [{"name": "reviews", "routes": ["primary"]}],
            "destinationRule": {"name": "reviews"},
        }
        world = World(rollout=spec(istio=listed), services={"reviews": virtual_service("reviews", *routes)})
        world.run(until=lambda w: w.state.weight == 30)
        both = {"virtualServices": [{"name": "reviews", "routes": ["primary", "second"]}]}
        world.apply(istio={**listed, **both})
        world.run(10)
        assert world.shares("v2") == [30, 30]
        assert "DriftDetected" not in history(world)
        assert world.run().phase is Phase.STABLE

    def test_a_bad_canary_is_taken_back_while_a_drift_is_waited_out(self) -> None:
        world = at(30, rollout=spec(analysis={"interval": "10s", "minRequests": 20, "errorRate": {"max": "1%"}}))
        world.run(25)
        edit(world, 20)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(13)
        assert world.share("v2") == 0

    def test_changing_ones_mind_twice_during_a_rollback_starts_the_wanted_version(self) -> None:
        world = at(30)
        world.apply(version="v1")
        world.step()
        world.apply(version="v2")
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")

    def test_a_wait_for_a_person_ends_with_the_pause(self) -> None:
        world = World(rollout=spec(paused=True)).run(60)
        assert (world.phase, world.reason) == (Phase.PAUSED, "Paused")
        world.ready = {"v1": 2}
        world.apply(paused=False)
        world.run(3600)
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "CanaryNotReady")

    def test_nothing_is_left_uncounted_between_the_write_of_a_weight_and_its_evidence(self) -> None:
        world = at(10)
        record = world.state.rollout
        assert record is not None
        assert record.applied_at is not None
        asked = needs(world.rollout, world.state, world._identity(), world.now, SETTINGS)
        assert asked.opening is not None
        assert asked.evidence is not None
        assert asked.opening.start < world.weights[-1][0]
        assert asked.opening.start + asked.opening.interval == asked.opening.until == asked.evidence.start
        assert world.weights[-1][0] <= record.applied_at

    def test_a_share_that_contradicts_the_weight_is_a_finding_and_the_hold_starts_after_it(self) -> None:
        world = at(10)
        world.show(60)
        world.run(until=lambda w: w.state.rollout is not None and w.state.rollout.in_effect_at is not None)
        assert "ShareContradicts" in history(world)
        record = world.state.rollout
        assert record is not None
        assert record.in_effect_at is not None
        assert record.applied_at is not None
        assert record.in_effect_at - record.applied_at >= timedelta(seconds=30)
