"""What cannot be moved without guessing is refused: the reason, what was found and what would be right are told.

No traffic is needed for it, so this runs on an API server alone. All rollouts live side by side under one operator,
with those that nothing is wrong with among them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from canaryrollout.api.status import CanaryRolloutStatus, Phase
from lab.backends import service
from lab.demo.measure import difference, status_of
from lab.demo.watch import DESTINATION_RULE, EVENT, ROLLOUT, VIRTUAL_SERVICE, Witness
from lab.mesh import Lab
from tests.cluster.program import is_slowness
from tests.cluster.shop import body
from tests.operatorprocess import OperatorProcess, running_operator

pytestmark = pytest.mark.cluster

NAMESPACE = "refusals"
NOWHERE = "http://127.0.0.1:9"
WITHIN_SECONDS = 20.0

Http = list[dict[str, Any]]


def to(host: str, subset: str | None = None, weight: int | None = None) -> dict[str, Any]:
    destination = {"host": host} | ({"subset": subset} if subset else {})
    return {"destination": destination} | ({} if weight is None else {"weight": weight})


@dataclass(frozen=True)
class Case:
    """A rollout that is refused.

    Attributes:
        reason: The reason to be told.
        message: The message, whole.
        http: Routes of its VirtualService; ``None`` for none of that name.
        spec: Fields of its spec that are not the usual ones.
        route_spec: Fields of the VirtualService's spec beside hosts and http.
        rule: Whether it has a DestinationRule.
        ready: Versions with a ready endpoint.
    """

    reason: str
    message: str
    http: Http | None
    spec: dict[str, Any] | None = None
    route_spec: dict[str, Any] | None = None
    rule: bool = True
    ready: tuple[str, ...] = ("v1",)


TCP = [{"match": [{"port": 80}], "route": [{"destination": {"host": "tcp"}}]}]
SEVERAL: Http = [
    {"match": [{"uri": {"prefix": "/a"}}], "route": [to("ambiguous", "v1")]},
    {"name": "rest", "route": [to("ambiguous", "v1")]},
]

CASES = {
    "delegate": Case(
        "RouteDelegates",
        "VirtualService delegate: spec.http[0] delegates to VirtualService inner/orders; name that one in "
        "spec.istio.virtualServices instead",
        [{"delegate": {"name": "orders", "namespace": "inner"}}],
    ),
    "redirect": Case(
        "RouteRedirects",
        "VirtualService redirect: route 'old' is a redirect and sends no request to the host; leave it out",
        [{"name": "old", "redirect": {"uri": "/new"}}],
    ),
    "direct": Case(
        "RouteRespondsDirectly",
        "VirtualService direct: spec.http[0] answers by itself (directResponse) and sends no request on; leave it out",
        [{"directResponse": {"status": 404}}],
    ),
    "ambiguous": Case(
        "AmbiguousRoutes",
        "VirtualService ambiguous: spec.http has 2 routes (one without a name, 'rest'); list in "
        "spec.istio.virtualServices[].routes the names of those to move, and name them first",
        SEVERAL,
    ),
    "misnamed": Case(
        "RouteNotFound",
        "VirtualService misnamed: spec.istio.virtualServices[].routes lists 'primary', but spec.http has 'main'",
        [{"name": "main", "route": [to("misnamed", "v1")]}],
        spec={
            "istio": {
                "virtualServices": [{"name": "misnamed", "routes": ["primary"]}],
                "destinationRule": {"name": "misnamed"},
            }
        },
    ),
    "three": Case(
        "TooManyDestinations",
        "VirtualService three: spec.http[0] splits its traffic 3 ways (v0 20 %, v1 50 %, v2 30 %); a rollout moves "
        "traffic between two versions: set all weights but two to 0",
        [{"route": [to("three", "v0", 20), to("three", "v1", 50), to("three", "v2", 30)]}],
    ),
    "foreign": Case(
        "ForeignDestination",
        "VirtualService foreign: spec.http[0] sends 10 % of its requests to 'legacy', not to "
        "foreign.refusals.svc.cluster.local; only a route whose traffic all goes to that host can be moved: "
        "set the other weights to 0",
        [{"route": [to("foreign", "v1", 90), to("legacy", None, 10)]}],
    ),
    "elsewhere": Case(
        "HostNotRouted",
        "VirtualService elsewhere: spec.http[0] routes to ratings, not to elsewhere.refusals.svc.cluster.local; "
        "list only routes of that host, or correct spec.host",
        [{"route": [to("ratings", "v1")]}],
    ),
    "tcp": Case(
        "NoHttpRoutes",
        "VirtualService tcp: spec has only tcp routes; requests can be counted and split on http routes only, "
        "so spec.http needs one",
        [],
        route_spec={"tcp": TCP},
    ),
    "no-service": Case(
        "VirtualServiceNotFound",
        "VirtualService no-service does not exist in namespace refusals; create it, or correct "
        "spec.istio.virtualServices[].name",
        None,
    ),
    "no-rule": Case(
        "DestinationRuleNotFound",
        "DestinationRule no-rule does not exist in namespace refusals; create it with host no-rule, or correct "
        "spec.istio.destinationRule.name",
        [{"route": [to("no-rule")]}],
        rule=False,
    ),
    "no-provider": Case(
        "ProviderUnknown",
        "spec.analysis.provider is mimir, which the administrator has not defined: use one of default",
        [{"route": [to("no-provider", "v1")]}],
        spec={"analysis": {"provider": "mimir"}},
    ),
    "unclear": Case(
        "StableVersionUnknown",
        "cannot tell which version is stable: the routes name no subset and several versions serve: v1, v2. Set "
        "spec.initialStableVersion to the version that serves now, or give one version all the traffic",
        [{"route": [to("unclear")]}],
        ready=("v1", "v2"),
    ),
    "abroad": Case(
        "InvalidSpec",
        "spec.host is 'abroad.other.svc.cluster.local': must be a service of the rollout's own namespace refusals, not "
        "of other; create the CanaryRollout in namespace other",
        [{"route": [to("abroad", "v1")]}],
        spec={"host": "abroad.other.svc.cluster.local"},
    ),
}


class Town:
    """All of them, as they are now."""

    def __init__(self, lab: Lab, operator: OperatorProcess, witness: Witness) -> None:
        self.lab = lab
        self.operator = operator
        self.witness = witness

    def status(self, name: str) -> CanaryRolloutStatus:
        return status_of(self.witness.latest(ROLLOUT, name))

    def reason(self, name: str) -> str:
        return next((c.reason for c in self.status(name).conditions if c.type == "Ready"), "")

    def events(self, name: str) -> list[tuple[str, str, str]]:
        found = [seen.document for seen in self.witness.seen() if seen.kind == EVENT]
        return [(e["type"], e["reason"], e["note"]) for e in found if e["regarding"]["name"] == name]

    def until(self, holds: Callable[[], object], name: str) -> None:
        deadline = time.monotonic() + WITHIN_SECONDS
        while not holds():
            self.operator.check_alive()
            assert time.monotonic() < deadline, self.status(name).model_dump_json(indent=1, exclude_defaults=True)
            time.sleep(0.02)

    def until_phase(self, name: str, phase: Phase, reason: str) -> None:
        self.until(lambda: (self.status(name).phase, self.reason(name)) == (phase, reason), name)


def mesh_of(name: str, case: Case) -> Iterator[dict[str, Any]]:
    def istio(kind: str, spec: dict[str, Any], called: str = name) -> dict[str, Any]:
        metadata = {"name": called, "namespace": NAMESPACE}
        return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}

    yield service(NAMESPACE, name)
    for version in case.ready:
        entry = {"address": "127.0.0.1", "ports": {"http": 9}, "labels": {"app": name, "version": version}}
        yield istio("WorkloadEntry", entry, f"{name}-{version}")
    if case.rule:
        subsets = [{"name": version, "labels": {"version": version}} for version in ("v0", "v1")]
        yield istio("DestinationRule", {"host": name, "subsets": subsets})
    if case.http is not None:
        http = {"http": case.http} if case.http else {}
        yield istio("VirtualService", {"hosts": [name], **http, **(case.route_spec or {})})


def rollout(name: str, **spec: Any) -> dict[str, Any]:
    document = body(name, **spec)
    document["metadata"]["namespace"] = NAMESPACE
    return document


@pytest.fixture(scope="module")
def town(apiserver: Lab) -> Iterator[Town]:
    """Every case, and two rollouts that nothing is wrong with: one at rest and one that waits for its canary."""
    with running_operator(apiserver, NOWHERE, namespaces=[NAMESPACE]) as operator:
        apiserver.namespace(NAMESPACE)
        with Witness(apiserver.kubeconfig, NAMESPACE) as witness:
            witness.wait_listening()
            fine = {name: Case("", "", [{"route": [to(name, "v1")]}]) for name in ("resting", "waiting", "older")}
            mesh = [each for name, case in (CASES | fine).items() for each in mesh_of(name, case)]
            apiserver.apply(*mesh)
            apiserver.apply(
                rollout("resting", version="v1"),
                *(rollout(name, **(case.spec or {})) for name, case in CASES.items()),
                rollout("waiting", version="v2"),
            )
            yield Town(apiserver, operator, witness)
            apiserver.kubectl("delete", "canaryrollouts", "--all", "-n", NAMESPACE, "--timeout=30s")
            assert [line for line in operator.complaints() if not is_slowness(line)] == []


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_moved_is_refused_with_a_remedy(town: Town, name: str) -> None:
    case = CASES[name]
    town.until_phase(name, Phase.BLOCKED, case.reason)
    status = town.status(name)
    assert status.message == case.message
    assert [(c.status, c.reason) for c in status.conditions if c.type in ("Ready", "Stalled")] == [
        ("False", case.reason),
        ("True", case.reason),
    ]
    town.until(lambda: town.events(name), name)
    assert ("Warning", case.reason, case.message) in town.events(name)
    shown = town.lab.kubectl("get", "canaryrollout", name, "-n", NAMESPACE, "-o", "wide")
    assert "Blocked" in shown
    assert case.message in shown


def test_others_get_on_with_their_work(town: Town) -> None:
    town.until_phase("resting", Phase.STABLE, "Serving")
    town.until_phase("waiting", Phase.PREPARING, "WaitingForCanary")
    assert town.status("resting").stable_version == "v1"


def test_nothing_that_is_refused_is_touched(town: Town) -> None:
    for name, case in CASES.items():
        town.until_phase(name, Phase.BLOCKED, case.reason)
        for kind in (VIRTUAL_SERVICE, DESTINATION_RULE):
            seen = [each for each in town.witness.seen() if (each.kind, each.name) == (kind, name)]
            assert len(seen) <= 1, difference(seen[0].document, seen[-1].document)


def test_of_two_rollouts_on_one_host_the_older_judges_it(town: Town) -> None:
    istio = {"virtualServices": [{"name": "older"}], "destinationRule": {"name": "older"}}
    town.lab.apply(rollout("older", version="v1"))
    town.until_phase("older", Phase.STABLE, "Serving")
    time.sleep(1.1)  # creation times are whole seconds; within one, uids decide
    full = f"older.{NAMESPACE}.svc.cluster.local"
    town.lab.apply(rollout("younger", host=full, istio=istio, version="v2"))
    town.until_phase("younger", Phase.BLOCKED, "HostClaimed")
    claim = "refusals/older judges host"
    assert town.status("younger").message.startswith(claim)
    assert "delete one of the two" in town.status("younger").message
    town.until(lambda: any(note.startswith(claim) for _, _, note in town.events("younger")), "younger")
    assert town.status("older").phase is Phase.STABLE

    town.lab.kubectl("delete", "canaryrollout", "older", "-n", NAMESPACE, "--timeout=20s")
    town.until_phase("younger", Phase.PREPARING, "WaitingForCanary")


def test_a_refusal_ends_with_its_cause(town: Town) -> None:
    """Only one route is left, so that it is clear which one is meant: nobody has to tell the operator."""
    town.until_phase("ambiguous", Phase.BLOCKED, "AmbiguousRoutes")
    patch = [{"op": "remove", "path": "/spec/http/0"}]
    town.lab.kubectl("patch", "virtualservice", "ambiguous", "-n", NAMESPACE, "--type=json", "-p", json.dumps(patch))
    town.until_phase("ambiguous", Phase.PREPARING, "WaitingForCanary")
