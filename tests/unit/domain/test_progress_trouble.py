"""A canary with traffic while something goes wrong: what is said, what ends it, and when."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, MetricReading, MetricValue
from canaryrollout.domain.observation import Claim
from tests.unit.domain.watchedworld import WatchedWorld, at, on_two, set_to
from tests.world import OURS, START, spec, virtual_service

ANALYSIS: dict[str, Any] = {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}}
RIVAL = Claim("shop/other", "uid-0", START - timedelta(hours=1), active=True)


def ended(world: WatchedWorld) -> tuple[int, str]:
    return world.share("v2"), world.record.reason


def written(world: WatchedWorld, name: str = "reviews") -> int:
    """Return the weight of the canary's subset, whatever it stands for."""
    route = world.services[name]["spec"]["http"][0]["route"]
    return sum(entry.get("weight", 0) for entry in route if entry["destination"].get("subset") == "v2")


class TestDeadline:
    """A step that does not pass in time is taken back, whatever it waits for."""

    def test_while_its_gates_pass_and_it_is_still_held(self) -> None:
        world = WatchedWorld(rollout=spec(hold="30s", progressDeadline="30s"))
        world.run(until=lambda w: w.share("v2") == 10)
        world.show(60)
        world.run(until=lambda w: w.reason == "Holding")
        assert world.state.verdict == "Pass"
        world.run(60)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_a_query_of_the_users_own_has_no_data(self) -> None:
        metrics = [{"name": "checkout", "query": "q", "max": "5"}]
        world = at(10, rollout=spec(analysis=ANALYSIS | {"metrics": metrics}), metric=lambda name, at: None)
        world.run(60)
        assert world.share("v2") == 10
        world.run(900)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_one_of_two_objects_cannot_be_read(self) -> None:
        world = on_two(10, rollout={"progressDeadline": "2m"})
        world.unread = frozenset({"gateway"})
        world.run(60)
        assert (world.phase, world.reason, world.record.target) == (Phase.PROGRESSING, "MeshUnreadable", None)
        world.run(180)
        assert sorted(world.shares("v2")) == [0, 10]
        assert world.record.reason == "DeadlineExceeded"

    def test_while_the_provider_is_away(self) -> None:
        world = at(10, rollout=spec(hold="2m", progressDeadline="2m"))
        world.run(60)
        assert world.reason == "Holding"
        world.prometheus = False
        world.run(60)
        assert (world.reason, world.share("v2")) == ("ProviderError", 10)
        world.run(600)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_one_of_two_objects_is_missing(self) -> None:
        world = on_two(10, rollout={"progressDeadline": "2m"})
        del world.services["gateway"]
        world.run(60)
        assert (world.phase, world.reason) == (Phase.BLOCKED, "VirtualServiceNotFound")
        assert world.share("v2") == 10
        world.run(180)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_another_rollout_claims_the_host(self) -> None:
        world = at(10, rollout=spec(progressDeadline="2m"))
        world.claims = (RIVAL,)
        world.run(60)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "HostClaimed", 10)
        world.run(180)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_an_object_has_lost_the_host(self) -> None:
        world = at(10, rollout=spec(progressDeadline="2m"))
        world.edit("reviews", lambda mesh: mesh.update(hosts=["ratings"]))
        world.run(60)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.BLOCKED, "HostsChanged", 10)
        world.run(180)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_the_destination_rule_is_missing(self) -> None:
        world = at(10, rollout=spec(progressDeadline="2m"))
        world.rule = None
        world.run(60)
        assert (world.phase, world.reason, written(world)) == (Phase.BLOCKED, "DestinationRuleNotFound", 10)
        world.run(180)
        assert (written(world), world.record.reason) == (0, "DeadlineExceeded")

    def test_while_a_lost_subset_cannot_be_put_back(self) -> None:
        listed = {"virtualServices": [{"name": "gateway"}], "destinationRule": {"name": "reviews"}}
        services = {"gateway": virtual_service("gateway")}
        world = at(10, rollout=spec(progressDeadline="2m", istio=listed), services=services)
        world.refusing = frozenset({"reviews"})
        assert world.rule is not None
        world.rule["spec"]["subsets"] = world.rule["spec"]["subsets"][:1]
        world.run(60)
        assert (world.reason, written(world, "gateway")) == ("AddingSubset", 10)
        world.run(180)
        assert (written(world, "gateway"), world.record.reason) == (0, "DeadlineExceeded")

    def test_while_the_canary_has_too_few_endpoints_for_more(self) -> None:
        world = at(10, rollout=spec(readiness={"minReady": 2}))
        world.ready = {"v1": 2, "v2": 1}
        world.run(300)
        assert (world.reason, world.share("v2")) == ("CanaryNotReady", 10)
        world.run(600)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_while_a_promotion_waits_for_endpoints(self) -> None:
        world = at(10, rollout=spec(readiness={"minReady": 2}))
        world.ready, world.command = {"v1": 2, "v2": 1}, "promote/v2/1"
        world.run(900)
        assert ended(world) == (0, "DeadlineExceeded")

    def test_it_stands_still_in_a_pause_before_the_gates_pass(self) -> None:
        scarce = ANALYSIS | {"minRequests": 100_000}
        world = at(10, rollout=spec(analysis=scarce))
        world.apply(paused=True)
        world.run(3600)
        assert (world.share("v2"), world.state.deadline) == (10, None)
        assert world.record.awaiting_since is not None
        world.apply(paused=False)
        world.run(60)
        assert 3590 <= world.record.awaited_seconds <= 3610
        assert world.share("v2") == 10
        assert world.state.deadline is not None


