"""istiod is away in the middle of a rollout: weights are written, and no proxy takes them over."""

from __future__ import annotations

import time

import pytest

from canaryrollout.api.status import Phase
from tests.faults.rows import Row
from tests.mesh.place import Place

pytestmark = pytest.mark.mesh

STEPS = [{"weight": 30, "approval": "Required"}, {"weight": 60, "approval": "Required"}, {"weight": 100}]


def test_a_weight_that_no_proxy_takes_over_is_said_not_to_be_in_effect(place: Place, table: list[Row]) -> None:
    """One rollout waits for traffic to agree with its weight, one does as by default; both say that it does not."""
    strict, usual = (place.service(name) for name in ("strict", "usual"))
    for service in (strict, usual):
        service.send(30)
    strict.apply("v2", steps=STEPS, analysis={"requireConvergence": "Required"})
    usual.apply("v2", steps=STEPS)
    for service in (strict, usual):
        service.until_phase(Phase.PAUSED, "AwaitingApproval")
    place.lab.stop("istiod")
    stopped = time.monotonic()
    try:
        for service in (strict, usual):
            service.command("approve/v2/1")
        for service in (strict, usual):
            service.until(lambda s=service: s.weights() == {"v1": 40, "v2": 60}, "weights of the next step")  # type: ignore[misc]
        for service in (strict, usual):
            service.until_condition("TrafficConverged", "False", "ShareContradicts")
        said = time.monotonic() - stopped
        told = next(c.message for c in strict.status.conditions if c.type == "TrafficConverged")
        assert "requests" in told
        assert told.endswith("at weight 60")
        assert strict.status.rollout is not None
        assert strict.status.rollout.in_effect_at is None
        assert "requireConvergence is Required" in strict.status.message
        assert strict.event("ShareContradicts")["type"] == "Warning"
        usual.until_phase(Phase.PAUSED, "AwaitingApproval")
        assert usual.condition("TrafficConverged") == ("False", "ShareContradicts"), "a person who is asked can see it"
    finally:
        place.lab.start("istiod")
        started = time.monotonic()
        place.lab.wait_synced()
    strict.until_condition("TrafficConverged", "True", "Converged")
    agreed = time.monotonic() - started
    for service in (strict, usual):
        service.until_phase(Phase.PAUSED, "AwaitingApproval")
        service.command("approve/v2/2")
    for service in (strict, usual):
        service.until_promoted("v2")
        assert [e.weight for e in service.status.history if e.reason == "WeightSet"] == [30, 60, 100]
        assert not [status for status in service.statuses if status.phase is Phase.ROLLING_BACK]
        service.assert_nothing_lost()
    requests = sum(len(service.requests()) for service in (strict, usual))
    table.append(
        Row(
            "istiod stopped",
            f"for {started - stopped:.0f} s in the middle of a rollout, under load",
            1,
            f"weight written; TrafficConverged False (ShareContradicts) {said:.0f} s after it stopped, True "
            f"{agreed:.0f} s after it was back; promoted; {requests} requests, none lost",
        )
    )
