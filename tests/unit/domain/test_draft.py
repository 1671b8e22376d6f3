"""What status, history and conditions show of a decision, and that moving counters alone write nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, HistoryEntry, Phase
from canaryrollout.domain.decision import AddSubset, SetFinalizer
from canaryrollout.domain.draft import HISTORY_LENGTH, Draft, situation
from canaryrollout.domain.observation import DestinationRuleState, Failure, Identity, Observation
from tests.unit.domain.watchedworld import WatchedWorld
from tests.world import NAMESPACE, SETTINGS, START, World, destination, spec, virtual_service


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def conditions(world: World) -> dict[str, str]:
    return {c.type: c.status for c in world.state.conditions if c.type in ("Ready", "Reconciling", "Stalled")}


class TestConditions:
    """What `kubectl wait`, Flux and Argo CD go by."""

    @pytest.mark.parametrize("until", [Phase.PREPARING, Phase.PROGRESSING, Phase.PROMOTING])
    def test_a_rollout_under_way_reconciles_and_is_not_ready(self, until: Phase) -> None:
        world = World().run(until=lambda w: w.phase is until)
        assert conditions(world) == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}

    def test_the_wanted_version_is_ready_once_it_serves(self) -> None:
        assert conditions(World().run()) == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}

    def test_a_stable_version_that_is_not_the_wanted_one_is_not_ready(self) -> None:
        world = World()
        world.step()
        assert world.phase is Phase.STABLE
        assert conditions(world) == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}

    @pytest.mark.parametrize("make", [lambda: World(services={}), lambda: World(ready={"v1": 2})])
    def test_what_only_a_person_can_bring_forward_is_stalled(self, make: Any) -> None:
        world = make().run(1200)
        assert world.phase in (Phase.BLOCKED, Phase.ROLLED_BACK)
        assert conditions(world) == {"Ready": "False", "Reconciling": "False", "Stalled": "True"}

    def test_the_time_of_a_condition_is_that_of_its_last_change(self) -> None:
        world = World().run(until=lambda w: w.phase is Phase.PREPARING)
        since = world.condition("Reconciling").last_transition_time
        world.run(until=lambda w: w.share("v2") == 30)
        assert world.condition("Reconciling").last_transition_time == since
        world.run()
        assert world.condition("Reconciling").last_transition_time > since

    def test_an_edited_spec_is_marked_as_seen(self) -> None:
        world = at(10)
        world.apply(hold="40s")
        world.step()
        assert world.state.observed_generation == world.generation
        assert {world.condition(kind).observed_generation for kind in conditions(world)} == {world.generation}


class TestColumns:
    """What `kubectl get` shows."""

    def test_under_way(self) -> None:
        state = at(30).state
        assert (state.canary_version, state.step, state.weight) == ("v2", "2/4", 30)
        assert state.deadline is not None
        assert state.analysis is not None
        assert (state.analysis.provider, state.analysis.gates) == ("default", ("errorRate",))

    def test_what_the_gates_say_of_the_weight_in_force(self) -> None:
        state = at(30).run(20).state
        assert state.verdict == "Pass"
        assert [gate.name for gate in state.gates] == ["errorRate"]
        assert state.evidence

    def test_at_rest(self) -> None:
        state = World().run().state
        assert (state.canary_version, state.step, state.weight, state.deadline) == (None, "", None, None)
        assert (state.gates, state.evidence, state.verdict) == ((), "", "")

    def test_after_a_rollback_with_the_numbers_that_decided_it(self) -> None:
        world = at(10)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        state = world.run().state
        assert (state.phase, state.canary_version, state.step, state.weight) == (Phase.ROLLED_BACK, "v2", "", 0)
        assert state.deadline is None
        assert state.verdict == "Fail"
        assert state.gates[0].verdict == "Fail"
        assert state.evidence

    def test_a_rollback_has_no_deadline(self) -> None:
        world = at(30)
        world.command = "abort/v2/1"
        world.step()
        assert world.state.deadline is None


def test_counters_that_move_write_no_status() -> None:
    world = at(10, rollout=spec(hold="10m"))
    world.run(60)
    before = world.writes.count("status")
    world.run(300)
    assert world.writes.count("status") == before


def test_another_reason_for_the_same_wait_is_written() -> None:
    world = World(ready={"v1": 2}).run(30)
    world.ready = {"v1": 2, "v2": 1}
    world.apply(readiness={"minReady": 2})
    world.run(6)
    assert world.state.message == "waiting for ready endpoints of v2: 1 of 2"


def test_history_keeps_the_newest_transitions() -> None:
    world = at(10, rollout=spec(hold="1h", progressDeadline="10h"))
    for token in range(HISTORY_LENGTH + 5):
        world.command = f"approve/v2/{token}"
        world.step()
    history = world.state.history
    assert len(history) == HISTORY_LENGTH == 20
    assert history[-1].message.startswith("approve/v2/24: ")
    assert history[-1].time == world.now
    assert (history[-1].version, history[-1].weight) == ("v2", 10)


def test_what_blocks_is_told_once_for_as_long_as_it_does() -> None:
    world = World(services={}).run(300)
    assert world.events.count("VirtualServiceNotFound") == 1
    world.services["reviews"] = virtual_service("reviews", {"route": [destination("v1")]})
    world.run(until=lambda w: w.share("v2") == 10)
    kept = world.services.pop("reviews")
    world.run(30)
    world.services["reviews"] = kept
    assert world.events.count("VirtualServiceNotFound") == 2


def test_a_write_that_is_not_accepted_is_in_the_message() -> None:
    world = at(10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.failures))
    decision = world.step()
    assert world.state.message == "giving v2 30 %; not yet accepted: refused by a webhook"
    assert not decision.again
    assert decision.wake_at is not None
    assert decision.wake_at - world.now <= timedelta(seconds=1)


def test_a_step_that_is_late_and_waits_for_a_person_is_stalled_and_does_not_reconcile() -> None:
    scarce = {"interval": "10s", "minRequests": 100_000}
    world = World(rollout=spec(onDeadline="Hold", analysis=scarce)).run(1800)
    assert (world.phase, world.reason) == (Phase.PROGRESSING, "DeadlineExceeded")
    assert conditions(world) == {"Ready": "False", "Reconciling": "False", "Stalled": "True"}


@pytest.mark.parametrize("mode", ["Sequential", "Threshold"])
def test_the_mode_in_force_is_shown(mode: str) -> None:
    analysis = {"mode": mode} if mode == "Threshold" else {}
    world = World(rollout=spec(analysis=analysis))
    world.step()
    assert world.state.analysis is not None
    assert world.state.analysis.mode == mode


def test_a_mesh_that_cannot_be_read_for_ever_new_reasons_is_written_once_for_the_same_words() -> None:
    world = WatchedWorld(ready={"v1": 2})
    world.run(30)
    world.excuse = lambda: f"timeout after {world.passes} ms"
    world.api = False
    world.run(30)
    assert world.reason == "MeshUnreadable"
    before = world.writes.count("status")
    world.run(60)
    assert world.writes.count("status") == before


def test_a_gate_that_is_added_while_nothing_else_changes_is_shown() -> None:
    world = at(10, rollout=spec(hold="10m")).run(40)
    assert world.reason == "Holding"
    analysis = {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}}
    world.apply(analysis=analysis | {"latency": {"threshold": "500ms", "maxSlow": "1%"}})
    world.step()
    assert (world.reason, [gate.name for gate in world.state.gates]) == ("Holding", ["errorRate", "latency"])


def test_an_edited_spec_is_shown_with_its_own_numbers() -> None:
    world = at(10, rollout=spec(hold="10m")).run(40)
    before = world.state.message
    assert "held until" in before
    world.apply(hold="20m")
    world.step()
    assert world.reason == "Holding"
    assert world.state.message != before


def test_a_condition_says_what_is_so_now() -> None:
    world = at(10, rollout=spec(hold="10m")).run(40)
    for store in ("eu", "us"):
        world.warnings = (f"store {store} is away",)
        world.run(20)
        assert world.condition("AnalysisHealthy").message == f"store {store} is away"


def test_a_verdict_ends_with_what_it_was_about() -> None:
    world = at(10)
    world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
    world.run()
    assert world.state.verdict == "Fail"
    world.command = "retry/v2/1"
    world.step()
    assert (world.phase, world.state.verdict, world.state.gates) == (Phase.PREPARING, "", ())


class TestWriteFailed:
    """What lastingly cannot be written is told."""

    def draft(self, *history: str, **failures: int) -> Draft:
        identity = Identity(NAMESPACE, "reviews", "uid-1", 1, START, finalizer=False)
        found = {name: Failure(count, "refused by a webhook", START) for name, count in failures.items()}
        entries = tuple(HistoryEntry(time=START, reason=reason) for reason in history)
        status = CanaryRolloutStatus(stable_version="v1", history=entries)
        seen = Observation(identity, failures={name.replace("_", "/"): failure for name, failure in found.items()})
        return Draft(situation(spec(), status, seen, START, SETTINGS))

    def told(self, draft: Draft) -> list[str]:
        rule = DestinationRuleState("reviews", 1, ())
        actions = (SetFinalizer(True), AddSubset(rule, "v2", "v2", "version", None))
        return [event.reason for event in draft.move(Phase.PREPARING, "x", "y", actions=actions).events]

    @pytest.mark.parametrize(
        ("failures", "told"),
        [
            ({}, []),
            ({"AddSubset_reviews": 1}, []),
            ({"AddSubset_reviews": 2}, ["WriteFailed"]),
            ({"AddSubset_reviews": 2, "SetFinalizer": 1}, ["WriteFailed"]),
            ({"SetWeights_reviews": 9}, []),
        ],
    )
    def test_once_may_happen_to_anybody_and_twice_is_lasting(self, failures: dict[str, int], told: list[str]) -> None:
        assert self.told(self.draft("RolloutStarted", **failures)) == told

    @pytest.mark.parametrize(
        ("history", "told"),
        [((), True), (("WriteFailed",), False), (("WriteFailed", "WeightSet"), True), (("WeightSet",), True)],
    )
    def test_until_something_else_has_happened_it_is_told_once(self, history: tuple[str, ...], told: bool) -> None:
        assert (self.told(self.draft(*history, AddSubset_reviews=3)) == ["WriteFailed"]) is told


def test_a_gate_that_passes_while_the_whole_does_not_is_shown_as_one() -> None:
    metrics = [{"name": "checkout", "query": "q", "max": "5"}]
    analysis = {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}, "metrics": metrics}
    world = at(10, rps=10, rollout=spec(analysis=analysis), metric=lambda name, at: None)
    world.show(60)
    seen = set()

    def looked(world: World) -> bool:
        if world.reason == "Converging" and world.state.gates:
            seen.add((world.state.verdict, *(gate.verdict.value for gate in world.state.gates)))
        return False

    world.run(33, until=looked)
    assert {("Inconclusive", "Inconclusive", "Inconclusive"), ("Inconclusive", "Pass", "Inconclusive")} <= seen


def test_counts_that_move_leave_a_condition_as_it_is() -> None:
    world = at(10, rps=1)
    messages: list[str] = []

    def looked(world: World) -> bool:
        messages.extend(c.message for c in world.state.conditions if c.type == "TrafficConverged")
        return False

    world.run(30, until=looked)
    counted = {message for message in messages if "of at least 73 requests" in message}
    assert len(counted) == 1


def test_what_is_ready_and_what_is_not_say_what_the_message_says() -> None:
    world = World(ready={"v1": 2}, rollout=spec(readiness={"minReady": 3})).run(30)
    for ready in (1, 2):
        world.ready = {"v1": 2, "v2": ready}
        world.run(6)
        assert world.state.message == f"waiting for ready endpoints of v2: {ready} of 3"
        assert {world.condition(kind).message for kind in conditions(world)} == {world.state.message}


def test_history_tells_of_which_version_before_there_is_a_rollout() -> None:
    first = World().run(20).state.history[0]
    assert (first.reason, first.version, first.weight) == ("StableVersionFound", "v1", None)
