"""More traffic waits for evidence that is recent: what was good a while ago may have broken since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from canaryrollout.domain.evidence import Evidence, EvidenceRequest
from canaryrollout.domain.timeliness import is_behind
from tests.world import START, World, spec

METRIC = {"name": "checkouts", "query": "up", "max": "5"}
ANALYSIS: dict[str, Any] = {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}}


@dataclass
class LateWorld(World):
    """A world whose provider answers late, in pieces, or in part.

    Attributes:
        pieces: How many more blocks come with each look after an outage; 0 for all.
        readings_late: How long after the counts readings of the user's own queries come.
        warnings: What the provider says about its answers.
    """

    pieces: int = 0
    readings_late: timedelta = timedelta()
    warnings: tuple[str, ...] = ()
    at_hand: int = 0

    def _evidence(self, request: EvidenceRequest | None) -> Evidence | None:
        evidence = super()._evidence(request)
        if evidence is None:
            return None
        seen = self.now - self.readings_late
        metrics = {name: tuple(r for r in readings if r.at <= seen) for name, readings in evidence.metrics.items()}
        blocks = evidence.blocks
        if self.pieces and request is not None and request.until is None:
            away = self.away_since is not None
            self.at_hand = len(blocks) if away else min(self.at_hand + self.pieces, len(blocks))
            blocks = blocks[: self.at_hand]
        return replace(evidence, blocks=blocks, metrics=metrics, warnings=self.warnings)


@pytest.mark.parametrize(("interval", "behind"), [("10s", 60), ("20s", 60), ("1m", 180)])
def test_evidence_may_be_three_intervals_behind_and_a_minute_at_least(interval: str, behind: int) -> None:
    analysis, lag = spec(analysis=ANALYSIS | {"interval": interval}).analysis, timedelta(seconds=30)
    now = START + lag + timedelta(seconds=behind)
    assert not is_behind(analysis, START, now, lag)
    assert is_behind(analysis, START, now + timedelta(milliseconds=1), lag)


def test_what_was_good_before_an_outage_does_not_raise_the_weight_while_newer_evidence_comes_in() -> None:
    bad_from = START + timedelta(minutes=8)

    def rate(version: str, weight: int, at: datetime) -> float:
        return 0.2 if version == "v2" and at >= bad_from else 0.0

    world = LateWorld(
        rollout=spec(hold="3m", analysis=ANALYSIS | {"interval": "1s"}, progressDeadline="1h"), error_rate=rate
    )
    world.run(60)
    assert world.share("v2") == 10
    world.pieces, world.prometheus = 100, False
    world.run(600)
    world.prometheus = True
    reasons: set[str] = set()

    def ended(world: World) -> bool:
        reasons.add(world.reason)
        return world.phase is Phase.ROLLED_BACK

    world.run(600, until=ended)
    assert max(weight for _, weight in world.weights) == 10, "the canary was broken when its step could have passed"
    assert world.reason == "GateFailed"
    assert "CatchingUp" in reasons


def test_a_step_does_not_pass_before_a_metric_was_read_after_its_hold() -> None:
    """Queries of the user's own are answered after the counts; here they take long."""
    broken = START + timedelta(seconds=32)
    world = LateWorld(
        rollout=spec(analysis=ANALYSIS | {"metrics": [METRIC]}),
        metric=lambda name, at: 9 if at >= broken else 1,
        readings_late=timedelta(seconds=17),
    )
    world.run(300)
    assert max(weight for _, weight in world.weights) == 10
    assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "GateFailed")


@pytest.mark.parametrize("late", [0, 17, 50])
def test_a_provider_that_is_slow_with_metrics_keeps_no_good_canary_from_passing(late: int) -> None:
    world = LateWorld(
        rollout=spec(analysis=ANALYSIS | {"metrics": [METRIC]}), readings_late=timedelta(seconds=late)
    ).run()
    assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")


@pytest.mark.parametrize("metrics", [[], [METRIC]])
def test_answers_that_may_be_partial_are_not_silence(metrics: list[dict[str, str]]) -> None:
    analysis = ANALYSIS | {"onNoData": "Rollback", "metrics": metrics}
    world = LateWorld(
        rollout=spec(analysis=analysis, progressDeadline="1h"),
        canary_seen=bool(metrics),
        metric=lambda name, at: None,
    )
    world.run(120, until=lambda world: world.share("v2") == 10)
    world.warnings = ("store b is away",)
    world.run(600)
    assert (world.phase, world.share("v2")) == (Phase.PROGRESSING, 10)
    world.warnings = ()
    world.run(60)
    assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "NoData")


def test_too_few_requests_are_called_so_however_late_they_are_known() -> None:
    scarce = ANALYSIS | {"interval": "1s", "minRequests": 100_000}
    world = LateWorld(rollout=spec(hold="3m", analysis=scarce, progressDeadline="100h"))
    world.run(60)
    world.pieces, world.prometheus = 10, False
    world.run(600)
    world.prometheus = True
    reasons: set[str] = set()

    def looked(world: World) -> bool:
        reasons.add(world.reason)
        return False

    world.run(60, until=looked)
    assert "LowSample" in reasons
    assert "CatchingUp" not in reasons


def test_a_step_that_never_catches_up_has_a_deadline() -> None:
    world = LateWorld(rollout=spec(analysis=ANALYSIS | {"metrics": [METRIC]}), readings_late=timedelta(seconds=200))
    world.run(400)
    assert (world.reason, world.share("v2")) == ("CatchingUp", 10)
    world.run()
    assert (world.phase, world.reason) == (Phase.ROLLED_BACK, "DeadlineExceeded")
