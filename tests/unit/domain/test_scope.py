from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.api.status import Change, ChangeKind
from canaryrollout.domain.scope import altered_scope
from tests.world import spec


def altered(name: str, route: str = "", kind: ChangeKind = ChangeKind.WEIGHT) -> Change:
    return Change(kind=kind, object=name, route=route, subset="v2")


def listing(*services: tuple[str, list[str]]) -> Any:
    refs = [{"name": name, "routes": routes} for name, routes in services]
    return spec(istio={"virtualServices": refs, "destinationRule": {"name": "reviews"}})


def looked_at(rollout: Any, *changes: Change) -> dict[str, tuple[str, ...]] | None:
    found = altered_scope(rollout, changes)
    return None if found is None else {ref.name: ref.routes for ref in found.istio.virtual_services}


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (altered("a", "x"),),
        (altered("a", "x"), altered("a", "y"), altered("b")),
        (altered("reviews", kind=ChangeKind.SUBSET),),
    ],
)
def test_the_list_of_the_user_is_enough_where_it_names_everything(changes: tuple[Change, ...]) -> None:
    assert looked_at(listing(("a", ["x", "y"]), ("b", [])), *changes) is None


def test_a_virtual_service_that_was_taken_off_the_list_is_looked_at_too() -> None:
    found = looked_at(listing(("a", ["x"])), altered("a", "x"), altered("c", "z"), altered("c", "y"), altered("b"))
    assert found == {"a": ("x",), "b": (), "c": ("y", "z")}


def test_a_route_that_was_taken_off_the_list_is_looked_at_beside_those_that_stay() -> None:
    assert looked_at(listing(("a", ["x"]), ("b", ["z"])), altered("a", "y")) == {"b": ("z",), "a": ("x", "y")}


def test_the_only_route_of_a_virtual_service_that_lists_none_is_on_the_list() -> None:
    assert looked_at(listing(("a", [])), altered("a", "")) is None
    assert looked_at(listing(("a", ["x"])), altered("a", "")) is None


def test_a_route_that_was_altered_by_name_is_looked_at_after_its_list_was_left_out() -> None:
    assert looked_at(listing(("a", [])), altered("a", "x")) == {"a": ("x",)}
