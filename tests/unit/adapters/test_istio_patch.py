"""Patches, operation by operation, over the shapes that routes come in."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import jsonpatch
import pytest

from canaryrollout.adapters.istio_patch import Unpatchable, build_patch, undo, without_server_fields
from canaryrollout.adapters.istio_read import read_destination_rule, read_virtual_service
from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.decision import (
    Action,
    AddSubset,
    CleanRoutes,
    RemoveSubsets,
    RouteCleanup,
    RouteWeights,
    SetFinalizer,
    SetWeights,
)
from canaryrollout.domain.observation import DestinationRuleState, VirtualServiceState

HOST = "reviews.shop.svc.cluster.local"
GUARD = {"op": "replace", "path": "/metadata/resourceVersion", "value": "42"}


def to(subset: str | None = None, weight: int | None = None, host: str = "reviews", **more: Any) -> dict[str, Any]:
    destination = {"host": host} if subset is None else {"host": host, "subset": subset}
    return {"destination": destination, **({} if weight is None else {"weight": weight}), **more}


def virtual_service(*http: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "reviews", "namespace": "shop", "resourceVersion": "42"}
    return {"kind": "VirtualService", "metadata": metadata, "spec": {"hosts": ["reviews"], "http": list(http)}}


def destination_rule(*subsets: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"name": "reviews", "namespace": "shop", "resourceVersion": "42"}
    listed = {"subsets": list(subsets)} if subsets else {}
    return {"kind": "DestinationRule", "metadata": metadata, "spec": {"host": "reviews", **listed, **spec}}


def found(document: dict[str, Any], *routes: str) -> VirtualServiceState:
    return read_virtual_service(document, routes, HOST, manager="canaryrollout")


def found_rule(document: dict[str, Any]) -> DestinationRuleState:
    state = read_destination_rule(document, HOST, "version")
    assert isinstance(state, DestinationRuleState)
    return state


def weigh(document: dict[str, Any], template: str | None = "v1", **weights: int) -> list[dict[str, Any]]:
    plain = {"" if subset == "plain" else subset: weight for subset, weight in weights.items()}
    action = SetWeights(found(document), (RouteWeights("", plain, template),))
    return list(build_patch(document, action, HOST))


def patched(document: dict[str, Any], patch: Any) -> dict[str, Any]:
    original = deepcopy(document)
    result: dict[str, Any] = jsonpatch.apply_patch(document, list(patch))
    assert document == original
    return result


def test_a_single_destination_without_weight_is_split() -> None:
    headers = {"request": {"set": {"x-a": "b"}}}
    document = virtual_service({"route": [to("v1", headers=headers)], "timeout": "5s"})
    assert weigh(document, v1=90, v2=10) == [
        GUARD,
        {"op": "test", "path": "/spec/http/0/route", "value": [to("v1", headers=headers)]},
        {"op": "add", "path": "/spec/http/0/route/0/weight", "value": 90},
        {"op": "add", "path": "/spec/http/0/route/-", "value": to("v2", 10, headers=headers)},
    ]


def test_two_destinations_of_a_named_route_get_new_weights() -> None:
    document = virtual_service({"name": "primary", "route": [to("v1", 90), to("v2", 10)]})
    assert weigh(document, v1=70, v2=30) == [
        GUARD,
        {"op": "test", "path": "/spec/http/0/name", "value": "primary"},
        {"op": "test", "path": "/spec/http/0/route/0/destination", "value": {"host": "reviews", "subset": "v1"}},
        {"op": "test", "path": "/spec/http/0/route/1/destination", "value": {"host": "reviews", "subset": "v2"}},
        {"op": "add", "path": "/spec/http/0/route/0/weight", "value": 70},
        {"op": "add", "path": "/spec/http/0/route/1/weight", "value": 30},
    ]


def test_a_weight_that_is_right_already_is_not_written() -> None:
    document = virtual_service({"name": "a", "route": [to("v1", 100), to("v0"), to("v2", 0)]})
    writes = [operation for operation in weigh(document, v1=90, v2=10) if operation["op"] == "add"]
    assert [operation["path"] for operation in writes] == ["/spec/http/0/route/0/weight", "/spec/http/0/route/2/weight"]


def test_no_patch_where_all_is_as_it_should_be() -> None:
    assert weigh(virtual_service({"route": [to("v1", 90), to("v2", 10)]}), v1=90, v2=10) == []
    assert weigh(virtual_service({"route": [to("v1")]}), v1=100) == []


def test_every_further_destination_of_the_host_goes_to_0_and_those_of_others_stay() -> None:
    other = to("v1", 0, host="ratings")
    document = virtual_service({"route": [to("v0", 80), other, to("v1", 20), to()]})
    result = patched(document, weigh(document, v1=90, v2=10))
    assert result["spec"]["http"][0]["route"] == [to("v0", 0), other, to("v1", 90), to(), to("v2", 10)]


def test_a_plain_destination_without_weight_is_at_0_beside_the_subset_that_takes_over() -> None:
    port = {"host": "reviews", "port": {"number": 9080}}
    document = virtual_service({"route": [{"destination": port}]})
    result = patched(document, weigh(document, template=None, v1=100))
    assert result["spec"]["http"][0]["route"] == [
        {"destination": port},
        {"destination": {**port, "subset": "v1"}, "weight": 100},
    ]
    weighted = virtual_service({"route": [{"destination": port, "weight": 100}]})
    result = patched(weighted, weigh(weighted, template=None, v1=100))
    assert [entry["weight"] for entry in result["spec"]["http"][0]["route"]] == [0, 100]


def test_the_plain_destination_can_have_the_traffic_back() -> None:
    document = virtual_service({"route": [to(None, 0), to("v1", 100)]})
    result = patched(document, weigh(document, plain=100, v1=0))
    assert result["spec"]["http"][0]["route"] == [to(None, 100), to("v1", 0)]


def test_weights_that_were_proportions_become_percent() -> None:
    document = virtual_service({"route": [to("v1", 3), to("v2", 1)]})
    assert [o["value"] for o in weigh(document, v1=75, v2=25) if o["op"] == "add"] == [75, 25]


def test_several_named_routes_change_in_one_patch_and_unlisted_ones_do_not() -> None:
    document = virtual_service(
        {"name": "beta", "match": [{"uri": {"prefix": "/beta"}}], "route": [to("v1")]},
        {"name": "health", "directResponse": {"status": 200}},
        {"route": [to("v1")]},
        {"name": "primary", "route": [to("v1", 100), to("v2", 0)]},
    )
    state = found(document, "primary", "beta")
    targets = tuple(RouteWeights(name, {"v1": 90, "v2": 10}, "v1") for name in ("primary", "beta"))
    patch = build_patch(document, SetWeights(state, targets), HOST)
    assert sum(operation["path"] == "/metadata/resourceVersion" for operation in patch) == 1
    assert [o["value"] for o in patch if o["path"].endswith("/name")] == ["primary", "beta"]
    result = patched(document, patch)["spec"]["http"]
    assert result[0]["route"] == [to("v1", 90), to("v2", 10)]
    assert result[1:3] == document["spec"]["http"][1:3]
    assert result[3]["route"] == [to("v1", 90), to("v2", 10)]


REFUSED_WEIGHTS = [
    ({"v1": 90, "v2": 20}, "v1", "do not sum to 100"),
    ({"v1": 110, "v2": -10}, "v1", "do not sum to 100"),
    ({}, "v1", "do not sum to 100"),
    ({"v1": 90, "v2": 10}, "v9", "no destination of subset 'v9'"),
    ({"v1": 90, "v2": 10}, None, "no destination of the plain host"),
]


@pytest.mark.parametrize(("weights", "template", "words"), REFUSED_WEIGHTS)
def test_weights_that_cannot_be_right_are_refused(weights: dict[str, int], template: str | None, words: str) -> None:
    document = virtual_service({"route": [to("v1")]})
    with pytest.raises(Unpatchable, match=words):
        build_patch(document, SetWeights(found(document), (RouteWeights("", weights, template),)), HOST)


def test_a_route_that_was_refused_or_is_gone_or_comes_twice_cannot_be_weighed() -> None:
    delegate = virtual_service({"delegate": {"name": "x"}})
    target = RouteWeights("", {"v1": 100}, "v1")
    with pytest.raises(Unpatchable, match="not found to be one that can be moved"):
        build_patch(delegate, SetWeights(found(delegate), (target,)), HOST)
    document = virtual_service({"route": [to("v1")]})
    with pytest.raises(Unpatchable, match="has 0 http routes where one was expected"):
        build_patch(virtual_service(), SetWeights(found(document), (target,)), HOST)
    with pytest.raises(Unpatchable, match="named twice"):
        build_patch(document, SetWeights(found(document), (target, target)), HOST)


def clean(document: dict[str, Any], *remove: str, **restore: int | None) -> list[dict[str, Any]]:
    action = CleanRoutes(found(document), (RouteCleanup("", remove, restore),))
    return list(build_patch(document, action, HOST))


def test_a_drained_destination_goes_and_the_original_weight_comes_back() -> None:
    document = virtual_service({"name": "a", "route": [to("v1", 100), to("v2", 0)]})
    assert clean(document, "v2", v1=None) == [
        GUARD,
        {"op": "test", "path": "/spec/http/0/name", "value": "a"},
        {"op": "test", "path": "/spec/http/0/route/0/destination", "value": {"host": "reviews", "subset": "v1"}},
        {"op": "test", "path": "/spec/http/0/route/1/destination", "value": {"host": "reviews", "subset": "v2"}},
        {"op": "remove", "path": "/spec/http/0/route/0/weight"},
        {"op": "remove", "path": "/spec/http/0/route/1"},
    ]


def test_several_destinations_go_from_the_back() -> None:
    document = virtual_service({"route": [to("v2", 0), to("v1", 100), to("v3", 0)]})
    result = patched(document, clean(document, "v2", "v3", v1=100))
    assert result["spec"]["http"][0]["route"] == [to("v1", 100)]


def test_what_is_clean_already_needs_no_patch() -> None:
    assert clean(virtual_service({"route": [to("v1")]}), "v2", v1=None) == []


@pytest.mark.parametrize(
    ("entries", "remove", "restore", "words"),
    [
        ([to("v1", 90), to("v2", 10)], ("v2",), {}, "10 % of its requests still go to subset 'v2'"),
        ([to("v1", 0), to("v2", 100)], (), {"v1": 50}, "would move traffic"),
        ([to("v1", 100), to("v2", 0)], (), {"v1": None}, "would move traffic"),
        ([to("v2")], ("v2",), {}, "100 % of its requests still go to subset 'v2'"),
    ],
)
def test_a_clean_up_never_moves_traffic(
    entries: list[Any], remove: tuple[str, ...], restore: dict[str, int | None], words: str
) -> None:
    with pytest.raises(Unpatchable, match=words):
        clean(virtual_service({"route": entries}), *remove, **restore)


V1 = {"name": "blue", "labels": {"version": "v1", "tier": "web"}, "trafficPolicy": {"tls": {"mode": "DISABLE"}}}


def test_a_new_subset_is_a_copy_of_its_template() -> None:
    document = destination_rule({"name": "x"}, V1)
    patch = build_patch(document, AddSubset(found_rule(document), "v2", "v2", "version", "blue"))
    added = {"name": "v2", "labels": {"version": "v2", "tier": "web"}, "trafficPolicy": {"tls": {"mode": "DISABLE"}}}
    assert list(patch) == [
        GUARD,
        {"op": "test", "path": "/spec/host", "value": "reviews"},
        {"op": "test", "path": "/spec/subsets/1/name", "value": "blue"},
        {"op": "add", "path": "/spec/subsets/-", "value": added},
    ]


@pytest.mark.parametrize(("spec", "path"), [({}, "/spec/subsets"), ({"subsets": []}, "/spec/subsets/-")])
def test_a_first_subset_selects_its_version(spec: dict[str, Any], path: str) -> None:
    document = destination_rule(**spec)
    patch = build_patch(document, AddSubset(found_rule(document), "1-4-2-a", "1.4.2", "version", None))
    assert patch[-1]["path"] == path
    assert patched(document, patch)["spec"]["subsets"] == [{"name": "1-4-2-a", "labels": {"version": "1.4.2"}}]


def test_a_subset_that_is_there_is_not_added_again_and_one_of_another_version_is_not_taken() -> None:
    document = destination_rule({"name": "v2", "labels": {"version": "v2"}})
    assert build_patch(document, AddSubset(found_rule(document), "v2", "v2", "version", None)) == ()
    with pytest.raises(Unpatchable, match="has a subset 'v2' that is not v3"):
        build_patch(document, AddSubset(found_rule(document), "v2", "v3", "version", None))
    with pytest.raises(Unpatchable, match="no subset 'v1' to copy"):
        build_patch(document, AddSubset(found_rule(document), "v3", "v3", "version", "v1"))


def test_subsets_are_removed_by_name_from_the_back() -> None:
    document = destination_rule({"name": "a"}, V1, {"name": "b"})
    assert list(build_patch(document, RemoveSubsets(found_rule(document), ("b", "a", "gone")))) == [
        GUARD,
        {"op": "test", "path": "/spec/subsets/0/name", "value": "a"},
        {"op": "test", "path": "/spec/subsets/2/name", "value": "b"},
        {"op": "remove", "path": "/spec/subsets/2"},
        {"op": "remove", "path": "/spec/subsets/0"},
    ]
    assert build_patch(document, RemoveSubsets(found_rule(document), ("gone",))) == ()


@pytest.mark.parametrize(("keep", "left"), [(False, {"host": "reviews"}), (True, {"host": "reviews", "subsets": []})])
def test_the_list_goes_with_its_last_subset_unless_its_author_wrote_an_empty_one(keep: bool, left: Any) -> None:
    document = destination_rule({"name": "v2"})
    patch = build_patch(document, RemoveSubsets(found_rule(document), ("v2",), keep_empty_list=keep))
    assert patched(document, patch)["spec"] == left


def test_only_changes_of_the_mesh_have_patches() -> None:
    action: Action = SetFinalizer(True)
    with pytest.raises(TypeError, match="SetFinalizer"):
        build_patch(virtual_service(), action)


def weight(subset: str, original: int | None) -> Change:
    return Change(kind=ChangeKind.WEIGHT, object="reviews", subset=subset, original=original)


def destination(subset: str) -> Change:
    return Change(kind=ChangeKind.DESTINATION, object="reviews", subset=subset)


def test_undoing_takes_the_route_of_the_object_and_the_host_of_its_traffic() -> None:
    other = to("v2", 0, host="ratings")
    document = virtual_service({"route": [to("v1", 0), other, to("v2", 100)]})
    record = (weight("v1", None), destination("v2"))
    assert undo(document, record)["spec"]["http"][0]["route"] == [to("v1"), other]
    assert document["spec"]["http"][0]["route"][2] == to("v2", 100)


def test_undoing_passes_over_what_is_not_there() -> None:
    document = virtual_service({"route": [to("v1")]})
    absent = Change(kind=ChangeKind.WEIGHT, object="reviews", route="gone", subset="v1", original=5)
    elsewhere = Change(kind=ChangeKind.WEIGHT, object="edge", subset="v1", original=5)
    subset = Change(kind=ChangeKind.SUBSET, object="reviews", subset="v2")
    assert undo(document, (absent, elsewhere, subset, destination("v2"))) == document
    rule = destination_rule({"name": "v2"})
    assert undo(rule, (subset,))["spec"] == {"host": "reviews"}
    assert undo(rule, (subset.model_copy(update={"original": 0}),))["spec"] == {"host": "reviews", "subsets": []}


def test_what_the_server_keeps_is_left_out_of_comparisons() -> None:
    metadata = {"name": "a", "namespace": "b", "labels": {"x": "y"}, "annotations": {"z": "w"}}
    kept = {"resourceVersion": "1", "generation": 2, "managedFields": [], "creationTimestamp": "t", "uid": "u"}
    document: dict[str, Any] = {"kind": "VirtualService", "metadata": {**metadata, **kept}, "spec": {"hosts": ["a"]}}
    assert without_server_fields(document) == {"kind": "VirtualService", "metadata": metadata, "spec": {"hosts": ["a"]}}
    assert document["metadata"]["uid"] == "u"
