"""What the provider has to be able to tell before the canary gets its first request."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Baseline, Phase
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, Preflight, PreflightRequest
from canaryrollout.domain.needs import needs
from tests.unit.domain.watchedworld import WatchedWorld
from tests.world import HOST, SETTINGS, START, World, spec

MINUTE = timedelta(minutes=1)
EDGE = "analysis.latency.threshold 300ms is no bucket edge; the nearest: 250ms or 500ms"


def untouched(world: World) -> bool:
    """Return whether no mesh object was ever written."""
    return not [write for write in world.writes if "/" in write]


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        ({"refused": "provider default is not for namespace shop"}, "ProviderRefused", "is not for namespace shop"),
        ({"edge_problem": EDGE}, "LatencyThreshold", EDGE),
        ({"versions": ("latest", "v9")}, "MetricsLabels", f"series of requests to {HOST} for 'latest', 'v9', and none"),
        ({"versions": ()}, "MetricsLabels", "for no version, and none for the stable version 'v1'"),
    ],
)
class TestObjection:
    """What keeps the provider from judging a rollout is said before anything moves, and looked at again."""

    def test_it_blocks_before_anything_is_touched(self, found: dict[str, Any], reason: str, words: str) -> None:
        world = World(found=found).run(120)
        assert (world.phase, world.reason) == (Phase.BLOCKED, reason)
        assert words in world.state.message
        assert world.condition("AnalysisHealthy").reason == reason
        assert world.events.count(reason) == 1
        assert untouched(world)
        writes = len(world.writes)
        assert len(world.run(300).writes) == writes

    def test_it_heals_by_itself(self, found: dict[str, Any], reason: str, words: str) -> None:
        world = World(found=found).run(120)
        world.found = {}
        assert world.run(40, until=lambda w: w.share("v2") == 10).share("v2") == 10
        assert world.run().phase is Phase.STABLE

    def test_it_has_a_deadline(self, found: dict[str, Any], reason: str, words: str) -> None:
        world = World(found=found).run()
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")
        assert words in world.state.message
        assert untouched(world)

    def test_promote_does_not_ask(self, found: dict[str, Any], reason: str, words: str) -> None:
        world = World(found=found).run(60)
        world.command = "promote/v2/1"
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")


class TestSilence:
    """There is no answer, or none that says much."""

    def test_the_answer_is_asked_for_early_and_awaited_last(self) -> None:
        world = World(found=None).run(1)
        asked = needs(world.rollout, world.state, world._identity(), world.now, SETTINGS).preflight
        assert asked is not None
        assert (asked.host, asked.stable) == (HOST, "v1")
        world.run(60)
        assert (world.phase, world.reason) == (Phase.PREPARING, "AwaitingPreflight")
        assert world.state.deadline is not None
        assert [write for write in world.writes if "/" in write] == ["AddSubset/reviews"]
        world.found = {}
        assert world.run(5).share("v2") == 10

    def test_an_answer_that_never_comes_ends_at_the_deadline(self) -> None:
        world = World(found=None).run()
        assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")
        assert "v2 was not ready for traffic within 10m: " in world.state.message
        assert [weight for _, weight in world.weights] == [0]

    def test_an_outage_says_since_when_and_traffic_moves_once_it_is_over(self) -> None:
        away = START - timedelta(minutes=3)
        world = World(away_since=away).run(120)
        assert (world.phase, world.reason) == (Phase.PREPARING, "ProviderError")
        words = "no evidence from provider default since 11:57:00 UTC: connection refused"
        assert world.state.message == f"{words}; no traffic moves without"
        assert world.condition("AnalysisHealthy").message == words
        assert world.share("v2") == 0
        writes = len(world.writes)
        world.run(60)
        assert len(world.writes) == writes
        world.prometheus = True
        world.run(until=lambda w: w.share("v2") == 10)
        assert world.events.count("ProviderBack") == 1

    def test_a_restart_makes_an_outage_no_newer(self) -> None:
        world = World(away_since=START).run(120)
        before = world.state.message
        world.away_since = world.now
        assert world.run(60).state.message == before
        world.found = None
        assert world.run(60).state.message == before

    def test_a_host_without_traffic_goes_on_with_a_remark(self) -> None:
        world = World(rps=0, found={"host_series": False, "versions": ()})
        world.run(until=lambda w: w.share("v2") == 10)
        condition = world.condition("AnalysisHealthy")
        assert (condition.status, condition.reason) == ("Unknown", "NoSeries")
        assert HOST in condition.message
        assert world.events.count("NoSeries") == 1
        assert world.run(300).share("v2") == 10

    def test_a_partial_answer_that_lacks_the_stable_version_is_no_proof_that_it_has_none(self) -> None:
        world = World(found={"versions": ("v9",), "warnings": ("store eu-1 is away",)}).run(60)
        assert (world.phase, world.reason) == (Phase.PREPARING, "PartialData")
        assert "store eu-1 is away" in world.state.message
        world.found = {"warnings": ("store eu-1 is away",)}
        assert world.run(5).share("v2") == 10

    def test_a_level_that_is_known_in_part_is_none_to_compare_with(self) -> None:
        world = World(warnings=("store eu-1 is away",)).run(60)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PREPARING, "PartialData", 0)
        assert "requests before the first step" in world.state.message
        condition = world.condition("AnalysisHealthy")
        assert (condition.status, condition.reason, condition.message) == ("False", "PartialData", world.state.message)
        world.warnings = ()
        assert world.run(5).share("v2") == 10

    def test_a_corrected_spec_is_asked_about_anew(self) -> None:
        analysis = {"interval": "10s", "minRequests": 100, "latency": {"threshold": "300ms", "maxSlow": "1%"}}
        world = World(rollout=spec(analysis=analysis), found={"edge_problem": EDGE}).run(60)
        before = needs(world.rollout, world.state, world._identity(), world.now, SETTINGS).preflight
        world.apply(analysis=analysis | {"latency": {"threshold": "250ms", "maxSlow": "1%"}})
        after = needs(world.rollout, world.state, world._identity(), world.now, SETTINGS).preflight
        assert before is not None
        assert after is not None
        assert (before.slow_above, after.slow_above) == (timedelta(milliseconds=300), timedelta(milliseconds=250))
        world.found = {}
        assert world.run(30).share("v2") == 10


class TestBaseline:
    """How many requests reach no version before the first step."""

    @pytest.mark.parametrize("unmeasured", ["unasked", "empty"])
    def test_it_is_awaited_and_kept(self, unmeasured: str) -> None:
        world = WatchedWorld(unmeasured=unmeasured)
        world.run(60)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PREPARING, "AwaitingBaseline", 0)
        world.unmeasured = ""
        world.run(until=lambda w: w.share("v2") == 10)
        assert world.record.baseline == Baseline(seconds=60, unreached=0)


def test_what_is_known_in_part_is_shown_although_traffic_moves() -> None:
    world = World(found={"warnings": ("store eu-1 is away",)}, rollout=spec(paused=True)).run(60)
    condition = world.condition("AnalysisHealthy")
    assert (world.phase, condition.status, condition.reason) == (Phase.PAUSED, "False", "PartialData")
    assert condition.message == "store eu-1 is away"


def test_a_provider_that_can_judge_the_canary_is_healthy_before_traffic_moves() -> None:
    world = World(rollout=spec(paused=True)).run(60)
    condition = world.condition("AnalysisHealthy")
    assert (world.phase, condition.status, condition.reason) == (Phase.PAUSED, "True", "Answering")


def test_a_partial_answer_without_the_stable_version_is_shown_as_one() -> None:
    world = World(found={"versions": ("v9",), "warnings": ("store eu-1 is away",)}).run(60)
    condition = world.condition("AnalysisHealthy")
    assert (condition.status, condition.reason, condition.message) == ("False", "PartialData", world.state.message)


def test_promote_asks_no_more_from_the_same_moment_on() -> None:
    world = World(found={"refused": "provider default is not for namespace shop"}).run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "ProviderRefused")
    world.command = "promote/v2/1"
    assert world.step().status.phase is Phase.PREPARING


class Apart(World):
    """A world in which one answer has been missing for longer than the other."""

    def _evidence(self, request: EvidenceRequest | None) -> Evidence | None:
        return Evidence(request, error="timeout", error_since=START - MINUTE) if request is not None else None

    def _preflight(self, request: PreflightRequest | None) -> Preflight | None:
        return Preflight(request, error="timeout", error_since=START) if request is not None else None


def test_of_two_answers_that_are_missing_the_longer_outage_is_told() -> None:
    world = Apart()
    world.run(until=lambda w: w.reason == "ProviderError")
    assert world.state.message.startswith("no evidence from provider default since 11:59:00 UTC: timeout")
