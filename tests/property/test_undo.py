"""Whatever the operator did to a mesh object, undoing its record gives back the author's JSON, at every moment."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import jsonpatch
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.adapters.istio_patch import Unpatchable, build_patch, undo, without_server_fields
from canaryrollout.adapters.istio_read import read_destination_rule, read_virtual_service
from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.changes import changes_after_cleanup, changes_of, merge_changes
from canaryrollout.domain.decision import (
    Action,
    AddSubset,
    CleanRoutes,
    RemoveSubsets,
    RouteCleanup,
    RouteWeights,
    SetWeights,
)
from canaryrollout.domain.observation import DestinationRuleState, VirtualServiceState, Weights

HOST = "reviews.shop.svc.cluster.local"
SPELLINGS = ("reviews", "reviews.shop.svc", HOST)
SUBSETS = ("", "v1", "v2", "v3")


@st.composite
def destinations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A route's destinations: at most two weighted ones, all of them of the host."""
    subsets = draw(st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=3, unique=True))
    weights: list[int | None] = [draw(st.sampled_from([None, 0])) for _ in subsets]
    for position in draw(st.sets(st.integers(0, len(subsets) - 1), min_size=1, max_size=2)):
        weights[position] = draw(st.sampled_from([1, 9, 25, 50, 75, 100]))
    foreign = draw(st.booleans())
    if len(subsets) == 1 and not foreign:
        weights = [draw(st.sampled_from([None, 0, 50, 100]))]
    entries = []
    for subset, weight in zip(subsets, weights, strict=True):
        destination: dict[str, Any] = {"host": draw(st.sampled_from(SPELLINGS))}
        if draw(st.booleans()):
            destination["port"] = {"number": 9080}
        entry: dict[str, Any] = {"destination": {**destination, **({"subset": subset} if subset else {})}}
        if draw(st.booleans()):
            entry["headers"] = {"response": {"set": {"x-served-by": subset}}}
        if weight is not None:
            entry["weight"] = weight
        entries.append(entry)
    if foreign:
        entry = {"destination": {"host": "ratings", "subset": "v2"}, "weight": 0}
        entries.insert(draw(st.integers(0, len(entries))), entry)
    return entries


