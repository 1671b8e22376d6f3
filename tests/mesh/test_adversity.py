"""What goes wrong around the operator: it is killed, and other hands change the weights."""

from __future__ import annotations

import time

import pytest

from canaryrollout.api.status import Phase
from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, assert_fair, written

pytestmark = pytest.mark.mesh

ASK = [{"weight": 50, "approval": "Required"}, {"weight": 100}]


def test_an_operator_that_was_killed_continues_and_repeats_nothing(place: Place) -> None:
    """SIGKILL at 30 %: the weights stay, and whoever starts next goes on from there."""
    reviews = place.service("reviews")
    reviews.send(60)
    reviews.apply("v2", steps=[{"weight": 30, "hold": "6s"}, {"weight": 60}, {"weight": 100}])
    before = reviews.until_weight(30, in_effect=True).rollout
    assert before is not None
    place.operator.kill()
    killed_at = time.monotonic()
    time.sleep(1.0)
    assert reviews.weights() == {"v1": 70, "v2": 30}
    place.operator.start()
    reviews.until(lambda: reviews.status.rollout is None or reviews.status.rollout.weight > 30, "next step")
    print(f"killed, started again and at the next step after {time.monotonic() - killed_at:.1f} s")
    status = reviews.until_promoted("v2")

    at_30 = [s.rollout for s in reviews.statuses if s.rollout and s.rollout.weight == 30 and s.rollout.in_effect_at]
    assert {(r.started_at, r.applied_at, r.in_effect_at) for r in at_30} == {
        (before.started_at, before.applied_at, before.in_effect_at)
    }, "nothing is measured or held anew"
    assert [e.weight for e in status.history if e.reason == "StepPassed"] == [30, 60, 100]
    assert [e.reason for e in status.history].count("RolloutStarted") == 1
    written_weights = [written(seen.document["spec"]["http"][0]) for seen in reviews.seen(VIRTUAL_SERVICE)]
    assert [each.get("v2") for each in written_weights] == [None, 30, 60, 100, 100], "a write for each step, no more"
    assert_fair(reviews.steps("v2"))
    reviews.assert_nothing_lost()


def test_weights_changed_by_other_hands_are_answered(place: Place) -> None:
    """One tool lowers the canary once, another raises it, a third never leaves it alone."""
    lowered, raised, fought = (place.service(name) for name in ("lowered", "raised", "fought"))
    for service in (lowered, raised, fought):
        service.send(30)
        # Each answer waits twice as long as the one before, from one interval on.
        service.apply("v2", steps=ASK, analysis={"interval": "1s" if service is fought else "2s"})
    for service in (lowered, raised, fought):
        service.until_asked()

    lowered.reweigh(v1=90, v2=10)
    raised.reweigh(v1=5, v2=95)
    # Without a break: who leaves the weights alone for some intervals is not contesting them any more.
    for number in range(4):
        fought.reweigh(v1=80, v2=20)
        if number < 3:
            fought.until(lambda: fought.weights() == {"v1": 50, "v2": 50}, "weights of before")
    fought.until_phase(Phase.BLOCKED, "WeightContested")
    raised.until(lambda: raised.weights() == {"v1": 50, "v2": 50}, "weights of before")
    told = raised.event("DriftDetected")
    assert told["type"] == "Warning"
    assert told["note"] == "weights were changed by kubectl-patch: raised is at v1 5 / v2 95"

    lowered.until(lambda: lowered.weights() == {"v1": 50, "v2": 50}, "weights of before")
    noticed = [s for s in lowered.statuses if any(c.reason == "WeightDrift" for c in s.conditions if c.type == "Ready")]
    assert noticed, "less traffic to the canary is respected at first, and said"
    drifted, answered = lowered.seen(VIRTUAL_SERVICE)[-2:]
    assert [written(seen.document["spec"]["http"][0]) for seen in (drifted, answered)] == [
        {"v1": 90, "v2": 10},
        {"v1": 50, "v2": 50},
    ]
    asserted = next(entry.time for entry in lowered.status.history if entry.reason == "WeightReasserted")
    changed = next(s.contest.changed_at for s in lowered.statuses if s.contest and s.contest.changed_at)
    assert 2 <= (asserted - changed).total_seconds() < 5, "asserted again after one interval"
    assert lowered.event("WeightReasserted")["note"] == "weights set to v1 50 / v2 50 again, 1 of 3 times"

    for service in (lowered, raised):
        service.until_asked()
        service.command("approve/v2/1")

    fought.until(lambda: fought.weights() == {"v1": 100, "v2": 0}, "a canary without traffic")
    assert "kubectl-patch keeps changing the weights" in fought.status.message
    assert fought.status.rollout is not None
    assert (fought.status.rollout.weight, fought.condition("Stalled")[0]) == (50, "True"), "the step is kept"
    again = [e.message for e in fought.status.history if e.reason == "WeightReasserted"]
    assert [message.rpartition("again, ")[2] for message in again] == [f"{n} of 3 times" for n in (1, 2, 3)]
    assert "kubectl-patch" in fought.event("WeightContested")["note"]
    fought.command("retry/v2/1")
    fought.until_asked()
    assert fought.weights() == {"v1": 50, "v2": 50}

    for service in (lowered, raised):
        service.until_promoted("v2")
    for service in (lowered, raised, fought):
        service.assert_nothing_lost()


def test_traffic_sent_back_to_a_version_that_is_gone_is_noticed_at_the_resync(place: Place) -> None:
    """A GitOps tool applies what was true before the rollout, long after it was over."""
    reviews = place.service("reviews")
    reviews.send(40)
    reviews.apply("v2")
    reviews.until_promoted("v2")
    reviews.backends["v1"].stop()
    place.lab.wait_synced()
    reviews.assert_nothing_lost()
    place.operator.restart(resync="2s")
    try:
        reviews.reweigh(v1=100, v2=0)
        reviews.until(lambda: reviews.weights() == {"v1": 0, "v2": 100}, "traffic on v2 again")
        assert reviews.event("DriftDetected")["note"].startswith("weights were changed by kubectl-patch")
        reviews.until_promoted("v2")
    finally:
        place.operator.restart()
