"""What `decide` does in each stretch of a rollout's life, replayed in the world of `tests.world`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.adapters.istio_patch import without_server_fields as bare
from canaryrollout.api.status import Phase
from canaryrollout.domain.decide import decide_invalid
from canaryrollout.domain.decision import SetFinalizer
from canaryrollout.domain.observation import Identity
from tests.unit.domain.watchedworld import at, edit, history
from tests.world import SETTINGS, START, World, destination, destination_rule, spec, virtual_service


class TestFirstSight:
    def test_the_wanted_version_serves_already(self) -> None:
        world = World(rollout=spec(version="v1")).run()
        assert (world.phase, world.state.stable_version, world.state.rollout) == (Phase.STABLE, "v1", None)

    def test_a_split_is_judged_as_a_step_before_the_next_one(self) -> None:
        route = {"route": [destination("v1", 80), destination("v2", 20)]}
        world = World(services={"reviews": virtual_service("reviews", route)}, rule=destination_rule("v1", "v2")).run()
        assert world.phase is Phase.STABLE
        assert [weight for _, weight in world.weights] == [20, 30, 50, 100]
        assert "SplitAdopted" in history(world)

    def test_a_failing_split_is_taken_back(self) -> None:
        route = {"route": [destination("v1", 80), destination("v2", 20)]}
        world = World(
            services={"reviews": virtual_service("reviews", route)},
            rule=destination_rule("v1", "v2"),
            error_rate=lambda version, weight, now: 0.05 if version == "v2" else 0.0,
        ).run()
        assert world.phase is Phase.ROLLED_BACK
        assert world.share("v1") == 100

    def test_a_dead_serving_version_is_left_at_once(self) -> None:
        world = World(ready={"v2": 2})
        world.run(until=lambda w: w.share("v2") > 0)
        assert world.share("v2") == 100
        assert world.run().phase is Phase.STABLE
        assert world.state.stable_version == "v2"

    def test_several_versions_behind_a_plain_route_need_a_word_from_the_user(self) -> None:
        plain = {"reviews": virtual_service("reviews", {"route": [destination(None)]})}
        world = World(services=plain)
        world.step()
        assert (world.phase, world.reason) == (Phase.BLOCKED, "StableVersionUnknown")
        assert "spec.initialStableVersion" in world.state.message
        assert "v1, v2, v3" in world.state.message
        world.apply(initialStableVersion="v1")
        assert world.run().state.stable_version == "v2"

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"services": {}}, "VirtualServiceNotFound"),
            ({"rule": None}, "StableVersionUnknown"),
            ({"api": False}, "MeshUnreadable"),
            ({"ready": None}, "MeshUnreadable"),
        ],
    )
    def test_what_cannot_be_seen_blocks_and_says_why(self, fields: dict[str, Any], reason: str) -> None:
        world = World(**fields)
        world.step()
        assert (world.phase, world.reason) == (Phase.BLOCKED, reason)
        assert not [write for write in world.writes if "/" in write]


class TestPreparing:
    def test_a_canary_that_is_never_ready_ends_at_weight_zero(self) -> None:
        world = World(ready={"v1": 2}).run()
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "CanaryNotReady")
        assert [weight for _, weight in world.weights] == [0]
        assert world.now - START >= timedelta(minutes=10)
        assert bare(world.services["reviews"]) == bare(world.originals[0]["reviews"])

    def test_a_percentage_of_stables_endpoints_can_be_required(self) -> None:
        world = World(rollout=spec(readiness={"minReady": "50%"}), ready={"v1": 5, "v2": 2}).run(60)
        assert world.reason == "WaitingForCanary"
        assert "2 of 3" in world.state.message
        world.ready = {"v1": 5, "v2": 3}
        assert world.run(10).share("v2") == 10

    def test_no_traffic_moves_while_the_provider_is_away(self) -> None:
        world = World(away_since=START).run(120)
        assert (world.phase, world.reason) == (Phase.PREPARING, "ProviderError")
        assert world.share("v2") == 0
        world.prometheus = True
        assert world.run().phase is Phase.STABLE

    def test_an_undefined_provider_is_named_before_anything_moves(self) -> None:
        world = World(rollout=spec(analysis={"provider": "thanos"})).run(10)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "ProviderUnknown")
        assert "use one of default" in world.state.message


class TestProgressing:
    def test_no_data_and_too_few_requests_hold_the_step_and_say_so(self) -> None:
        world = World(rps=1, rollout=spec(progressDeadline="1h"))
        world.run(300)
        assert (world.phase, world.state.weight, world.reason) == (Phase.PROGRESSING, 10, "LowSample")
        assert "of 100 requests" in world.state.message
        assert world.state.deadline is not None

    @pytest.mark.parametrize(("policy", "phase"), [("Rollback", Phase.ROLLED_BACK), ("Hold", Phase.PROGRESSING)])
    def test_the_deadline_policy_decides_on_a_step_that_never_passes(self, policy: str, phase: Phase) -> None:
        scarce = {"interval": "10s", "minRequests": 100_000}
        world = World(rollout=spec(onDeadline=policy, analysis=scarce)).run(1800)
        assert (world.phase, world.reason) == (phase, "DeadlineExceeded")
        assert world.share("v2") == (0 if policy == "Rollback" else 10)
        stalled = next(c for c in world.state.conditions if c.type == "Stalled")
        assert stalled.status == "True"

    def test_a_provider_outage_holds_and_a_bad_canary_is_still_found_afterwards(self) -> None:
        world = at(10)
        world.prometheus = False
        world.run(120)
        assert (world.phase, world.share("v2")) == (Phase.PROGRESSING, 10)
        healthy = next(c for c in world.state.conditions if c.type == "AnalysisHealthy")
        assert (healthy.status, healthy.reason) == ("False", "ProviderError")
        world.prometheus = True
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        assert world.run().phase is Phase.ROLLED_BACK

    def test_a_canary_without_endpoints_is_taken_back_after_the_grace(self) -> None:
        world = at(10)
        lost = world.now
        world.ready = {"v1": 2, "v2": 0}
        world.run(until=lambda w: w.share("v2") == 0)
        assert world.run().reason == "CanaryUnready"
        assert timedelta(seconds=10) <= world.weights[-1][0] - lost <= timedelta(seconds=16)

    def test_unreadable_endpoints_are_not_zero_endpoints(self) -> None:
        world = at(10)
        world.ready = None
        world.run(120)
        assert world.share("v2") == 10
        assert world.phase is Phase.PROGRESSING

    def test_no_raise_to_a_canary_below_min_ready(self) -> None:
        world = at(10, rollout=spec(readiness={"minReady": 2}))
        world.ready = {"v1": 2, "v2": 1}
        world.run(120)
        assert (world.share("v2"), world.reason) == (10, "CanaryNotReady")

    def test_edited_steps_keep_the_weight_and_the_next_is_the_first_above(self) -> None:
        world = at(30)
        world.apply(steps=[{"weight": 20}, {"weight": 40}, {"weight": 100}])
        world.run()
        assert [weight for _, weight in world.weights] == [0, 10, 30, 40, 100]

    def test_going_back_to_stable_takes_the_traffic_back_at_once(self) -> None:
        world = at(30)
        world.apply(version="v1")
        world.step()
        assert world.share("v2") == 0
        assert world.run().phase is Phase.STABLE
        assert bare(world.services["reviews"]) == bare(world.originals[0]["reviews"])

    def test_a_third_version_takes_the_canary_to_zero_and_starts_anew(self) -> None:
        world = at(30)
        world.apply(version="v3")
        world.run(until=lambda w: w.share("v3") > 0)
        assert (world.share("v2"), world.share("v3")) == (0, 10)
        assert world.run().state.stable_version == "v3"


class TestRollback:
    def test_it_is_withheld_only_while_stable_is_known_to_be_gone(self) -> None:
        world = at(30)
        world.ready = {"v1": 0, "v2": 2}
        world.command = "abort/v2/1"
        world.run(60)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "StableGone", 30)
        world.ready = {"v1": 1, "v2": 2}
        world.run()
        assert (world.phase, world.share("v2")) == (Phase.ROLLED_BACK, 0)

    def test_it_needs_neither_prometheus_nor_endpoints_nor_the_destination_rule(self) -> None:
        world = at(30)
        world.prometheus, world.ready, world.rule = False, None, None
        world.command = "abort/v2/1"
        world.step()
        route = world.services["reviews"]["spec"]["http"][0]["route"]
        assert {d["destination"]["subset"]: d["weight"] for d in route} == {"v1": 100, "v2": 0}


class TestRest:
    """Nothing is under way, and the mesh is looked at now and then all the same."""

    def test_a_version_that_comes_after_one_that_was_taken_back_starts_a_rollout(self) -> None:
        world = at(30)
        world.command = "abort/v2/1"
        world.run()
        world.apply(version="v3")
        assert (world.run().phase, world.state.stable_version) == (Phase.STABLE, "v3")

    def test_going_back_to_stable_after_a_rollback_says_that_it_serves(self) -> None:
        world = at(30)
        world.command = "abort/v2/1"
        world.run()
        world.apply(version="v1")
        world.run()
        assert (world.phase, world.reason, world.state.rollout) == (Phase.STABLE, "Serving", None)

    def test_an_object_that_goes_missing_is_said_and_heals(self) -> None:
        world = World().run()
        kept = dict(world.services)
        world.services.clear()
        world.step()
        assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")
        world.services = kept
        world.step()
        assert (world.phase, world.reason) == (Phase.STABLE, "Serving")

    def test_a_mesh_that_cannot_be_read_is_looked_at_again_soon(self) -> None:
        world = World().run()
        assert world.step().wake_at is None
        world.api = False
        decision = world.step()
        assert world.phase is Phase.STABLE
        assert decision.wake_at is not None
        assert decision.wake_at - world.now <= timedelta(seconds=5)

    def test_a_drift_that_was_given_way_to_is_answered_again_after_an_edit(self) -> None:
        world = World().run()
        for _ in range(8):
            edit(world, 0)
            world.run(300, until=lambda w: w.share("v2") == 100)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "WeightContested", 0)
        world.run(600)
        assert world.share("v2") == 0
        world.apply(hold="31s")
        world.run(30)
        assert (world.phase, world.share("v2")) == (Phase.STABLE, 100)


class TestPromoting:
    """The canary is stable now, and what it replaced is cleaned up."""

    def promoting(self) -> World:
        world = World().run(until=lambda w: w.phase is Phase.PROMOTING)
        assert world.state.stable_version == "v2"
        return world

    def test_a_mesh_that_cannot_be_read_delays_it(self) -> None:
        world = self.promoting()
        world.api = False
        world.run(60)
        assert (world.phase, world.reason) == (Phase.PROMOTING, "MeshUnreadable")
        world.api = True
        assert world.run().phase is Phase.STABLE

    def test_a_version_that_is_wanted_meanwhile_follows_at_once(self) -> None:
        world = self.promoting()
        world.apply(version="v3")
        assert (world.run().phase, world.state.stable_version) == (Phase.STABLE, "v3")

    def test_deletion_meanwhile_leaves_the_traffic_where_it_is(self) -> None:
        world = self.promoting()
        world.deleting = True
        world.run(120)
        assert (world.share("v2"), world.finalizer) == (100, False)


class TestDeletion:
    @pytest.mark.parametrize("weight", [10, 50])
    def test_a_canary_with_traffic_is_taken_back_first(self, weight: int) -> None:
        world = at(weight)
        world.deleting = True
        world.step()
        assert (world.share("v2"), world.finalizer) == (0, True)
        world.run(120)
        assert not world.finalizer
        assert bare(world.services["reviews"]) == bare(world.originals[0]["reviews"])

    def test_at_rest_the_object_goes_at_once(self) -> None:
        world = World(rollout=spec(version="v1")).run()
        world.finalizer = world.deleting = True
        world.step()
        assert not world.finalizer

    def test_what_has_no_finalizer_is_not_ours_to_hold(self) -> None:
        world = World(ready={"v1": 2})
        world.step()
        world.deleting = True
        assert world.step().actions == ()


class TestClock:
    def test_times_in_status_are_as_precise_as_decisions(self) -> None:
        world = World()
        world.now = START + timedelta(microseconds=1_234_567)
        decision = world.step()
        assert decision.status == world.state


def test_an_unusable_spec_is_answered_without_touching_the_mesh() -> None:
    identity = Identity("shop", "reviews", "uid-1", 3, START)
    decision = decide_invalid(World().state, identity, ["spec.host: 'http://x' has a scheme"], START)
    assert decision.actions == ()
    assert decision.status.phase is Phase.BLOCKED
    assert decision.status.message == "spec.host: 'http://x' has a scheme"
    again = decide_invalid(decision.status, identity, ["spec.host: 'http://x' has a scheme"], START + SETTINGS.poll)
    assert again.status == decision.status
    assert again.events == ()


def test_an_unusable_object_can_still_be_deleted() -> None:
    identity = Identity("shop", "reviews", "uid-1", 3, START, deleting=True, finalizer=True)
    decision = decide_invalid(World().state, identity, ["unreadable"], START)
    assert decision.actions == (SetFinalizer(False),)
    assert decision.status == World().state, "a status that is refused would keep the object"
