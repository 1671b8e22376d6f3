"""A person takes part: approving, pausing, aborting, retrying, promoting, changing their mind, deleting.

Every rollout of this module starts at once and waits for approval at 50 %; each test then acts on one of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.api.status import Phase
from canaryrollout.domain.commands import ANNOTATION
from lab.demo.watch import ROLLOUT, VIRTUAL_SERVICE
from lab.kubectl import KubectlError
from tests.mesh.place import Place, Service, reasons, written

pytestmark = pytest.mark.mesh

RATE = 14.0
ENOUGH = {"minRequests": 10}
ASK = [{"weight": 50, "approval": "Required"}, {"weight": 100}]


@pytest.fixture(scope="module")
def services(street: Place) -> dict[str, Service]:
    """One service for each test, on its way to v2."""
    found: dict[str, Service] = {}

    def begin(name: str, **spec: Any) -> None:
        versions = ("v1", "v2", "v3") if name == "third" else ("v1", "v2")
        service = found[name] = street.service(name, versions=versions)
        service.send(RATE)
        service.apply("v2", **{"steps": ASK, "analysis": ENOUGH, **spec})

    begin("approved")
    begin("paused", steps=[{"weight": 50}, {"weight": 100}], hold="10m")
    begin("aborted")
    begin("promoted", analysis={"minRequests": 100_000})
    begin("stale")
    begin("reverted")
    begin("third")
    begin("deleted")
    return found


def test_an_approval_lets_a_step_go_on(services: dict[str, Service]) -> None:
    approved = services["approved"]
    approved.until_asked()
    told = approved.event("AwaitingApproval")["note"]
    assert "canaryrollout.io/command: approve/v2/<token>" in told
    assert approved.status.deadline is None, "no deadline runs while a person is awaited"
    approved.command("approve/v2/looks-good")
    status = approved.until_promoted("v2")
    assert status.last_command is not None
    assert (status.last_command.command, status.last_command.result) == ("approve/v2/looks-good", "accepted")
    assert approved.event("Approved")["note"] == "v2 may go beyond 50 %"
    assert [entry.reason for entry in status.history].count("Approved") == 1
    annotations = approved.latest(ROLLOUT)["metadata"]["annotations"]
    assert annotations[ANNOTATION] == "approve/v2/looks-good", "the annotation is the user's and stays"
    approved.assert_nothing_lost()


def test_a_pause_stops_raising_and_its_end_goes_on(services: dict[str, Service]) -> None:
    paused = services["paused"]
    paused.until_weight(50)
    paused.patch(paused=True, hold="0s")
    status = paused.until_phase(Phase.PAUSED, "Paused")
    assert status.message == "v2 passed at 50 %; spec.paused is true"
    assert paused.weights() == {"v1": 50, "v2": 50}
    paused.patch(paused=False)
    paused.until_promoted("v2")
    paused.assert_nothing_lost()


def test_an_abort_takes_the_canary_back_and_a_retry_tries_it_again(services: dict[str, Service]) -> None:
    aborted = services["aborted"]
    aborted.until_asked()
    aborted.command("abort/v2/1")
    status = aborted.until_taken_back("Aborted")
    assert status.rollout is not None
    assert status.rollout.explanation == "a person gave the abort command"
    assert aborted.event("Aborted")["type"] == "Warning"
    aborted.assert_restored()

    aborted.command("retry/v2/2")
    aborted.until_asked()
    record = aborted.status.rollout
    assert record is not None
    assert record.token == "2"
    assert aborted.event("Retried")["note"] == "v2 starts anew"
    aborted.command("approve/v2/3")
    aborted.until_promoted("v2")
    aborted.assert_nothing_lost()


def test_promote_goes_on_without_waiting_for_the_gates(services: dict[str, Service]) -> None:
    """Its gates ask for more requests than ever come."""
    promoted = services["promoted"]
    promoted.until_phase(Phase.PROGRESSING, "TooLittleTraffic")
    assert "of 100,000 requests of the canary so far" in promoted.status.message
    promoted.command("promote/v2/now")
    promoted.until_promoted("v2")
    assert "without waiting for its gates" in promoted.event("Promoted")["note"]
    assert reasons(promoted.events())["StepPassed"] == 0
    promoted.assert_nothing_lost()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("approve/v9/1", "the rollout under way is to v2, not v9"),
        ("retry/v2/1", "nothing was taken back"),
        ("approve/v2", "is not <command>/<version>/<token>"),
        ("release/v2/1", "'release' is not a command; use one of approve, retry, abort, promote"),
    ],
)
def test_a_command_that_means_nothing_now_is_answered(services: dict[str, Service], command: str, answer: str) -> None:
    stale = services["stale"]
    stale.until_asked()
    writes = len(stale.seen(VIRTUAL_SERVICE))
    stale.command(command)
    stale.until(lambda: any(answer in event["note"] for event in stale.events()), f"Event that says {answer!r}")
    told = next(event for event in stale.events() if answer in event["note"])
    assert (told["type"], told["reason"]) == ("Warning", "CommandRefused")
    assert stale.status.last_command is not None
    assert stale.status.last_command.result.startswith("refused: ")
    stale.until_asked()
    assert len(stale.seen(VIRTUAL_SERVICE)) == writes


def test_going_back_to_the_stable_version_takes_the_traffic_back(services: dict[str, Service]) -> None:
    reverted = services["reverted"]
    reverted.until_asked()
    reverted.patch(version="v1")
    reverted.until_promoted("v1")
    assert reverted.event("SpecReverted")["note"] == "taking v2 back: spec.version is v1 again"
    assert reverted.condition("Ready")[0] == "True"
    reverted.assert_restored()
    reverted.assert_nothing_lost()


def test_a_third_version_takes_the_canary_back_and_then_starts(services: dict[str, Service]) -> None:
    third = services["third"]
    third.until_asked()
    third.patch(version="v3", steps=[{"weight": 40}, {"weight": 100}])
    status = third.until_promoted("v3")
    assert [entry.reason for entry in status.history if entry.reason in ("Superseded", "RolledBack")] == [
        "Superseded",
        "RolledBack",
    ]
    weights = [written(seen.document["spec"]["http"][0]) for seen in third.seen(VIRTUAL_SERVICE)]
    assert not any(each.get("v2") and each.get("v3") for each in weights), "two canaries at once"
    raised = [each["v3"] for each in weights if "v3" in each]
    assert raised[:2] == [40, 100], "v3 starts with its first step"
    assert third.weights() == {"v1": None, "v3": 100}
    assert third.subsets() == ["v1", "v3"]
    third.assert_nothing_lost()


def test_deletion_on_the_way_restores_the_mesh(services: dict[str, Service]) -> None:
    deleted = services["deleted"]
    deleted.until_asked()
    assert deleted.latest(ROLLOUT)["metadata"]["finalizers"] == ["canaryrollout.io/traffic"]
    deleted.kubectl("delete", "canaryrollout", "deleted", "--timeout=30s")
    with pytest.raises(KubectlError, match="NotFound"):
        deleted.kubectl("get", "canaryrollout", "deleted")
    deleted.until(lambda: deleted.weights() == {"v1": None}, "the route as it was")
    deleted.assert_restored()
    assert deleted.event("Deleted")["note"] == "taking v2 back: the CanaryRollout is being deleted"
    deleted.assert_nothing_lost()
