"""What `decide` does in each stretch of a rollout's life, replayed in the world of `tests.world`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.adapters.istio_patch import without_server_fields as bare
from canaryrollout.api.status import Phase
from canaryrollout.domain.decide import decide_invalid, rival_claim
from canaryrollout.domain.decision import SetFinalizer
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Claim, Identity
from tests.world import SETTINGS, START, World, destination, destination_rule, spec, virtual_service


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    world = World(**fields)
    return world.run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def edit(world: World, weight: int, manager: str = "argocd") -> None:
    def change(mesh: dict[str, Any]) -> None:
        route = mesh["http"][0]["route"]
        route[0]["weight"], route[1]["weight"] = 100 - weight, weight

    world.edit("reviews", change, manager)


def history(world: World) -> list[str]:
    return [entry.reason for entry in world.state.history]


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


class TestPeople:
    def test_an_approval_is_awaited_without_a_deadline(self) -> None:
        world = World(rollout=spec(steps=[{"weight": 50, "approval": "Required"}, {"weight": 100}]))
        world.run(7200)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PAUSED, "AwaitingApproval", 50)
        assert world.state.deadline is None
        world.command = "approve/v2/1"
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
        assert "Approved" in history(world)

    def test_an_approved_canary_still_has_to_pass(self) -> None:
        world = World(rollout=spec(steps=[{"weight": 50, "approval": "Required"}, {"weight": 100}])).run(600)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(30)
        assert world.phase is Phase.ROLLED_BACK

    def test_pausing_stops_raises_but_not_rollbacks(self) -> None:
        world = at(10)
        world.apply(paused=True)
        world.run(7200)
        assert (world.phase, world.share("v2")) == (Phase.PAUSED, 10)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        assert world.run(60).phase is Phase.ROLLED_BACK

    def test_time_with_a_person_does_not_count_against_the_deadline(self) -> None:
        world = at(10)
        world.apply(paused=True)
        world.run(7200)
        world.apply(paused=False)
        assert world.run().phase is Phase.STABLE

    def test_promote_is_one_jump_once_the_canary_is_ready(self) -> None:
        world = World(ready={"v1": 2}).run(60)
        world.command = "promote/v2/1"
        assert world.run(30).share("v2") == 0
        world.ready = {"v1": 2, "v2": 1}
        world.run()
        assert [weight for _, weight in world.weights] == [0, 100]
        assert world.phase is Phase.STABLE

    def test_a_rolled_back_version_stays_back_until_it_is_retried(self) -> None:
        world = World(error_rate=lambda version, weight, now: 0.05 if version == "v2" else 0.0).run()
        assert world.phase is Phase.ROLLED_BACK
        world.error_rate = lambda version, weight, now: 0.0
        world.apply(hold="10s")
        world.run()
        assert world.phase is Phase.ROLLED_BACK
        world.command = "retry/v2/again"
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")

    @pytest.mark.parametrize(
        ("command", "why"),
        [
            ("approve/v2/1", "nothing waits for approval"),
            ("abort/v9/1", "the rollout under way is to v2, not v9"),
            ("retry/v2/1", "nothing was taken back"),
            ("launch/v2/1", "is not a command"),
            ("promote", "is not <command>/<version>/<token>"),
        ],
    )
    def test_a_command_that_does_not_apply_is_answered_once(self, command: str, why: str) -> None:
        world = at(10)
        world.command = command
        world.step()
        assert world.state.last_command is not None
        assert why in world.state.last_command.result
        assert world.events.count("CommandRefused") == 1
        world.run(60)
        assert world.events.count("CommandRefused") == 1
        assert world.run().phase is Phase.STABLE


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
