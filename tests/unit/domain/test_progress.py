"""A canary with traffic: weights in effect, a provider that is away, and data that does not come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import HistoryEntry, Phase, RolloutRecord
from tests.world import START, World, destination, spec

ANALYSIS: dict[str, Any] = {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}}


def at(weight: int, **fields: Any) -> World:
    """Return a world in which the canary has just got this weight."""
    return World(**fields).run(until=lambda w: w.share("v2") == weight and w.state.weight == weight)


def contradicted(**analysis: Any) -> World:
    """Return a world in which weight 10 was written, and traffic shows 60 %."""
    world = at(10, rollout=spec(analysis=ANALYSIS | analysis))
    world.show(60)
    return world


def record(world: World) -> RolloutRecord:
    found = world.state.rollout
    assert found is not None
    return found


def in_effect(world: World) -> bool:
    return world.state.rollout is not None and world.state.rollout.in_effect_at is not None


def noted(world: World, reason: str) -> list[HistoryEntry]:
    return [entry for entry in world.state.history if entry.reason == reason]


class TestConvergence:
    """The clock of a step starts when traffic shows its weight, or does not for long."""

    def test_a_share_that_contradicts_the_weight_is_a_finding_with_its_numbers(self) -> None:
        world = contradicted().run(until=in_effect)
        condition = world.condition("TrafficConverged")
        assert (condition.status, condition.reason) == ("False", "ShareContradicts")
        assert "(60.0 %) at weight 10" in condition.message
        assert [entry.message for entry in noted(world, "ShareContradicts")] == [
            f"{condition.message}; looking for 30s did not change that"
        ]
        assert world.events.count("ShareContradicts") == 1
        assert world.run().phase is Phase.STABLE

    def test_the_numbers_stay_while_the_step_lasts(self) -> None:
        world = at(10, rollout=spec(hold="10m"))
        world.run(until=in_effect)
        condition = world.condition("TrafficConverged")
        assert (condition.status, condition.reason) == ("True", "Converged")
        assert "(10.0 %) at weight 10" in condition.message
        world.run(120)
        world.api = False
        world.run(20)
        assert world.condition("TrafficConverged") == condition
        world.api = True
        assert world.run(60).condition("TrafficConverged") == condition

    def test_too_little_traffic_starts_the_analysis_where_the_evidence_starts(self) -> None:
        world = at(10, rps=1, rollout=spec(progressDeadline="1h"))
        applied = record(world).applied_at
        assert applied is not None
        world.run(until=in_effect)
        assert record(world).in_effect_at == applied + timedelta(seconds=1)
        condition = world.condition("TrafficConverged")
        assert (condition.status, condition.reason) == ("Unknown", "TooLittleTraffic")
        assert condition.message.endswith("of at least 73 requests to tell whether weight 10 is in effect")

    def test_an_outage_is_not_too_little_traffic(self) -> None:
        world = at(10)
        world.prometheus = False
        world.run(120)
        assert not in_effect(world)
        assert world.reason == "ProviderError"
        world.prometheus = True
        world.run(until=in_effect)
        assert record(world).convergence == "Converged"

    @pytest.mark.parametrize(
        ("make", "reason", "words"),
        [
            (lambda: contradicted(requireConvergence="Required"), "ShareContradicts", "(60.0 %) at weight 10"),
            (
                lambda: at(10, rps=1, rollout=spec(analysis=ANALYSIS | {"requireConvergence": "Required"})),
                "TooLittleTraffic",
                "of at least 73 requests",
            ),
        ],
    )
    def test_required_holds_instead_under_the_deadline(
        self, make: Callable[[], World], reason: str, words: str
    ) -> None:
        world = make()
        world.run(45)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PROGRESSING, reason, 10)
        assert words in world.state.message
        assert world.state.message.endswith("analysis.requireConvergence is Required")
        assert world.state.deadline is not None
        assert words in world.condition("TrafficConverged").message
        assert not in_effect(world)

    def test_required_ends_at_the_deadline(self) -> None:
        world = contradicted(requireConvergence="Required").run()
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")
        assert "(60.0 %) at weight 10" in record(world).explanation
        assert len(noted(world, "ShareContradicts")) == 1

    def test_required_goes_on_once_traffic_shows_the_weight(self) -> None:
        world = contradicted(requireConvergence="Required").run(300)
        world.show(None)
        assert world.run().phase is Phase.STABLE

    def test_required_no_more_starts_the_analysis(self) -> None:
        world = contradicted(requireConvergence="Required").run(120)
        world.apply(analysis=ANALYSIS)
        assert world.run().phase is Phase.STABLE


class TestOutage:
    """A provider that is away holds the step, says since when, and hinders no way back."""

    def test_status_says_since_when_and_that_it_is_over(self) -> None:
        world = at(10, rollout=spec(hold="5m")).run(60)
        away = world.now
        world.prometheus = False
        world.run(120)
        words = f"no evidence from provider default since {away:%H:%M:%S} UTC: connection refused"
        assert (world.reason, world.state.message) == ("ProviderError", f"v2 at 10 %: {words}")
        condition = world.condition("AnalysisHealthy")
        assert (condition.status, condition.reason, condition.message) == ("False", "ProviderError", words)
        world.prometheus = True
        world.run(60)
        assert world.condition("AnalysisHealthy").status == "True"
        assert [entry.message for entry in noted(world, "ProviderBack")] == [
            f"provider default gives evidence again; there was none since {condition.last_transition_time:%H:%M:%S} UTC"
        ]
        assert world.run().phase is Phase.STABLE

    def test_flapping_does_not_flood_history(self) -> None:
        world = at(10, rollout=spec(hold="30m", progressDeadline="2h")).run(60)
        for _ in range(20):
            world.prometheus = False
            world.run(30)
            world.prometheus = True
            world.run(30)
        assert len(noted(world, "ProviderBack")) == 1
        assert world.events.count("ProviderBack") == 1

    def test_a_restart_makes_an_outage_no_newer(self) -> None:
        world = at(10, rollout=spec(hold="5m")).run(60)
        world.prometheus = False
        world.run(60)
        message, condition = world.state.message, world.condition("AnalysisHealthy")
        world.restarted = True
        world.run(20)
        assert (world.state.message, world.condition("AnalysisHealthy")) == (message, condition)
        world.restarted, world.away_since = False, world.now
        world.run(20)
        assert world.state.message == message

    @pytest.mark.parametrize(("policy", "phase"), [("Rollback", Phase.ROLLED_BACK), ("Hold", Phase.PROGRESSING)])
    def test_the_deadline_policy_decides_while_it_is_away(self, policy: str, phase: Phase) -> None:
        world = at(10, rollout=spec(onDeadline=policy))
        world.prometheus = False
        world.run(1800)
        assert (world.phase, world.reason) == (phase, "DeadlineExceeded")
        assert world.share("v2") == (0 if policy == "Rollback" else 10)
        assert "no evidence from provider default since" in world.state.message
        world.prometheus = True
        assert world.run().phase is (Phase.ROLLED_BACK if policy == "Rollback" else Phase.STABLE)

    @pytest.mark.parametrize(
        "happening",
        [
            lambda world: setattr(world, "command", "abort/v2/1"),
            lambda world: world.apply(version="v1"),
            lambda world: world.apply(version="v3"),
            lambda world: setattr(world, "deleting", True),
        ],
        ids=["abort", "spec back", "third version", "deleted"],
    )
    def test_a_rollback_never_waits_for_it(self, happening: Callable[[World], None]) -> None:
        world = at(30)
        world.prometheus = False
        world.run(60)
        happening(world)
        world.step()
        assert world.share("v2") == 0

    def test_a_canary_that_dies_meanwhile_is_taken_back_after_its_grace(self) -> None:
        world = at(30)
        world.prometheus = False
        world.run(60)
        world.ready = {"v1": 2, "v2": 0}
        lost = world.now
        world.run(until=lambda w: w.share("v2") == 0)
        assert world.now - lost <= timedelta(seconds=16)
        assert record(world).reason == "CanaryUnready"


def silent_after(moment: timedelta) -> Callable[[str, datetime], int | None]:
    """Return a metric that has no data from some time after the start on."""
    return lambda name, at: 1 if at < START + moment else None


class TestNoData:
    """What silence means is said for the analysis, and for each metric otherwise."""

    @pytest.mark.parametrize(
        ("own", "general", "phase"),
        [
            (None, "Rollback", Phase.ROLLED_BACK),
            (None, "Hold", Phase.PROGRESSING),
            ("Rollback", "Hold", Phase.ROLLED_BACK),
            ("Hold", "Rollback", Phase.PROGRESSING),
        ],
    )
    def test_a_metrics_own_policy_decides_on_it(self, own: str | None, general: str, phase: Phase) -> None:
        metric = {"name": "checkouts", "query": "up", "max": "5"} | ({"onNoData": own} if own else {})
        world = World(
            rollout=spec(analysis=ANALYSIS | {"onNoData": general, "metrics": [metric]}, progressDeadline="1h"),
            metric=silent_after(timedelta()),
        )
        world.run(300)
        assert world.phase is phase
        assert world.share("v2") == (0 if phase is Phase.ROLLED_BACK else 10)
        if phase is Phase.ROLLED_BACK:
            assert record(world).reason == "NoData"
            assert "onNoData is Rollback: checkouts" in record(world).explanation

    def test_a_metrics_policy_says_nothing_on_the_built_in_gates(self) -> None:
        metric = {"name": "checkouts", "query": "up", "max": "5", "onNoData": "Rollback"}
        world = World(rollout=spec(analysis=ANALYSIS | {"metrics": [metric]}, progressDeadline="1h"), canary_seen=False)
        world.run(300)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PROGRESSING, "NoData", 10)

    def test_what_was_not_asked_yet_is_not_silence(self) -> None:
        """A step that waits for a person, long after its hold, when the operator restarts."""
        metric = {"name": "checkouts", "query": "up", "max": "5"}
        steps = [{"weight": 50, "approval": "Required"}, {"weight": 100}]
        analysis = ANALYSIS | {"onNoData": "Rollback", "metrics": [metric]}
        world = World(rollout=spec(steps=steps, analysis=analysis)).run(1800)
        assert world.reason == "AwaitingApproval"
        world.restarted = True
        world.run(20)
        assert world.share("v2") == 50
        world.restarted = False
        world.run(20)
        assert (world.reason, world.share("v2")) == ("AwaitingApproval", 50)


def test_what_a_step_passed_on_is_not_held_against_the_canary_again_while_its_weight_is_raised() -> None:
    def rate(version: str, weight: int, at: datetime) -> float:
        return 0.014 if version == "v2" else 0.0

    world = World(error_rate=rate, rps=2000)
    world.run(until=lambda w: w.share("v2") == 10)
    world.refusing = frozenset({"reviews"})
    world.run(until=lambda w: bool(w.state.rollout and w.state.rollout.finished))
    assert world.state.rollout is not None
    (passed,) = world.state.rollout.finished
    evidence = float(passed.evidence["errorRate max 1%"])
    assert evidence > 2, "something speaks against it, too little to fail"
    world.step()
    assert world.share("v2") == 10, "the raise is refused"
    (limit,) = world.state.gates[0].limits
    assert float(limit.evidence) == pytest.approx(evidence, rel=0.05)


class TestRollbackCutShort:
    """An operator took the traffic back and died before it could say why."""

    @staticmethod
    def cut_short(**fields: Any) -> World:
        """Return a world whose operator died once its rollback was in the mesh; the next one has no evidence."""
        world = at(30, rollout=spec(hold="5m", **fields)).run(60)
        world.error_rate = lambda version, weight, _: 0.5 if version == "v2" and weight == 30 else 0.0
        world.crash_at, world.crash_after = len(world.writes) + 1, True
        world.run(120, until=lambda w: w.share("v2") == 0)
        world.restarted = True
        assert (world.phase, world.share("v2")) == (Phase.PROGRESSING, 0)
        return world

    def test_the_evidence_tells_its_successor_why(self) -> None:
        world = self.cut_short()
        world.run(10)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.ROLLING_BACK, "RollbackResumed", 0)
        assert world.state.message == "v2 has no traffic any more; asking provider default why"
        assert not record(world).reason
        world.restarted = False
        world.run()
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "GateFailed")
        assert "150 of 300 requests of the canary failed" in record(world).explanation
        assert "RollbackResumed" not in world.events

    def test_the_end_is_that_of_a_life_without_the_kill(self) -> None:
        cut, whole = self.cut_short(), at(30, rollout=spec(hold="5m")).run(60)
        whole.error_rate = cut.error_rate
        cut.run(3)
        cut.restarted = False
        assert cut.run().state.message == whole.run().state.message

    @pytest.mark.parametrize("silent", ["nothing speaks against it", "the provider is away"])
    def test_where_nothing_tells_the_rollback_ends_without_a_reason(self, silent: str) -> None:
        world = self.cut_short()
        world.error_rate = lambda *_: 0.0
        world._counted.clear()
        if silent == "the provider is away":
            world.away_since = record(world).applied_at
        world.restarted = False
        world.run()
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "RollbackResumed")
        assert world.share("v2") == 0

    def test_the_answer_is_awaited_no_longer_than_the_step_may_take(self) -> None:
        world = self.cut_short(progressDeadline="1m")
        world.run(3600)
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "RollbackResumed")
        assert record(world).ended_at is not None

    def test_traffic_that_is_still_there_is_taken_back_first(self) -> None:
        world = self.cut_short()
        route = world.services["reviews"]["spec"]["http"][0]["route"]
        route[0]["weight"], route[1]["weight"] = 80, 20  # as where another of its routes was not reached
        world.step()
        assert (world.share("v2"), world.reason) == (0, "RollbackResumed")
        assert record(world).reason == "RollbackResumed"

    def test_a_weight_without_evidence_yet_is_not_asked_about(self) -> None:
        world = at(30, rollout=spec(hold="5m"))
        route = world.services["reviews"]["spec"]["http"][0]["route"]
        route[0]["weight"], route[1]["weight"] = 100, 0
        world.step()
        assert record(world).reason == "RollbackResumed"


def test_at_the_last_step_errors_are_compared_with_what_the_stable_version_had_in_the_steps_before() -> None:
    """It has no requests any more."""
    analysis = {"interval": "10s", "minRequests": 100, "errorRate": {"maxRelative": "100%"}}
    world = World(rollout=spec(analysis=analysis))
    world.error_rate = lambda version, weight, now: 0.08 if (version, weight) == ("v2", 100) else 0.01
    world.run(until=lambda w: w.share("v2") == 100)
    assert world.run().phase is Phase.ROLLED_BACK
    record = world.state.rollout
    assert record is not None
    assert record.reason == "GateFailed"
    assert record.explanation.startswith("at 100 %: ")


def test_a_contest_is_forgotten_once_the_weights_have_stayed() -> None:
    world = at(10)
    world.apply(paused=True)
    world.edit("reviews", lambda mesh: mesh["http"][0].update(route=[destination("v1", 95), destination("v2", 5)]))
    world.run(60)
    assert (world.share("v2"), world.events.count("WeightReasserted")) == (10, 1)
    assert "contest" in world.status
    world.run(3600)
    assert "contest" not in world.status
