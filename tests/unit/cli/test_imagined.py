"""An imagined rollout goes as a real one would: the shipped decisions, on routes that take weights at once."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.cli.imagined import ImaginedRollout, Outcome
from canaryrollout.cli.simulation import START
from canaryrollout.cli.traffic import ImaginedProvider, Traffic, Version
from canaryrollout.domain.settings import DomainSettings

LAG = timedelta(seconds=2)
RULE = {"name": "reviews"}


def spec(**fields: Any) -> CanaryRolloutSpec:
    analysis = {"minRequests": 100, "errorRate": {"max": "5%"}} | fields.pop("analysis", {})
    base = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
        "steps": [{"weight": 20}, {"weight": 100}],
        "hold": "30s",
        "progressDeadline": "10m",
        "analysis": analysis,
    }
    return CanaryRolloutSpec.model_validate(base | fields)


def played(wanted: CanaryRolloutSpec, errors: float = 0.0, *, really: int | None = None, at_once: bool = False) -> Any:
    """Play a rollout to its end; ``really`` is the share that the canary has, whatever its weight."""
    settings = DomainSettings(lag={"default": LAG})
    rollout = ImaginedRollout(wanted, "v1", "shop", START, settings, in_effect_at_once=at_once, judged=True)
    provider = ImaginedProvider(Traffic(100, Version(0.0), Version(errors)), wanted, LAG, Random(1))
    while rollout.ended is None:
        share = rollout.weight if really is None or not rollout.weight else really
        rollout.look(provider.answer(rollout.needs(), rollout.now, share))
    return rollout


@pytest.mark.parametrize(
    "fields",
    [
        {
            "istio": {
                "virtualServices": [{"name": "a", "routes": ["x", "y"]}, {"name": "b"}],
                "destinationRule": {"name": "r"},
            }
        },
        {"readiness": {"minReady": 3}},
        {"readiness": {"minReady": "50%"}},
        {"steps": [{"weight": 20, "approval": "Required"}, {"weight": 60, "approval": "Required"}, {"weight": 100}]},
        {"paused": True},
        {"hold": "0s"},
    ],
    ids=["several routes", "endpoints", "share of endpoints", "approvals", "paused", "no hold"],
)
def test_every_kind_of_manifest_is_promoted(fields: dict[str, Any]) -> None:
    rollout = played(spec(**fields))
    assert rollout.outcome is Outcome.PROMOTED
    weights = [moment.weight for moment in rollout.moments]
    assert weights == sorted(weights)
    assert set(weights) == {0, *(step.weight for step in rollout.spec.steps)}


def test_a_hold_is_kept() -> None:
    rollout = played(spec(hold="5m"))
    raised = {moment.weight: moment.time for moment in reversed(rollout.moments)}
    assert raised[100] - raised[20] >= timedelta(minutes=5)
    assert rollout.ended.time - raised[100] >= timedelta(minutes=5)


def test_a_bad_canary_goes_to_zero_in_one_move() -> None:
    rollout = played(spec(), errors=0.3)
    assert rollout.outcome is Outcome.TAKEN_BACK
    assert [moment.weight for moment in rollout.moments[-2:]] == [20, 0]
    assert rollout.ended.reason == "GateFailed"
    assert rollout.moments[-1].judgement.verdict == "Fail"


def test_transitions_are_kept_that_status_has_forgotten() -> None:
    rollout = played(spec(steps=[{"weight": weight} for weight in range(5, 101, 5)], hold="0s"))
    raised = [entry.weight for entry in rollout.history if entry.reason == "WeightSet"]
    assert raised == list(range(5, 101, 5))
    assert len(rollout.status.history) < len(rollout.history)


def test_traffic_that_contradicts_the_weight() -> None:
    """It says nothing where the traffic is of the past, and holds where it is not and agreement is required."""
    required = spec(analysis={"requireConvergence": "Required"})
    assert played(required, really=70, at_once=True).outcome is Outcome.PROMOTED
    assert played(required, really=70).outcome is Outcome.OUT_OF_TIME
