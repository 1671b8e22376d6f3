"""Routes as people write them: moved where they can be moved, and nothing else of them touched.

All rollouts of this module start together; each test then follows one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import pytest

from canaryrollout.api.status import Phase
from lab.demo.measure import status_of
from lab.demo.watch import DESTINATION_RULE, ROLLOUT, VIRTUAL_SERVICE
from lab.kubectl import KubectlError
from tests.mesh.place import Place, Service, Weights, destination, route, written

pytestmark = pytest.mark.mesh

RATE = 14.0
ENOUGH = {"minRequests": 10}
VERSION = attrgetter("version")


@pytest.fixture(scope="module")
def services(street: Place) -> dict[str, Service]:
    """A service for every shape, each on its way to the next version."""
    found: dict[str, Service] = {}

    def begin(name: str, path: str = "/", version: str = "v2", **shape: Any) -> Service:
        service = found[name] = street.service(name, **shape)
        service.send(RATE, path)
        service.apply(version, analysis=ENOUGH)
        return service

    three = {name: route(destination("named", "v1"), name=name, prefix=f"/{name}") for name in ("api", "admin", "rest")}
    begin("named", "/admin/x", http={"named": [*three.values()]}, routes={"named": ("api", "rest")})
    begin(
        "twice",
        http={
            "twice": [route(destination("twice", "v1"))],
            "twice-mesh": [route(destination(f"twice.{street.namespace}.svc.cluster.local", "v1", 100), name="inside")],
        },
    )
    begin("lone").backends["v2"].set_mode(error_rate=1.0)
    begin("plain", versions=("v1",), http={"plain": [route(destination("plain"))]}, subsets=())
    serving = destination("further", "v1", 100, headers={"response": {"add": {"x-via": "further"}}})
    idle = destination("further", "v0", 0), destination("elsewhere", weight=0)
    begin(
        "further",
        http={"further": [route(idle[0], serving, idle[1])]},
        subsets=[{"name": v, "labels": {"version": v}} for v in ("v0", "v1")],
    )
    full = f"spelled.{street.namespace}.svc.cluster.local"
    begin("spelled", http={"spelled": [route(destination(full, "v1"))]}, rule_host=full)
    policy = {"tls": {"mode": "DISABLE"}}
    begin(
        "dotted",
        version="1.4.2",
        versions=("1.4.1", "1.4.2"),
        http={"dotted": [route(destination("dotted", "current"))]},
        subsets=[{"name": "current", "labels": {"version": "1.4.1"}, "trafficPolicy": policy}],
    )
    return found


def test_of_several_routes_only_the_listed_ones_are_moved(services: dict[str, Service]) -> None:
    """The load goes to the route that is not listed: it never meets v2, and nothing tells whether v2 is good."""
    named = services["named"]
    named.until_weight(50)
    named.until_phase(Phase.PROGRESSING, "NoData")
    named.command("promote/v2/now")
    named.until_promoted("v2")
    assert [named.weights(index=index) for index in range(3)] == [
        {"v1": None, "v2": 100},
        {"v1": None},
        {"v1": None, "v2": 100},
    ]
    admin = [seen.document["spec"]["http"][1] for seen in named.seen(VIRTUAL_SERVICE)]
    assert len(admin) > 2
    assert all(each == admin[0] for each in admin), "the route that was not listed was touched"
    assert {record.version for record in named.requests()} == {"v1"}
    named.assert_nothing_lost()


def test_two_virtual_services_are_kept_in_step(services: dict[str, Service]) -> None:
    twice = services["twice"]
    twice.until_promoted("v2")
    weights = {name: twice.weights(name) for name in twice.routing}
    assert weights == {"twice": {"v1": None, "v2": 100}, "twice-mesh": {"v1": 0, "v2": 100}}
    taken = {
        name: [_share(seen.document, "v2") for seen in twice.seen(VIRTUAL_SERVICE, name)] for name in twice.routing
    }
    assert taken == {"twice": [0, 50, 100, 100], "twice-mesh": [0, 50, 100]}
    seen = sorted((each for name in twice.routing for each in twice.seen(VIRTUAL_SERVICE, name)), key=VERSION)
    together = [_share(each.document, "v2") for each in seen]
    assert together == [0, 0, 50, 50, 100, 100, 100], "neither goes ahead of the other by more than a write"
    for weight in (50, 100):
        confirmed = next(s for s in twice.seen(ROLLOUT) if (r := status_of(s.document).rollout) and r.weight == weight)
        assert [_share(each.document, "v2") for each in seen if each.version < confirmed.version][-2:] == [weight] * 2
    twice.assert_nothing_lost()


def test_a_single_destination_without_weight_is_split_and_restored(services: dict[str, Service]) -> None:
    """Its canary fails every request; afterwards the weight is absent again, as its author wrote it."""
    lone = services["lone"]
    lone.until_taken_back("GateFailed")
    lone.assert_restored()
    split = [written(seen.document["spec"]["http"][0]) for seen in lone.seen(VIRTUAL_SERVICE)]
    assert split[:2] == [{"v1": None}, {"v1": 50, "v2": 50}]
    assert split[-1] == {"v1": None}
    lone.assert_nothing_lost("v2")


def test_a_route_without_subsets_is_pinned_before_the_canary_can_get_traffic(services: dict[str, Service]) -> None:
    """Without subsets every ready endpoint has its part, so v2 would be in as soon as it is ready."""
    plain = services["plain"]
    plain.until_phase(Phase.PREPARING, "WaitingForCanary")
    assert plain.weights() == {"": None, "v1": 100}
    plain.run("v2")
    plain.until_weight(50)
    decided = next(s.rollout.target.set_at for s in plain.statuses if s.rollout and s.rollout.target)
    early = [record for record in plain.requests(until=decided.timestamp()) if record.version == "v2"]
    assert early == []
    plain.until_promoted("v2")
    assert plain.weights() == {"": None, "v2": 100}
    assert plain.subsets() == ["v2"]
    plain.assert_nothing_lost()


def test_further_destinations_stay_at_weight_zero(services: dict[str, Service]) -> None:
    further = services["further"]
    further.until_promoted("v2")
    entries = further.latest(VIRTUAL_SERVICE)["spec"]["http"][0]["route"]
    assert [(e["destination"]["host"], e["destination"].get("subset"), e["weight"]) for e in entries] == [
        ("further", "v0", 0),
        ("further", "v1", 0),
        ("elsewhere", None, 0),
        ("further", "v2", 100),
    ]
    assert entries[3]["headers"] == entries[1]["headers"], (
        "what stable's destination does to headers, the canary's does"
    )
    further.assert_nothing_lost()


def test_a_host_is_the_same_however_it_is_spelled(services: dict[str, Service]) -> None:
    spelled = services["spelled"]
    spelled.until_promoted("v2")
    entries = spelled.latest(VIRTUAL_SERVICE)["spec"]["http"][0]["route"]
    assert {entry["destination"]["host"] for entry in entries} == {spelled.host}
    spelled.assert_nothing_lost()


def test_a_version_that_is_no_name_of_a_subset(services: dict[str, Service]) -> None:
    dotted = services["dotted"]
    status = dotted.until_promoted("1.4.2")
    subset = status.subsets["1.4.2"]
    assert subset.startswith("1-4-2-")
    assert dotted.weights() == {"current": None, subset: 100}
    subsets = dotted.latest(DESTINATION_RULE)["spec"]["subsets"]
    assert subsets[1] == {**subsets[0], "name": subset, "labels": {"version": "1.4.2"}}
    assert {record.version for record in dotted.requests()} == {"1.4.1", "1.4.2"}
    dotted.assert_nothing_lost()


def test_deleting_what_was_promoted_names_what_stays(services: dict[str, Service]) -> None:
    """The route serves v2 through what the operator added: it stays, and an Event says where it came from."""
    spelled = services["spelled"]
    spelled.until_promoted("v2")
    before = spelled.weights()
    spelled.kubectl("delete", "canaryrollout", "spelled", "--timeout=20s")
    told = spelled.event("LeftInPlace")["note"]
    assert "subset v2 in spelled" in told
    assert "the destination v2 in spelled" in told
    assert spelled.weights() == before
    assert spelled.subsets() == ["v1", "v2"]
    with pytest.raises(KubectlError, match="NotFound"):
        spelled.kubectl("get", "canaryrollout", "spelled")
    spelled.assert_nothing_lost()


def _share(document: Mapping[str, Any], subset: str) -> int:
    weights: Weights = written(document["spec"]["http"][0])
    return weights.get(subset) or 0
