"""A good version: raised step by step on what its requests show, promoted, and tidied up after."""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from lab.demo.watch import VIRTUAL_SERVICE
from tests.mesh.place import Place, Service, assert_fair, destination, reasons, route, written

pytestmark = pytest.mark.mesh

LADDER = [{"weight": 10}, {"weight": 30, "hold": "15s"}, {"weight": 50}, {"weight": 100}]


@pytest.fixture(scope="module")
def reviews(street: Place) -> Service:
    """A service on its way from v1 to v2; v3 is there too."""
    reviews = street.service("reviews", versions=("v1", "v2", "v3"))
    reviews.send(100)
    reviews.apply("v2", steps=LADDER, hold="2s")
    return reviews


@pytest.fixture(scope="module", autouse=True)
def split(street: Place) -> Service:
    """A service whose author has split its traffic before there was a CanaryRollout."""
    split = street.service(
        "split",
        http={"split": [route(destination("split", "v1", 80), destination("split", "v2", 20))]},
        subsets=[{"name": version, "labels": {"version": version}} for version in ("v1", "v2")],
    )
    split.send(50)
    split.apply("v2", steps=[{"weight": 10}, {"weight": 60}, {"weight": 100}])
    return split


def test_a_user_watches_a_rollout_with_kubectl(reviews: Service) -> None:
    reviews.until_weight(30, in_effect=True)
    header, row = reviews.kubectl("get", "canaryrollout", "reviews").splitlines()
    print(f"{header}\n{row}")
    assert header.split() == ["NAME", "PHASE", "STEP", "WEIGHT", "STABLE", "CANARY", "VERDICT", "AGE"]
    assert row.split()[:6] == ["reviews", "Progressing", "2/4", "30", "v1", "v2"]
    assert "v2 at 30 %" in reviews.kubectl("get", "cro", "reviews", "-o", "wide")
    assert reviews.condition("Ready")[0] == "False"
    assert reviews.condition("Reconciling")[0] == "True"
    assert reviews.condition("TrafficConverged") == ("True", "Converged")
    assert reviews.condition("AnalysisHealthy") == ("True", "Answering")
    reviews.kubectl("wait", "--for=condition=Ready", "canaryrollout/reviews", "--timeout=60s")
    reviews.until(lambda: reviews.condition("Ready")[0] == "True", "sight of what kubectl saw", seconds=10)
    assert (reviews.status.phase, reviews.status.stable_version) == (Phase.STABLE, "v2")


def test_a_healthy_version_is_promoted_step_by_step(reviews: Service) -> None:
    status = reviews.until_promoted("v2")
    assert reviews.weights() == {"v1": None, "v2": 100}
    assert reviews.subsets() == ["v1", "v2"]
    steps = reviews.steps("v2")
    assert [step.weight for step in steps] == [10, 30, 50, 100]
    assert_fair(steps)
    reviews.assert_nothing_lost()
    early = [
        status.message
        for status in reviews.statuses
        if status.stable_version != "v2" and any((c.type, c.status) == ("Ready", "True") for c in status.conditions)
    ]
    assert early == [], "ready before the wanted version served"

    assert "v2 is stable now, it was v1" in reviews.event("Promoted")["note"]
    counted = reasons(reviews.events())
    assert (counted["RolloutStarted"], counted["WeightSet"], counted["StepPassed"], counted["Promoted"]) == (1, 4, 4, 1)
    warnings = [event["reason"] for event in reviews.events() if event["type"] != "Normal"]
    assert warnings == ["UncoveredTraffic"], "its only route is at the gateway, and nothing else went wrong"
    passed = [entry for entry in status.history if entry.reason == "StepPassed"]
    assert [entry.weight for entry in passed] == [10, 30, 50, 100]
    assert all("error rate 0 % (0/" in entry.message for entry in passed)


def test_what_was_added_and_is_no_longer_needed_goes(reviews: Service) -> None:
    """The user wrote v1; v2 came and went."""
    reviews.until_promoted("v2")
    reviews.patch(version="v3", steps=[{"weight": 50}, {"weight": 100}], hold="0s")
    reviews.until_promoted("v3")
    assert reviews.weights() == {"v1": None, "v3": 100}
    assert reviews.subsets() == ["v1", "v3"]
    reviews.assert_nothing_lost()


def test_traffic_that_is_split_already_is_judged_where_it_stands(split: Service) -> None:
    status = split.until_promoted("v2")
    passed = [entry.weight for entry in status.history if entry.reason == "StepPassed"]
    assert passed == [20, 60, 100]
    assert split.weights() == {"v1": 0, "v2": 100}
    raised = [seen.document["spec"]["http"][0]["route"][1]["weight"] for seen in split.seen(VIRTUAL_SERVICE)]
    assert raised == [20, 60, 100]
    split.assert_nothing_lost()


def test_a_version_that_is_gone_is_replaced_at_once(street: Place) -> None:
    """Nobody answers for v1, so that there is nothing to compare with and nothing to lose."""
    gone = street.service("gone")
    gone.backends["v1"].stop()
    gone.apply("v2", hold="10m")
    gone.until_promoted("v2")
    assert gone.event("ServingVersionGone")["type"] == "Warning"
    weights = [written(seen.document["spec"]["http"][0]).get("v2") for seen in gone.seen(VIRTUAL_SERVICE)]
    assert weights[:2] == [None, 100]
    assert gone.weights() == {"v1": None, "v2": 100}