@st.composite
def virtual_services(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A VirtualService and the names of its managed routes."""
    names = draw(st.sampled_from([(None,), ("only",), ("a", "b"), ("a", "b", None)]))
    http = []
    for name in names:
        route: dict[str, Any] = {"route": draw(destinations()), "timeout": "5s"}
        if name:
            route["name"] = name
        http.append(route)
    managed = tuple(name for name in names if name) if len(names) > 1 else ()
    metadata = {"name": "reviews", "namespace": "shop", "resourceVersion": "1", "labels": {"team": "a"}}
    return {"kind": "VirtualService", "metadata": metadata, "spec": {"hosts": ["reviews"], "http": http}}, managed


def read(document: dict[str, Any], managed: tuple[str, ...]) -> VirtualServiceState:
    state = read_virtual_service(document, managed, HOST, manager="canaryrollout")
    assert all(isinstance(route, Weights) for route in state.routes.values()), state.routes
    return state


@st.composite
def weights_for(draw: st.DrawFn, state: VirtualServiceState) -> SetWeights:
    """A move of weights on some of the routes."""
    targets = []
    for name, route in state.routes.items():
        assert isinstance(route, Weights)
        present = [destination.subset or "" for destination in route.destinations]
        choice = [subset for subset in SUBSETS if subset or "" in present]
        first, second = draw(st.lists(st.sampled_from(choice), min_size=2, max_size=2, unique=True))
        share = draw(st.sampled_from([0, 10, 50, 100]))
        template = draw(st.sampled_from(present)) or None
        targets.append(RouteWeights(name, {first: 100 - share, second: share}, template))
    return SetWeights(state, tuple(draw(st.lists(st.sampled_from(targets), min_size=1, unique_by=lambda t: t.route))))


def cleanup_for(state: VirtualServiceState, record: tuple[Change, ...], restore: bool) -> CleanRoutes:
    """Remove all of ours that has no traffic, and put original weights back."""
    cleanups = []
    for name, route in state.routes.items():
        assert isinstance(route, Weights)
        own = [change for change in record if change.route == name]
        ours = {change.subset for change in own if change.kind is ChangeKind.DESTINATION}
        remove = tuple(d.subset for d in route.destinations if d.subset in ours and d.subset and not d.weight)
        originals = {c.subset: c.original for c in own if c.kind is ChangeKind.WEIGHT and c.subset not in remove}
        cleanups.append(RouteCleanup(name, remove, originals if restore else {}))
    return CleanRoutes(state, tuple(cleanups))


def apply(document: dict[str, Any], action: Action) -> dict[str, Any]:
    result: dict[str, Any] = jsonpatch.apply_patch(document, list(build_patch(document, action, HOST)))
    result["metadata"]["resourceVersion"] = str(int(document["metadata"]["resourceVersion"]) + 1)
    return result


def same(document: dict[str, Any], original: dict[str, Any]) -> bool:
    return without_server_fields(document) == without_server_fields(original)


def shares(state: VirtualServiceState, route: str) -> dict[str, int]:
    found = state.routes[route]
    assert isinstance(found, Weights)
    return {destination.subset or "": destination.weight for destination in found.destinations}


@given(virtual_services(), st.data())
def test_undoing_the_record_gives_back_the_virtual_service(
    drawn: tuple[dict[str, Any], tuple[str, ...]], data: st.DataObject
) -> None:
    original, managed = drawn
    document, record = deepcopy(original), tuple[Change, ...]()
    for _ in range(data.draw(st.integers(1, 6))):
        state = read(document, managed)
        if data.draw(st.booleans()):
            action: Action = data.draw(weights_for(state))
            record = merge_changes(record, changes_of(action))
            assert same(undo(document, record), original), "a record written ahead does no harm"
            document = apply(document, action)
            assert isinstance(action, SetWeights)
            for target in action.routes:
                found = shares(read(document, managed), target.route)
                assert {s: w for s, w in found.items() if w} == {s: w for s, w in target.weights.items() if w}
        else:
            try:
                action = cleanup_for(state, record, restore=True)
                cleaned = apply(document, action)
            except Unpatchable:
                action = cleanup_for(state, record, restore=False)
                cleaned = apply(document, action)
            assert same(undo(cleaned, record), original), "a clean-up may be done and not yet be off the record"
            before, document = state, cleaned
            record = changes_after_cleanup(record, action)
            for name in before.routes:
                after = shares(read(document, managed), name)
                assert {s: w for s, w in shares(before, name).items() if w} == {s: w for s, w in after.items() if w}
        assert same(undo(document, record, HOST), original)
        assert same(undo(document, record), original), "the host can be told from the route"


@given(virtual_services(), st.data())
def test_a_rollback_and_a_clean_up_leave_no_trace_of_a_first_rollout(
    drawn: tuple[dict[str, Any], tuple[str, ...]], data: st.DataObject
) -> None:
    original, managed = drawn
    state = read(original, managed)
    for name in state.routes:
        serving = [subset for subset, weight in shares(state, name).items() if weight]
        if len(serving) > 1 or "v9" in shares(state, name):
            return
        stable = serving[0]
        step = SetWeights(state, (RouteWeights(name, {stable: 90, "v9": 10}, stable or None),))
        document, record = apply(original, step), changes_of(step)
        back = SetWeights(read(document, managed), (RouteWeights(name, {stable: 100, "v9": 0}, stable or None),))
        document, record = apply(document, back), merge_changes(record, changes_of(back))
        clean = cleanup_for(read(document, managed), record, restore=True)
        assert same(apply(document, clean), original)
        assert changes_after_cleanup(record, clean) == ()


subset_lists = st.sampled_from(
    [
        None,
        [],
        [
            {
                "name": "v1",
                "labels": {"version": "v1"},
                "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 5}}},
            }
        ],
        [{"name": "blue", "labels": {"version": "v1", "track": "a"}}, {"name": "bare"}],
    ]
)


@given(subset_lists, st.data())
def test_undoing_the_record_gives_back_the_destination_rule(subsets: Any, data: st.DataObject) -> None:
    spec = {"host": "reviews", **({} if subsets is None else {"subsets": subsets})}
    metadata = {"name": "reviews", "namespace": "shop", "resourceVersion": "1"}
    original: dict[str, Any] = {"kind": "DestinationRule", "metadata": metadata, "spec": spec}
    document, record = deepcopy(original), tuple[Change, ...]()
    for _ in range(data.draw(st.integers(1, 6))):
        state = read_destination_rule(document, HOST, "version")
        assert isinstance(state, DestinationRuleState)
        recorded = sorted(change.subset for change in record)
        if data.draw(st.booleans()) and recorded:
            names = tuple(data.draw(st.lists(st.sampled_from(recorded), min_size=1, unique=True)))
            keep = any(change.original == 0 for change in record)
            action: Action = RemoveSubsets(state, names, keep_empty_list=keep)
            document = apply(document, action)
            assert same(undo(document, record), original)
            record = changes_after_cleanup(record, action)
        else:
            present = tuple(subset.name for subset in state.subsets)
            version = data.draw(st.sampled_from(["w1", "w2", "w3"]))
            template: str | None = data.draw(st.sampled_from((None, *present)))
            if version in present:
                continue
            action = AddSubset(state, version, version, "version", template)
            record = merge_changes(record, changes_of(action))
            assert same(undo(document, record), original)
            document = apply(document, action)
            added = document["spec"]["subsets"][-1]
            assert added["labels"]["version"] == version
        assert same(undo(document, record), original)
