"""Promises of `decide`, over whole lives of rollouts: random ones, and every point at which the operator can die."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canaryrollout.adapters.istio_patch import undo
from canaryrollout.adapters.istio_patch import without_server_fields as bare
from canaryrollout.api.status import Phase
from canaryrollout.domain.decide import decide
from canaryrollout.domain.decision import Action, SetWeights
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Observation
from tests.world import HOST, SETTINGS, Crash, World, destination, destination_rule, spec, virtual_service

HOLD = timedelta(seconds=30)
MILLISECOND = timedelta(milliseconds=1)


def healthy() -> World:
    return World()


def faulty_at(weight: int, rate: float = 0.05) -> Callable[[], World]:
    return lambda: World(error_rate=lambda version, now, _: rate if version == "v2" and now >= weight else 0.0)


def two_services() -> World:
    names = ("reviews", "gateway")
    return World(
        rollout=spec(
            istio={
                "virtualServices": [{"name": "reviews"}, {"name": "gateway", "routes": ["primary"]}],
                "destinationRule": {"name": "reviews"},
            }
        ),
        services={
            names[0]: virtual_service(names[0]),
            names[1]: virtual_service(names[1], {"name": "primary", "route": [destination("v1", 100)]}),
        },
    )


def unsubsetted() -> World:
    return World(
        services={"reviews": virtual_service("reviews", {"route": [destination(None)]})},
        ready={"v1": 2},
    )


def weights_of(world: World) -> list[int]:
    """Return the canary's weights over the world's life, without repetitions."""
    seen: list[int] = []
    for _, weight in world.weights:
        if not seen or seen[-1] != weight:
            seen.append(weight)
    return seen


def end_of(world: World) -> tuple[object, ...]:
    status = world.state
    documents = [bare(document) for document in (*world.services.values(), world.rule or {})]
    rollout = status.rollout
    kept = (rollout.version, rollout.reason) if rollout else None
    return status.phase, status.stable_version, kept, world.finalizer, documents


LIVES = {
    "healthy": (healthy, [0, 10, 30, 50, 100]),
    "fails from the start": (faulty_at(10), [0, 10, 0]),
    "fails at 50": (faulty_at(50), [0, 10, 30, 50, 0]),
    "two virtual services": (two_services, [0, 10, 30, 50, 100]),
}


@pytest.mark.parametrize("life", LIVES)
def test_a_life_takes_its_steps_and_comes_to_its_end(life: str) -> None:
    make, weights = LIVES[life]
    world = make().run()
    assert weights_of(world) == weights
    assert world.phase is (Phase.STABLE if weights[-1] == 100 else Phase.ROLLED_BACK)
    assert world.state.stable_version == ("v2" if weights[-1] == 100 else "v1")
    assert not world.finalizer
    assert [w for w in world.writes if w.startswith("SetWeights")].__len__() == (len(weights) - 1) * len(world.services)


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("life", LIVES)
def test_a_crash_at_any_write_ends_in_the_same_place(life: str, after: bool) -> None:
    make, weights = LIVES[life]
    undisturbed = make().run()
    for n in range(1, len(undisturbed.writes) + 1):
        world = make()
        world.crash_at, world.crash_after = n, after
        world.run()
        assert end_of(world) == end_of(undisturbed), f"killed at write {n}: {undisturbed.writes[n - 1]}"
        assert weights_of(world) == weights, f"killed at write {n}: {undisturbed.writes[n - 1]}"
        mesh = [write for write in world.writes if "/" in write]
        assert len(mesh) <= len([write for write in undisturbed.writes if "/" in write]) + 1


@pytest.mark.parametrize("life", LIVES)
def test_an_abort_at_any_moment_takes_the_canary_to_zero(life: str) -> None:
    make, _ = LIVES[life]
    for passes in range(60):
        world = make()
        if _pass(world, passes) is None:
            break
        record = world.state.rollout
        if record is None or world.state.stable_version == "v2" or record.reason:
            continue
        world.command = "abort/v2/1"
        world.step()
        assert world.share("v2") == 0
        world.run()
        assert world.phase is Phase.ROLLED_BACK
        assert world.reason == "Aborted"
        assert world.state.last_command is not None
        assert world.state.last_command.result == "accepted"


@pytest.mark.parametrize("life", LIVES)
def test_deletion_at_any_moment_before_promotion_restores_the_mesh(life: str) -> None:
    make, _ = LIVES[life]
    for passes in range(60):
        world = make()
        if _pass(world, passes) is None:
            break
        if world.state.stable_version != "v1":
            break
        world.deleting = True
        world.run()
        assert not world.finalizer
        services, rule = world.originals
        assert [bare(s) for s in world.services.values()] == [bare(s) for s in services.values()]
        assert bare(world.rule or {}) == bare(rule or {})


def test_nothing_is_written_while_nothing_changes() -> None:
    world = World(rollout=spec(hold="30m", progressDeadline="1h")).run(60)
    before = list(world.writes)
    world.run(1200)
    assert world.reason == "Holding"
    assert world.writes == before


def test_a_rollout_at_rest_neither_writes_nor_wakes() -> None:
    world = World(rollout=spec(version="v1")).run()
    before = list(world.writes)
    decision = world.step()
    assert decision.wake_at is None
    assert not decision.again
    assert world.writes == before


def test_undoing_what_is_recorded_gives_back_the_original_at_every_moment() -> None:
    for make in (healthy, faulty_at(30), two_services, unsubsetted):
        world = make()
        services, rule = copy.deepcopy(world.originals)
        for passes in range(200):
            if _pass(world, 1) is None:
                break
            changes = world.state.changes
            for name, original in services.items():
                assert bare(undo(world.services[name], changes, HOST)) == bare(original), passes
            assert bare(undo(world.rule or {}, changes, HOST)) == bare(rule or {}), passes


def test_a_route_without_subsets_is_pinned_before_the_canary_gets_traffic() -> None:
    world = unsubsetted()
    world.run(60)
    assert world.state.stable_version == "v1"
    assert world.reason == "WaitingForCanary"
    assert world.share("v1") == 100, "else a canary would have its part of the requests as soon as it is ready"
    world.ready = {"v1": 2, "v2": 2}
    world.run(until=lambda w: w.share("v2") == 10)
    route = world.services["reviews"]["spec"]["http"][0]["route"]
    assert {(d["destination"].get("subset"), d.get("weight", 0)) for d in route} == {(None, 0), ("v1", 90), ("v2", 10)}
    world.run()
    assert world.phase is Phase.STABLE
    assert world.share("v2") == 100


def test_traffic_is_not_pinned_to_a_stable_version_that_is_gone() -> None:
    world = unsubsetted()
    world.ready = {"v2": 2}
    world.apply(initialStableVersion="v1")
    world.run(60)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "StableGone")
    assert [d["destination"].get("subset") for d in world.services["reviews"]["spec"]["http"][0]["route"]] == [None]


class Watched(World):
    """A world that checks each raise against the promises: only after the present weight passed, and never the first
    one without a provider that can judge it."""

    def _act(self, action: Action) -> None:
        if isinstance(action, SetWeights):
            record = self.state.rollout
            subset = self.state.subsets.get(record.version) if record else None
            for route in action.routes:
                share = route.weights.get(subset or "", 0)
                if record is not None and self.state.stable_version != record.version and share:
                    passed = not record.weight or bool(record.finished and record.finished[-1].weight == record.weight)
                    decided_now = record.target is not None and self.now - record.target.set_at < MILLISECOND
                    if share > record.weight == 0 and decided_now and not record.promote:
                        assert self.found is not None
                        assert self.prometheus
                        assert not self.restarted
                        assert not self.found.get("edge_problem")
                    if share > record.weight and not record.promote:
                        assert passed
                        assert not record.weight or self.now - self.weights[-1][0] >= HOLD + SETTINGS.lag["default"]
                        assert not record.weight or self.prometheus or action.key in self.failures
        super()._act(action)


def _pass(world: World, count: int) -> World | None:
    """Make passes, letting time go on as asked; ``None`` when the world came to rest."""
    for _ in range(count):
        try:
            decision = world.step()
        except Crash:
            world.now += timedelta(seconds=1)
            continue
        if decision.again:
            world.now += timedelta(milliseconds=20)
        elif decision.wake_at is None:
            return None
        else:
            world.now = max(decision.wake_at, world.now + timedelta(milliseconds=1))
    return world


def _drift(weight: int) -> Callable[[World], None]:
    def change(world: World) -> None:
        def edit(mesh: dict[str, object]) -> None:
            route = mesh["http"][0]["route"]  # type: ignore[index]
            if len(route) == 2:
                route[0]["weight"], route[1]["weight"] = 100 - weight, weight

        world.edit("reviews", edit)

    return change


def _set(**fields: object) -> Callable[[World], None]:
    return lambda world: world.apply(**fields)


def _have(name: str, value: object) -> Callable[[World], None]:
    return lambda world: setattr(world, name, value)


def _rule_back(world: World) -> None:
    if world.rule is None:
        world.rule = destination_rule("v1", "v2", "v3")


def _subset_gone(world: World) -> None:
    if world.rule is not None:
        world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] == "v1"]


def _split(shares: list[tuple[str, int]]) -> Callable[[World], None]:
    def change(world: World) -> None:
        _rule_back(world)
        known = {subset["name"] for subset in (world.rule or {})["spec"]["subsets"]}
        route = [destination(name, weight) for name, weight in shares if name in known]
        if any(entry["weight"] for entry in route):
            world.edit("reviews", lambda mesh: mesh["http"][0].update(route=route))

    return change


def _analyse(**fields: object) -> Callable[[World], None]:
    def change(world: World) -> None:
        analysis = world.rollout.analysis.model_dump(mode="json", by_alias=True, exclude_unset=True)
        world.apply(analysis=analysis | fields)

    return change


HAPPENINGS: dict[str, Callable[[World], None]] = {
    "nothing": lambda world: None,
    "spec back to v1": _set(version="v1"),
    "spec to v2": _set(version="v2"),
    "spec to v3": _set(version="v3"),
    "paused": _set(paused=True),
    "unpaused": _set(paused=False),
    "other steps": _set(steps=[{"weight": 20}, {"weight": 100}]),
    "drift to 0": _drift(0),
    "drift to 80": _drift(80),
    "prometheus gone": _have("prometheus", False),
    "prometheus back": _have("prometheus", True),
    "the operator forgets": _have("restarted", True),
    "the operator knows again": _have("restarted", False),
    "threshold is no edge": _have("found", {"edge_problem": "300ms is no bucket edge"}),
    "stable version has no series": _have("found", {"versions": ("latest",)}),
    "host has no series": _have("found", {"host_series": False, "versions": ()}),
    "preflight unanswered": _have("found", None),
    "preflight fine": _have("found", {}),
    "traffic contradicts the weight": lambda world: world.show(60),
    "traffic shows the weight": lambda world: world.show(None),
    "convergence required": _analyse(requireConvergence="Required"),
    "convergence not required": _analyse(requireConvergence="NotRequired"),
    "no data is a no": _analyse(onNoData="Rollback"),
    "no series of the canary": _have("canary_seen", False),
    "series of the canary": _have("canary_seen", True),
    "canary dies": _have("ready", {"v1": 2}),
    "stable dies": _have("ready", {"v2": 2, "v3": 2}),
    "all ready": _have("ready", {"v1": 2, "v2": 2, "v3": 2}),
    "endpoints unreadable": _have("ready", None),
    "API server away": _have("api", False),
    "API server back": _have("api", True),
    "abort v2": _have("command", "abort/v2/1"),
    "promote v2": _have("command", "promote/v2/2"),
    "retry v2": _have("command", "retry/v2/3"),
    "approve v2": _have("command", "approve/v2/4"),
    "route refuses writes": _have("refusing", frozenset({"reviews"})),
    "route accepts writes": _have("refusing", frozenset()),
    "rule gone": _have("rule", None),
    "rule back": _rule_back,
    "subset gone": _subset_gone,
    "split three ways": _split([("v1", 50), ("v2", 30), ("v3", 20)]),
    "a person sends all to v1": _split([("v1", 100)]),
    "a person sends all to v2": _split([("v1", 0), ("v2", 100)]),
    "nonsense": _have("command", "make it so"),
    "errors": _have("error_rate", lambda version, weight, at: 0.05 if version != "v1" else 0.0),
    "no errors": _have("error_rate", lambda version, weight, at: 0.0),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    story=st.lists(st.tuples(st.integers(1, 12), st.sampled_from(sorted(HAPPENINGS))), max_size=12),
    crash=st.tuples(st.integers(1, 60), st.booleans()),
)
def test_whatever_happens_promises_hold_and_it_comes_to_an_end(
    story: list[tuple[int, str]], crash: tuple[int, bool]
) -> None:
    world = Watched()
    world.crash_at, world.crash_after = crash
    for passes, happening in story:
        HAPPENINGS[happening](world)
        _pass(world, passes)
    for calm in (
        "all ready",
        "API server back",
        "prometheus back",
        "the operator knows again",
        "preflight fine",
        "series of the canary",
        "convergence not required",
        "unpaused",
        "no errors",
        "route accepts writes",
        "rule back",
    ):
        HAPPENINGS[calm](world)
    if len([d for d in world.services["reviews"]["spec"]["http"][0]["route"] if d.get("weight")]) > 2:
        HAPPENINGS["a person sends all to v1"](world)
    world.run(4 * 3600)
    assert world.phase in (Phase.STABLE, Phase.ROLLED_BACK, Phase.BLOCKED)
    if world.phase is Phase.BLOCKED:
        assert world.reason == "WeightContested"
    if world.phase is Phase.STABLE:
        assert world.state.stable_version == world.rollout.version
        assert world.share(world.rollout.version) == 100
        assert world.state.rollout is None
    if world.phase is Phase.ROLLED_BACK:
        assert world.share(world.state.stable_version or "") == 100


def test_traffic_on_a_third_version_when_a_rollout_is_given_up_is_drift_and_not_called_stable() -> None:
    world = Watched()
    world.run()
    assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
    HAPPENINGS["stable version has no series"](world)
    world.apply(version="v3")
    world.run(60)
    HAPPENINGS["a person sends all to v1"](world)
    world.run(3600)
    assert (world.phase, world.share("v2")) == (Phase.ROLLED_BACK, 100)
    said = [entry.message for entry in world.state.history if entry.reason == "RolledBack"]
    assert said[0].startswith("v3 has no traffic, reviews is at v1 100: ")


def test_a_rollout_whose_subset_nobody_knows_is_not_said_to_be_taken_back() -> None:
    world = Watched()
    story = ((3, "subset gone"), (1, "rule gone"), (1, "API server away"), (1, "split three ways"), (1, "subset gone"))
    for passes, happening in story:
        HAPPENINGS[happening](world)
        _pass(world, passes)
    HAPPENINGS["API server back"](world)
    world.run(3600)
    assert (world.phase, world.reason) == (Phase.BLOCKED, "TooManyDestinations")
    HAPPENINGS["a person sends all to v1"](world)
    world.run(60)
    assert (world.phase, world.share("v1")) == (Phase.ROLLED_BACK, 100)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(passes=st.integers(0, 60), happening=st.sampled_from(sorted(HAPPENINGS)))
def test_the_same_input_has_the_same_answer(passes: int, happening: str) -> None:
    world = World()
    _pass(world, passes)
    HAPPENINGS[happening](world)
    status, identity = world.state, world._identity()
    wanted = needs(world.rollout, status, identity, world.now, SETTINGS)
    observation = Observation(
        identity=identity,
        mesh=world._mesh(references=True),
        endpoints=world._endpoints(),
        evidence=world._evidence(wanted.evidence),
        opening=world._evidence(wanted.opening),
        baseline=world._evidence(wanted.baseline),
        preflight=world._preflight(wanted.preflight),
    )
    first = decide(world.rollout, status, observation, world.now, SETTINGS)
    assert decide(world.rollout, status, observation, world.now, SETTINGS) == first


def test_a_virtual_service_that_was_taken_off_the_list_is_rolled_back_too() -> None:
    world = two_services().run(until=lambda w: w.share("v2") == 30)
    world.apply(istio={"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}})
    world.command = "abort/v2/1"
    world.run()
    assert world.phase is Phase.ROLLED_BACK
    services, rule = world.originals
    assert {name: bare(s) for name, s in world.services.items()} == {name: bare(s) for name, s in services.items()}
    assert bare(world.rule or {}) == bare(rule or {})
