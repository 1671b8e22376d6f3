"""Nothing in an object crashes the core, moves traffic that it must not, or ends without an answer."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest

from canaryrollout.adapters.istio_patch import Unpatchable, build_patch
from canaryrollout.adapters.istio_read import read_destination_rule, read_virtual_service, subsets_named
from canaryrollout.adapters.kube import Resource
from canaryrollout.adapters.rollouts import rollout_of
from canaryrollout.api.status import Phase
from canaryrollout.domain.decide import decide, decide_invalid
from canaryrollout.domain.decision import Decision, SetFinalizer, SetWeights
from canaryrollout.domain.evidence import Evidence, EvidenceRequest
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Mesh, Observation, Refused
from canaryrollout.engine.ports import Gone
from canaryrollout.engine.registry import is_active
from tests.hostile import CONTROL, nested, put, rollout, spoiled, statuses
from tests.world import HOST, SETTINGS, START, World, destination

METADATA = {
    "name": "reviews",
    "namespace": "shop",
    "uid": "u",
    "generation": 3,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "annotations": {"canaryrollout.io/command": "approve/v2/1"},
    "finalizers": ["canaryrollout.io/traffic"],
}


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def pass_over(world: World, body: Any) -> Decision | None:
    """One pass as the worker makes it; ``None`` where the status is left alone because it cannot be read."""
    read = rollout_of(body)
    if read.status_problems:
        return None
    if read.spec is None or (read.problems and not is_active(read.status)):
        assert read.problems
        return decide_invalid(read.status, read.identity, read.problems, world.now)
    wanted = needs(read.spec, read.status, read.identity, world.now, SETTINGS)
    observation = Observation(
        identity=read.identity,
        mesh=world._read(references=wanted.references, scope=wanted.scope),
        endpoints=world._endpoints(),
        evidence=evidence(world, wanted.evidence),
        opening=evidence(world, wanted.opening),
        baseline=evidence(world, wanted.baseline),
        preflight=world._preflight(wanted.preflight),
    )
    return decide(read.spec, read.status, observation, world.now, SETTINGS)


def evidence(world: World, request: EvidenceRequest | None) -> Evidence | None:
    """Evidence as the world has it, unless counting it would take the test too long."""
    if request is None or (world.now - request.start) / request.interval > 1000:
        return None
    return world._evidence(request)


def check(decision: Decision, what: object) -> None:
    written = decision.status.as_object()
    assert decision.status.message, what
    for text in texts(written):
        assert len(text) <= 4096, what
        assert not {unicodedata.category(char) for char in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}, what
    for action in decision.actions:
        if isinstance(action, SetWeights):
            for route in action.routes:
                assert sum(route.weights.values()) == 100, what
                assert all(0 <= weight <= 100 for weight in route.weights.values()), what


@pytest.fixture
def world() -> World:
    world = World()
    world.now = START + timedelta(minutes=5)
    return world


def test_no_spec_crashes_and_every_bad_one_is_answered(world: World) -> None:
    seen = blocked = 0
    for at, junk, spec in spoiled(rollout()["spec"]):
        decision = pass_over(world, {"metadata": METADATA, "spec": spec})
        assert decision is not None
        check(decision, (at, junk))
        read = rollout_of({"metadata": METADATA, "spec": spec})
        seen += 1
        if read.problems:
            blocked += 1
            assert decision.status.phase is Phase.BLOCKED, (at, junk)
            assert decision.actions == (), (at, junk)
            assert "spec" in decision.status.message, (at, junk)
    assert seen > 300
    assert blocked > 300


def test_no_forged_status_crashes_or_sets_impossible_weights(world: World) -> None:
    seen = left_alone = 0
    for status in statuses():
        for at, junk, forged in islice(spoiled(status), None, None, 11):
            decision = pass_over(world, {"metadata": METADATA, "spec": rollout()["spec"], "status": forged})
            seen += 1
            if decision is None:
                left_alone += 1
            else:
                check(decision, (at, junk))
    assert seen > 1000
    assert left_alone > 300


@pytest.mark.parametrize("status", statuses()[:3])
def test_no_metadata_crashes(world: World, status: dict[str, Any]) -> None:
    for at, junk, metadata in spoiled(METADATA):
        decision = pass_over(world, {"metadata": metadata, "spec": rollout()["spec"], "status": status})
        assert decision is not None, (at, junk)


def test_depth_and_size_are_no_way_in(world: World) -> None:
    for body in (
        {"metadata": METADATA, "spec": nested(5000)},
        {"metadata": METADATA, "spec": put(rollout()["spec"], ("steps",), nested(900))},
        {"metadata": METADATA, "spec": rollout(steps=[{"weight": n % 101} for n in range(20_000)])["spec"]},
        {"metadata": METADATA, "spec": rollout(version="v" * 1_000_000)["spec"]},
        {"metadata": METADATA, "spec": {f"field{n}": CONTROL * 10 for n in range(10_000)}},
        {"metadata": METADATA | {"finalizers": ["canaryrollout.io/traffic"] * 2}, "spec": rollout()["spec"]},
    ):
        decision = pass_over(world, body)
        assert decision is not None
        check(decision, body["metadata"])


def test_no_route_or_subset_crashes_a_reader_or_a_patch(world: World) -> None:
    world.run(40)
    rich = world.services["reviews"]
    rich = put(
        rich,
        ("spec",),
        {
            "hosts": ["reviews"],
            "http": [
                {
                    "name": "primary",
                    "route": [destination("v1", 90), destination("v2", 10)],
                    "mirror": {"host": "reviews", "subset": "v1"},
                    "mirrors": [{"destination": {"host": "reviews", "subset": "v1"}}],
                    "delegate": None,
                }
            ],
            "tcp": [{"route": [destination("v1")]}],
        },
    )
    lives = [rollout_of({"metadata": METADATA, "spec": rollout()["spec"], "status": status}) for status in statuses()]
    rule = world.rule
    assert rule is not None
    seen = refused = 0
    for kind, document in (("rule", rule), ("service", rich), ("service", world.services["reviews"])):
        for at, junk, spec in spoiled(document["spec"]):
            spoilt = document | {"spec": spec}
            services = spoilt if kind == "service" else world.services["reviews"]
            service = read_virtual_service(services, (), HOST, manager="canaryrollout")
            found = read_destination_rule(spoilt if kind == "rule" else rule, HOST, "version")
            subsets_named(services, HOST)
            seen += 1
            refused += isinstance(found, Refused) or any(isinstance(s, Refused) for s in service.routes.values())
            for life in lives[seen % 3 :: 3]:
                assert life.spec is not None
                observation = Observation(life.identity, Mesh({"reviews": service}, found, {}), world._endpoints())
                decision = decide(life.spec, life.status, observation, world.now, SETTINGS)
                check(decision, (kind, at, junk))
                for action in decision.actions:
                    if not isinstance(action, SetFinalizer):
                        with contextlib.suppress(Unpatchable):  # the verdict of a guard, which a pass takes in
                            build_patch(action.found.document, action, HOST)
    assert seen > 1000
    assert refused > 300


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "../../namespaces/other/virtualservices/x", "a?b", "a#b", "a%2fb", "a\\b"]
)
def test_no_name_leads_to_another_place_of_the_api(name: str) -> None:
    resource = Resource("networking.istio.io", "v1", "virtualservices")
    with pytest.raises(Gone, match="can be no name"):
        resource.path("shop", name)
    with pytest.raises(Gone, match="can be no name"):
        resource.path(name, "reviews")
    assert resource.path("shop", "reviews").endswith("/namespaces/shop/virtualservices/reviews")


def test_a_status_cannot_name_an_object_elsewhere() -> None:
    status = {"stableVersion": "v1", "changes": [{"kind": "Weight", "object": "../../other/virtualservices/x"}]}
    read = rollout_of({"metadata": METADATA, "spec": rollout()["spec"], "status": status})
    assert read.status_problems == (
        "status.changes[0].object is '../../other/virtualservices/x': must be the name of an object in the same "
        "namespace",
    )


def test_a_step_of_millions_of_blocks_costs_no_room() -> None:
    request = EvidenceRequest(
        provider="default", namespace="shop", host=HOST, stable="v1", canary="v2", version_label="version", start=START,
        interval=timedelta(seconds=1),
    )  # fmt: skip
    ends = request.ends(START, START + timedelta(days=3650))
    assert len(ends) == 3650 * 24 * 3600
    assert ends[:2] == (START + timedelta(seconds=1), START + timedelta(seconds=2))
    assert ends[-1] == START + timedelta(days=3650)