class TestClaimedHost:
    """Another rollout judges the host; the canary is watched all the same."""

    def claimed(self) -> WatchedWorld:
        world = at(10)
        world.claims = (RIVAL,)
        world.run(20)
        assert world.reason == "HostClaimed"
        return world

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_canary_without_endpoints_is_taken_back(self, restarted: bool) -> None:
        world = self.claimed()
        world.ready, world.restarted = {"v1": 2}, restarted
        world.run(until=lambda w: w.state.rollout is not None and w.state.rollout.reason != "")
        assert written(world) == 0, "in the pass that decides so"
        world.run(20)
        assert ended(world) == (0, "CanaryUnready")

    def test_a_failing_canary_is_taken_back(self) -> None:
        world = self.claimed()
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(30)
        assert ended(world) == (0, "GateFailed")


def test_a_rule_that_cannot_be_read_leaves_the_phase_as_it_is() -> None:
    world = at(10)
    world.rule_unread = True
    world.run(10)
    assert (world.phase, world.reason, world.state.message) == (Phase.PROGRESSING, "MeshUnreadable", "timeout")


@pytest.mark.parametrize("gone", [True, False])
def test_a_rule_that_was_gone_begins_the_hold_anew_and_one_that_was_not_read_does_not(gone: bool) -> None:
    world = at(10)
    world.run(25)
    kept = world.rule
    world.rule, world.rule_unread = None if gone else kept, not gone
    world.step()
    world.rule, world.rule_unread = kept, False
    back = world.now
    world.run(until=lambda w: w.share("v2") == 30)
    assert (world.now - back >= timedelta(seconds=30)) is gone


def test_traffic_may_disagree_for_three_intervals() -> None:
    world = at(10, rollout=spec(analysis=ANALYSIS | {"interval": "60s"}, hold="1h", progressDeadline="2h"))
    world.show(60)
    applied = world.record.applied_at
    world.run(600, until=lambda w: "ShareContradicts" in w.events)
    since = world.record.in_effect_at
    assert applied is not None
    assert since is not None
    assert timedelta(seconds=180) <= since - applied < timedelta(seconds=245)


def test_a_step_is_compared_with_stable_in_the_steps_before_it() -> None:
    world = WatchedWorld(rollout=spec(analysis=ANALYSIS | {"errorRate": {"maxRelative": "150%"}}))
    world.run()
    assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")


def test_at_all_the_traffic_a_pause_holds_nothing_back() -> None:
    world = at(100)
    world.apply(paused=True)
    world.run(300)
    assert world.state.stable_version == "v2"


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_found_of_traffic_is_shown_again_where_it_was_lost(restarted: bool) -> None:
    world = at(10, rollout=spec(hold="5m"))
    world.run(30)
    before = world.condition("TrafficConverged")
    assert before.reason == "Converged"
    world.status["conditions"] = [c for c in world.status["conditions"] if c["type"] != "TrafficConverged"]
    world.restarted = restarted
    world.step()
    found = world.condition("TrafficConverged")
    assert (found.status, found.reason) == ("True", "Converged")
    assert found.message == ("" if restarted else before.message)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"paused": True}, "Paused"), ({"steps": [{"weight": 10, "approval": "Required"}, {"weight": 100}]}, "Approval")],
)
def test_who_waits_for_a_person_writes_nothing_meanwhile(fields: dict[str, Any], reason: str) -> None:
    world = at(10)
    world.apply(**fields)
    world.run(300)
    assert world.reason.endswith(reason)
    before = len(world.writes)
    world.run(600)
    assert len(world.writes) == before


def test_a_promotion_waits_for_the_endpoints_that_it_needs() -> None:
    world = at(10, rollout=spec(readiness={"minReady": 2}))
    world.ready, world.command = {"v1": 2, "v2": 1}, "promote/v2/1"
    world.run(30)
    assert (world.reason, world.share("v2"), world.record.target) == ("CanaryNotReady", 10, None)
    assert "gets no more traffic" not in " ".join(decision.status.message for decision in world.decisions)


