"""A good version: raised step by step on what its requests show, promoted, and tidied up after."""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, assert_fair, destination, reasons, route

pytestmark = pytest.mark.mesh


def test_a_healthy_version_is_promoted_step_by_step(place: Place) -> None:
    reviews = place.service("reviews", versions=("v1", "v2", "v3"))
    reviews.send(100)
    ladder = [{"weight": 10}, {"weight": 30, "hold": "5s"}, {"weight": 50}, {"weight": 100}]
    reviews.apply("v2", steps=ladder, hold="2s")

    reviews.until_weight(30, in_effect=True)
    header, row = reviews.kubectl("get", "canaryrollouts").splitlines()
    print(f"{header}\n{row}")
    assert header.split() == ["NAME", "PHASE", "STEP", "WEIGHT", "STABLE", "CANARY", "VERDICT", "AGE"]
    assert row.split()[:6] == ["reviews", "Progressing", "2/4", "30", "v1", "v2"]
    assert reviews.condition("Ready")[0] == "False"
    assert reviews.condition("Reconciling")[0] == "True"
    assert reviews.condition("TrafficConverged") == ("True", "Converged")
    assert reviews.condition("AnalysisHealthy") == ("True", "Answering")

    reviews.kubectl("wait", "--for=condition=Ready", "canaryrollout/reviews", "--timeout=60s")
    assert (reviews.status.phase, reviews.status.stable_version) == (Phase.STABLE, "v2"), reviews.story()
    assert reviews.weights() == {"v1": None, "v2": 100}
    assert reviews.subsets() == ["v1", "v2"]
    steps = reviews.steps("v2")
    assert [step.weight for step in steps] == [10, 30, 50, 100]
    assert_fair(steps)
    reviews.assert_nothing_lost()

    told = reviews.event("Promoted")
    assert "v2 is stable now, it was v1" in told["note"]
    counted = reasons(reviews.events())
    assert (counted["RolloutStarted"], counted["WeightSet"], counted["StepPassed"], counted["Promoted"]) == (1, 4, 4, 1)
    assert all(event["type"] == "Normal" for event in reviews.events())
    passed = [entry for entry in reviews.status.history if entry.reason == "StepPassed"]
    assert [entry.weight for entry in passed] == [10, 30, 50, 100]
    assert all("of" in entry.message and "requests failed" in entry.message for entry in passed)

    reviews.patch(version="v3", steps=[{"weight": 50}, {"weight": 100}], hold="0s")
    reviews.until_promoted("v3")
    assert reviews.weights() == {"v1": None, "v3": 100}, "what was added for v2 goes, what the user wrote stays"
    assert reviews.subsets() == ["v1", "v3"]
    reviews.assert_nothing_lost()


def test_ready_is_never_true_before_the_wanted_version_serves(place: Place) -> None:
    """`kubectl wait --for=condition=Ready` right after `kubectl apply` must not return at once."""
    reviews = place.service("reviews")
    reviews.send(40)
    reviews.apply("v2")
    reviews.until_promoted("v2")
    early = [
        status.message
        for status in reviews.statuses
        if status.stable_version != "v2" and any(c.type == "Ready" and c.status == "True" for c in status.conditions)
    ]
    assert early == []
    reviews.assert_nothing_lost()


def test_traffic_that_is_split_already_is_judged_where_it_stands(place: Place) -> None:
    reviews = place.service(
        "reviews",
        http={"reviews": [route(destination("reviews", "v1", 80), destination("reviews", "v2", 20))]},
        subsets=[{"name": version, "labels": {"version": version}} for version in ("v1", "v2")],
    )
    reviews.send(60)
    reviews.apply("v2", steps=[{"weight": 10}, {"weight": 60}, {"weight": 100}])
    status = reviews.until_promoted("v2")
    passed = [entry.weight for entry in status.history if entry.reason == "StepPassed"]
    assert passed == [20, 60, 100]
    assert reviews.weights() == {"v1": 0, "v2": 100}
    raised = [seen.document["spec"]["http"][0]["route"][1]["weight"] for seen in reviews.seen(VIRTUAL_SERVICE)]
    assert raised == [20, 60, 100]
    reviews.assert_nothing_lost()
