"""Every shape of route: read as weights, or refused with a reason and a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.adapters.istio_read import (
    last_writer,
    read_destination_rule,
    read_virtual_service,
    subsets_named,
)
from canaryrollout.domain.observation import Destination, DestinationRuleState, Refused, Subset, Weights

HOST = "reviews.shop.svc.cluster.local"


def to(subset: str | None = None, weight: int | None = None, host: str = "reviews") -> dict[str, Any]:
    destination = {"host": host} if subset is None else {"host": host, "subset": subset}
    return {"destination": destination} if weight is None else {"destination": destination, "weight": weight}


def route(*entries: dict[str, Any], name: str | None = None, **more: Any) -> dict[str, Any]:
    return {**({"name": name} if name else {}), **({"route": list(entries)} if entries else {}), **more}


def virtual_service(*http: dict[str, Any], **spec: Any) -> dict[str, Any]:
    routes = {"http": list(http)} if http else {}
    return {
        "kind": "VirtualService",
        "metadata": {"name": "reviews", "namespace": "shop", "generation": 7, "resourceVersion": "42"},
        "spec": {"hosts": ["reviews"], **routes, **spec},
    }


def read(document: dict[str, Any], *routes: str) -> dict[str, Any]:
    return dict(read_virtual_service(document, routes, HOST, manager="canaryrollout").routes)


def only(document: dict[str, Any]) -> Any:
    return read(document)[""]


ACCEPTED = [
    ("a single destination has everything", [to("v1")], [("v1", 100, None)]),
    ("even where it says 0", [to("v1", 0)], [("v1", 100, 0)]),
    ("a plain destination has no subset", [to()], [(None, 100, None)]),
    ("two destinations", [to("v1", 90), to("v2", 10)], [("v1", 90, 90), ("v2", 10, 10)]),
    ("an absent weight among several is 0", [to("v1", 100), to("v2")], [("v1", 100, 100), ("v2", 0, None)]),
    ("weights are proportions", [to("v1", 3), to("v2", 1)], [("v1", 75, 3), ("v2", 25, 1)]),
    ("rounding sums to 100", [to("v1", 1), to("v2", 2)], [("v1", 33, 1), ("v2", 67, 2)]),
    ("a trickle is not nothing", [to("v1", 999), to("v2", 1)], [("v1", 99, 999), ("v2", 1, 1)]),
    (
        "further destinations at 0",
        [to("v1", 100), to("v2", 0), to("v0", 0)],
        [("v1", 100, 100), ("v2", 0, 0), ("v0", 0, 0)],
    ),
    ("another host at 0 is left out", [to("v1", 100), to("v1", 0, host="ratings")], [("v1", 100, 100)]),
    ("a fully qualified host", [to("v1", host=HOST)], [("v1", 100, None)]),
    ("a host up to svc", [to("v1", host="reviews.shop.svc")], [("v1", 100, None)]),
    (
        "spellings may be mixed",
        [to("v1", 60), to("v2", 40, host=HOST)],
        [("v1", 60, 60), ("v2", 40, 40)],
    ),
]


@pytest.mark.parametrize(("entries", "found"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
@pytest.mark.parametrize("name", [None, "primary"])
def test_a_route_that_can_be_moved(entries: list[Any], found: list[Any], name: str | None) -> None:
    assert only(virtual_service(route(*entries, name=name))) == Weights(tuple(Destination(*one) for one in found))


def test_only_the_listed_routes_are_read() -> None:
    document = virtual_service(
        route(to("v1"), name="headers"),
        route(to("v1", 80), to("v2", 20), name="primary"),
        route(to("v9", host="ratings")),
    )
    assert read(document, "primary", "headers") == {
        "primary": Weights((Destination("v1", 80, 80), Destination("v2", 20, 20))),
        "headers": Weights((Destination("v1", 100),)),
    }


REFUSED: list[tuple[str, dict[str, Any], tuple[str, ...], str, str]] = [
    (
        "a delegate",
        virtual_service(route(delegate={"name": "inner", "namespace": "shop"})),
        (),
        "RouteDelegates",
        "VirtualService reviews: spec.http[0] delegates to VirtualService shop/inner; "
        "name that one in spec.istio.virtualServices instead",
    ),
    (
        "a redirect",
        virtual_service(route(name="old", redirect={"uri": "/"}), route(to("v1"), name="new")),
        ("old",),
        "RouteRedirects",
        "VirtualService reviews: route 'old' is a redirect and sends no request to the host; leave it out",
    ),
    (
        "a direct response",
        virtual_service(route(directResponse={"status": 200})),
        (),
        "RouteRespondsDirectly",
        "VirtualService reviews: spec.http[0] answers by itself (directResponse) and sends no request on; leave it out",
    ),
    (
        "nothing at all",
        virtual_service(route(timeout="1s")),
        (),
        "NoDestinations",
        "VirtualService reviews: spec.http[0] has no destinations; it needs a route to the host",
    ),
    (
        "several routes and none listed",
        virtual_service(route(to("v1"), name="a"), route(to("v1"), name="b")),
        (),
        "AmbiguousRoutes",
        "VirtualService reviews: spec.http has 2 routes ('a', 'b'); "
        "list in spec.istio.virtualServices[].routes the names of those to move",
    ),
    (
        "several routes without names",
        virtual_service(route(to("v1"), name="a"), route(to("v1"))),
        (),
        "AmbiguousRoutes",
        "VirtualService reviews: spec.http has 2 routes ('a', one without a name); "
        "list in spec.istio.virtualServices[].routes the names of those to move, and name them first",
    ),
    (
        "two routes of one name",
        virtual_service(route(to("v1"), name="a"), route(to("v1"), name="a")),
        ("a",),
        "DuplicateRouteName",
        "VirtualService reviews: 2 routes in spec.http are named 'a'; give each a name of its own",
    ),
    (
        "a route listed twice",
        virtual_service(route(to("v1"), name="a")),
        ("a", "a"),
        "RouteListedTwice",
        "VirtualService reviews: spec.istio.virtualServices[].routes lists 'a' more than once; list each route once",
    ),
    (
        "three weighted destinations",
        virtual_service(route(to("v1", 60), to("v2", 30), to("v3", 10))),
        (),
        "TooManyDestinations",
        "VirtualService reviews: spec.http[0] splits its traffic 3 ways (v1 60 %, v2 30 %, v3 10 %); a rollout moves "
        "traffic between two versions: set all weights but two to 0",
    ),
    (
        "another host with traffic",
        virtual_service(route(to("v1", 60), to("v2", 40, host="ratings"))),
        (),
        "ForeignDestination",
        "VirtualService reviews: spec.http[0] sends 40 % of its requests to 'ratings', not to "
        "reviews.shop.svc.cluster.local; only a route whose traffic all goes to that host can be moved: set the other "
        "weights to 0",
    ),
    (
        "another host alone",
        virtual_service(route(to("v1", host="ratings"), name="a")),
        ("a",),
        "HostNotRouted",
        "VirtualService reviews: route 'a' routes to ratings, not to reviews.shop.svc.cluster.local; list only routes "
        "of that host, or correct spec.host",
    ),
    (
        "the same name in another namespace",
        virtual_service(route(to("v1", host="reviews.web.svc.cluster.local"))),
        (),
        "HostNotRouted",
        "VirtualService reviews: spec.http[0] routes to reviews.web.svc.cluster.local, not to "
        "reviews.shop.svc.cluster.local; list only routes of that host, or correct spec.host",
    ),
    (
        "no weight above 0",
        virtual_service(route(to("v1", 0), to("v2"))),
        (),
        "NoWeights",
        "VirtualService reviews: spec.http[0] has 2 destinations and no weight above 0; "
        "give them weights that sum to 100",
    ),
    (
        "one subset twice",
        virtual_service(route(to("v1", 50), to("v1", 50, host=HOST))),
        (),
        "DuplicateDestination",
        "VirtualService reviews: spec.http[0] names subset 'v1' 2 times; keep one destination for each subset",
    ),
    (
        "tcp only",
        virtual_service(tcp=[{"route": [to("v1")]}]),
        (),
        "NoHttpRoutes",
        "VirtualService reviews: spec has only tcp routes; requests can be counted and split on http routes only, so "
        "spec.http needs one",
    ),
    (
        "tcp and tls only, a route listed",
        virtual_service(tcp=[{}], tls=[{}]),
        ("a",),
        "NoHttpRoutes",
        "VirtualService reviews: spec has only tcp and tls routes; requests can be counted and split on http routes "
        "only, so spec.http needs one",
    ),
]


@pytest.mark.parametrize(
    ("document", "routes", "reason", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_route_that_is_refused(document: dict[str, Any], routes: tuple[str, ...], reason: str, message: str) -> None:
    states = read(document, *routes)
    assert list(states) == [routes[0] if routes else ""]
    (state,) = states.values()
    assert isinstance(state, Refused)
    assert (state.reason, state.message) == (reason, message)


def test_a_listed_route_that_is_not_there_is_refused_and_the_others_are_read() -> None:
    states = read(virtual_service(route(to("v1"), name="a"), route(to("v1"))), "a", "b")
    assert isinstance(states["a"], Weights)
    assert states["b"] == Refused(
        "RouteNotFound",
        "VirtualService reviews: spec.istio.virtualServices[].routes lists 'b', but spec.http has "
        "'a', one without a name",
        (Destination("v1", 100, None),),
    )


@pytest.mark.parametrize(
    ("http", "routes", "reason", "served"),
    [
        ([("a", ("v1", 90), ("v2", 10)), ("b", ("v3", None))], (), "AmbiguousRoutes", {"v1": 90, "v2": 10, "v3": 100}),
        ([("a", ("v1", 3), ("v2", 1)), ("b", ("v3", None))], ("b", "c"), "RouteNotFound", {"v1": 75, "v2": 25}),
        (
            [("a", ("v1", None)), ("a", ("v2", None)), ("b", ("v3", 1))],
            ("a",),
            "DuplicateRouteName",
            {"v1": 100, "v2": 100},
        ),
        ([("a", ("v1", None)), ("b", ("v2", None))], ("b", "b"), "RouteListedTwice", {"v2": 100}),
        ([("a", ("v1", 90), ("v\n2", 10))], ("a",), "UnusableName", {"v1": 90, "v\n2": 10}),
        ([("a", ("v1", 0), ("v2", 0)), ("b", ("v3", 1))], ("c",), "RouteNotFound", {"v1": 0, "v2": 0, "v3": 100}),
    ],
)
def test_whom_routes_may_serve_is_told_where_it_is_not_clear_which_are_meant(
    http: list[Any], routes: tuple[str, ...], reason: str, served: dict[str, int]
) -> None:
    document = virtual_service(*(route(*(to(*entry) for entry in entries), name=name) for name, *entries in http))
    refused = next(state for state in read(document, *routes).values() if isinstance(state, Refused))
    assert refused.reason == reason
    assert {destination.subset: destination.weight for destination in refused.destinations} == served


def test_routes_to_other_hosts_are_none_that_may_be_meant() -> None:
    document = virtual_service(route(to("v2", host="ratings"), name="a"), route(name="b", redirect={}))
    (refused,) = read(document, "c").values()
    assert (refused.reason, refused.destinations) == ("RouteNotFound", ())


def managed(*entries: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    document = virtual_service(route(to("v1")))
    document["metadata"]["managedFields"] = [
        {"manager": manager, "operation": "Update", "fieldsV1": fields} for manager, fields in entries
    ]
    return document


def test_the_one_owner_of_the_http_routes_wrote_them_last() -> None:
    document = managed(
        ("kubectl", {"f:spec": {"f:hosts": {}}}),
        ("canaryrollout", {"f:spec": {"f:http": {}}}),
        ("labeler", {"f:metadata": {"f:labels": {}}}),
    )
    state = read_virtual_service(document, (), HOST, manager="canaryrollout")
    assert (state.writer, state.written_by_us, state.generation) == ("canaryrollout", True, 7)
    assert state.document is document
    other = read_virtual_service(document, (), HOST, manager="somebody")
    assert not other.written_by_us


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (("kubectl", {"f:spec": {"f:hosts": {}}}),),
        (("canaryrollout", {"f:spec": {"f:http": {}}}), ("argocd", {"f:spec": {"f:http": {}}})),
    ],
)
def test_without_exactly_one_owner_the_writer_is_unknown(entries: tuple[tuple[str, dict[str, Any]], ...]) -> None:
    document = managed(*entries)
    assert last_writer(document) == ""
    assert not read_virtual_service(document, (), HOST, manager="canaryrollout").written_by_us


def rule(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "reviews", "namespace": "shop", "generation": 3}
    return {"kind": "DestinationRule", "metadata": metadata, "spec": {"host": "reviews", **spec}}


def test_subsets_are_known_by_their_label_and_not_by_their_name() -> None:
    document = rule(
        subsets=[
            {"name": "blue", "labels": {"version": "v1"}},
            {"name": "narrow", "labels": {"version": "v1", "zone": "a"}},
            {"name": "other", "labels": {"app": "reviews"}},
            {"name": "bare"},
        ]
    )
    state = read_destination_rule(document, HOST, "version")
    assert isinstance(state, DestinationRuleState)
    assert state.subsets == (
        Subset("blue", "v1"),
        Subset("narrow", "v1"),
        Subset("other", None),
        Subset("bare", None),
    )
    assert (state.generation, state.empty_list) == (3, False)


@pytest.mark.parametrize(("spec", "empty"), [({}, False), ({"subsets": []}, True)])
def test_no_list_of_subsets_is_told_from_an_empty_one(spec: dict[str, Any], empty: bool) -> None:
    state = read_destination_rule(rule(**spec), HOST, "version")
    assert isinstance(state, DestinationRuleState)
    assert (state.subsets, state.empty_list) == ((), empty)


@pytest.mark.parametrize("host", ["reviews", "reviews.shop.svc", HOST])
def test_a_destination_rule_may_spell_its_host_as_it_likes(host: str) -> None:
    assert isinstance(read_destination_rule(rule(host=host), HOST, "version"), DestinationRuleState)


def test_a_destination_rule_of_another_host_is_refused() -> None:
    assert read_destination_rule(rule(host="ratings"), HOST, "version") == Refused(
        "HostMismatch",
        "DestinationRule reviews: spec.host is 'ratings', but the rollout is about reviews.shop.svc.cluster.local; "
        "name the DestinationRule of that host in spec.istio.destinationRule",
    )


def test_subsets_are_found_wherever_a_virtual_service_names_them() -> None:
    document = virtual_service(
        route(to("a", 0), to("b"), to("foreign", host="ratings"), to(), mirror={"host": "reviews", "subset": "c"}),
        route(to("a"), mirrors=[{"destination": {"host": HOST, "subset": "d"}}]),
        route(redirect={"uri": "/"}),
        tcp=[{"route": [to("e")]}],
        tls=[{"route": [to("f", host="reviews.shop.svc")]}],
    )
    assert subsets_named(document, HOST) == {"a", "b", "c", "d", "e", "f"}
    elsewhere = {**document, "metadata": {"name": "reviews", "namespace": "web"}}
    assert subsets_named(elsewhere, HOST) == {"d", "f"}


@pytest.mark.parametrize("listed", [(), ("a",), ("a", "a")])
def test_what_serves_is_known_also_where_it_is_not_clear_which_route_is_meant(listed: tuple[str, ...]) -> None:
    first, second = route(to("v1", 70), to("v2", 30), name="a"), route(to("v1"), to("v9", 9, host="ratings"), name="a")
    document = virtual_service(first, second, route(to("v3"), name="" if listed else "b"), route(redirect={}))
    (state,) = read(document, *listed).values()
    assert isinstance(state, Refused)
    shares = [("v1", 70), ("v2", 30), ("v1", 0), *([] if listed else [("v3", 100)])]
    assert [(found.subset, found.weight) for found in state.destinations] == shares