def test_a_rollback_that_nobody_wrote_down_is_finished_in_a_pause_too() -> None:
    world = at(10)
    world.apply(paused=True)
    world.run(120)
    assert world.record.awaiting_since is not None
    world.command, world.crash_at, world.crash_after = "abort/v2/1", len(world.writes) + 1, True
    world.run(1)
    assert world.share("v2") == 0
    world.command, world.restarted = "", True
    world.run(10)
    assert world.phase is Phase.ROLLING_BACK
    world.restarted = False
    assert world.run(60).phase is Phase.ROLLED_BACK


def test_after_a_restart_it_is_not_known_yet_whether_the_provider_answers() -> None:
    world = at(10)
    world.restarted = True
    world.step()
    condition = world.condition("AnalysisHealthy")
    assert (condition.status, condition.reason) == ("Unknown", "AwaitingData")


class Unanswerable(WatchedWorld):
    """A world whose provider cannot answer the user's own queries with one number."""

    def _reading(self, name: str, at: datetime) -> MetricReading:
        return MetricReading(at, MetricValue(None, at, "it answers with two series", "BadQuery"))


def test_a_query_that_can_never_be_judged_is_shown_as_what_keeps_the_step() -> None:
    metrics = [{"name": "checkout", "query": "q", "max": "5"}]
    world = Unanswerable(rollout=spec(analysis=ANALYSIS | {"metrics": metrics}))
    world.run(60)
    condition = world.condition("AnalysisHealthy")
    assert (world.share("v2"), condition.status, condition.reason) == (10, "False", "BadQuery")
    assert condition.message == "checkout: it answers with two series"


@pytest.mark.parametrize("warnings", [(), ("store eu-1 is away",)])
def test_silence_takes_a_canary_back_unless_it_may_be_in_the_part_that_is_missing(warnings: tuple[str, ...]) -> None:
    world = at(10, rollout=spec(analysis=ANALYSIS | {"onNoData": "Rollback"}), canary_seen=False)
    world.warnings = warnings
    world.run(180)
    assert (world.share("v2") == 0) is (not warnings)
    assert (world.record.reason == "NoData") is (not warnings)


def test_traffic_beyond_the_weight_on_one_route_is_answered_at_once_however_few_endpoints_there_are() -> None:
    world = on_two(30, rollout={"hold": "5m", "readiness": {"minReady": 2}})
    world.edit("reviews", set_to(("v1", 95), ("v2", 5)))
    world.edit("gateway", set_to(("v1", 40), ("v2", 60)))
    world.ready = {"v1": 2, "v2": 1}
    world.step()
    world.step()
    assert max(world.shares("v2")) == 30


class Slow(WatchedWorld):
    """A world whose provider has one of two answers before the other."""

    lacking: str = ""

    def _evidence(self, request: EvidenceRequest | None) -> Evidence | None:
        which = "opening" if request is not None and request.until is not None else "evidence"
        return None if which == self.lacking else super()._evidence(request)


@pytest.mark.parametrize(
    ("lacking", "seconds", "reason"),
    [("opening", 60, ""), ("evidence", 60, ""), ("", 60, "RollbackResumed"), ("evidence", 5, "RollbackResumed")],
)
def test_who_finishes_a_rollback_asks_why_as_long_as_an_answer_may_tell(
    lacking: str, seconds: int, reason: str
) -> None:
    world = Slow(rollout=spec(hold="5m"))
    world.run(until=lambda w: w.share("v2") == 30 and w.state.weight == 30)
    world.run(seconds)
    world.edit("reviews", set_to(("v1", 100), ("v2", 0)), OURS)
    world.lacking = lacking
    world.step()
    assert (world.phase, world.record.reason) == (Phase.ROLLING_BACK, reason)


def test_a_rollback_that_another_route_still_waits_for_asks_nobody_why() -> None:
    world = on_two(30, rollout={"hold": "5m"})
    world.run(60)
    world.edit("reviews", set_to(("v1", 100), ("v2", 0)), OURS)
    world.restarted = True
    world.step()
    assert (world.shares("v2"), world.record.reason) == ([0, 0], "RollbackResumed")


def test_the_first_weight_is_told_from_none_at_all() -> None:
    world = at(2, rollout=spec(steps=[{"weight": 2}, {"weight": 100}]))
    world.run(16)
    assert world.record.convergence == "Converged"


def test_the_time_in_which_a_person_was_awaited_counts_for_the_step_that_waited() -> None:
    world = at(10, rollout=spec(steps=[{"weight": 10, "approval": "Required"}, {"weight": 100}]))
    world.run(600)
    assert world.reason == "AwaitingApproval"
    world.command = "approve/v2/1"
    world.run(until=lambda w: w.share("v2") == 100)
    assert world.record.awaited_seconds == 0


def test_a_step_that_passed_leaves_no_contest_to_the_next() -> None:
    world = at(10)
    world.edit("reviews", set_to(("v1", 100), ("v2", 0)))
    world.run(60, until=lambda w: w.share("v2") == 10)
    assert world.state.contest is not None
    world.run(until=lambda w: w.share("v2") == 30)
    assert world.state.contest is None
