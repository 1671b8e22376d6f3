"""A machine that lives with the operator: users, other writers, faults, crashes and clocks in any order.

Every step does one thing to the world and lets some passes go by; `tests.promises` checks each decision and each write.
At the end everything is made well again, and the rollout has to come to an end of its own.
"""

from __future__ import annotations

import copy
from datetime import datetime, timedelta
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from canaryrollout.adapters.istio_patch import without_server_fields as bare
from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.observation import Claim, VirtualServiceState, Weights
from tests.modelworld import ModelWorld
from tests.promises import Promises, destinations, labels_of, promise
from tests.world import START, destination, destination_rule, spec, virtual_service

VERSIONS = ("v1", "v2", "v3")
BOTH: dict[str, Any] = {
    "virtualServices": [{"name": "reviews"}, {"name": "gateway", "routes": ["primary"]}],
    "destinationRule": {"name": "reviews"},
}
ALONE: dict[str, Any] = {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}}
GATEWAY_ROUTES: tuple[dict[str, Any], ...] = (
    {"name": "admin", "match": [{"uri": {"prefix": "/admin"}}], "route": [destination("v1", 100)]},
    {"name": "primary", "timeout": "5s", "route": [destination("v1", 100)], "retries": {"attempts": 3}},
)
passes = st.integers(0, 14)
services = st.sampled_from(["reviews", "gateway"])


NONSENSE = ("", "make it so", "promote/v2", "promote/v2/" + "x" * 480, "//", "abort/\x1b[2Jv2/1")
WEIGHTS = st.sampled_from([0, 1, 10, 35, 80, 100])


def ladder(*weights: int, approve: int = 0) -> list[dict[str, Any]]:
    return [{"weight": w, **({"approval": "Required"} if w == approve else {})} for w in weights]


LADDERS = (ladder(10, 30, 50, 100), ladder(20, 100), ladder(100), ladder(5, 10, 25, 60, 100, approve=25))
ANALYSES: tuple[dict[str, Any], ...] = (
    {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}, "mode": "Threshold"},
    {"interval": "10s", "minRequests": 50, "errorRate": {"max": "1%", "maxRelative": "150%"}},
    {"interval": "5s", "minRequests": 200, "errorRate": {"max": "2%"}, "onNoData": "Rollback"},
    {"interval": "10s", "requireConvergence": "Required", "errorRate": {"max": "1%"}},
    {"interval": "10s", "metrics": [{"name": "failures", "query": "failures", "max": "5"}]},
)


def faultless(version: str, weight: int, at: datetime) -> float:
    return 0.0


def faulty(version: str, weight: int, at: datetime) -> float:
    return 0.4 if version != "v1" else 0.0


def grumbling(version: str, weight: int, at: datetime) -> float:
    return 0.015


class Life(RuleBasedStateMachine):
    """One CanaryRollout, from first sight to its end."""

    lived: ClassVar[int] = 0
    """How many things have happened in all lives."""

    @initialize(
        both=st.booleans(),
        subsets=st.sampled_from([("v1",), ("v1", "v2"), ("v1", "v2", "v3")]),
        shape=st.sampled_from(["one", "weightless", "plain", "split"]),
        steps=st.sampled_from(LADDERS),
        analysis=st.sampled_from(ANALYSES),
        undisturbed=st.integers(0, 90),
    )
    def begin(
        self,
        both: bool,
        subsets: tuple[str, ...],
        shape: str,
        steps: list[dict[str, Any]],
        analysis: dict[str, Any],
        undisturbed: int,
    ) -> None:
        routes = {
            "one": [destination("v1", 100), {"destination": {"host": "ratings"}, "weight": 0}],
            "weightless": [destination("v1")],
            "plain": [destination(None)],
            "split": [destination("v1", 70), destination("v2", 30)],
        }
        if shape == "split":
            subsets, both = ("v1", "v2"), False
        self.promises = Promises()
        self.world = ModelWorld(
            rollout=spec(istio=BOTH if both else ALONE, steps=steps, analysis=analysis, initialStableVersion="v1"),
            services={
                "reviews": virtual_service("reviews", {"route": routes[shape]}),
                "gateway": virtual_service("gateway", *copy.deepcopy(GATEWAY_ROUTES)),
            },
            rule=destination_rule(*subsets),
            auditor=self.promises,
        )
        self.token = 0
        self.shape = shape
        self.world.pass_time(undisturbed)

    # -- users ------------------------------------------------------------------------------------------------------

    @rule(then=st.integers(5, 40))
    def time_goes_by(self, then: int) -> None:
        self.world.pass_time(then)

    @rule(version=st.sampled_from(VERSIONS), then=passes)
    def another_version_is_wanted(self, version: str, then: int) -> None:
        self.world.apply(version=version)
        self.world.pass_time(then)

    @rule(steps=st.sampled_from(LADDERS), then=passes)
    def steps_are_edited(self, steps: list[dict[str, Any]], then: int) -> None:
        self.world.apply(steps=steps)
        self.world.pass_time(then)

    @rule(analysis=st.sampled_from(ANALYSES), then=passes)
    def gates_are_edited(self, analysis: dict[str, Any], then: int) -> None:
        self.world.apply(analysis=analysis)
        self.world.pass_time(then)

    @rule(
        fields=st.sampled_from(
            [
                {"paused": True},
                {"paused": False},
                {"onDeadline": "Hold"},
                {"onDeadline": "Rollback"},
                {"hold": "0s"},
                {"hold": "90s"},
                {"progressDeadline": "2m"},
                {"progressDeadline": "30m"},
                {"readiness": {"minReady": 2}},
                {"readiness": {"minReady": "50%", "unreadyGrace": "0s"}},
                {"readiness": {"minReady": 1, "unreadyGrace": "30s"}},
                {"istio": ALONE},
                {"istio": BOTH},
            ]
        ),
        then=passes,
    )
    def a_field_is_edited(self, fields: dict[str, Any], then: int) -> None:
        self.world.apply(**fields)
        self.world.pass_time(then)

    @rule(
        verb=st.sampled_from(["approve", "abort", "promote", "retry"]),
        version=st.sampled_from([None, *VERSIONS]),
        then=passes,
    )
    def a_command_is_given(self, verb: str, version: str | None, then: int) -> None:
        self.token += 1
        self.world.command = f"{verb}/{version or self.world.rollout.version}/{self.token}"
        self.world.pass_time(then)

    @rule(
        nonsense=st.sampled_from(
            ["", "make it so", "promote/v2", "promote/v2/" + "x" * 480, "//", "abort/\x1b[2Jv2/1"]
        ),
        then=passes,
    )
    def nonsense_is_commanded(self, nonsense: str, then: int) -> None:
        self.world.command = nonsense
        self.world.pass_time(then)

    @rule(then=passes)
    @precondition(lambda self: not self.world.deleting)
    def it_is_deleted(self, then: int) -> None:
        self.token += 1
        if self.token % 4 == 0:  # seldom, or few lives would be long
            self.world.deleting = True
        self.world.pass_time(then)

    # -- other writers ----------------------------------------------------------------------------------------------

    @rule(
        name=services,
        weight=st.sampled_from([0, 1, 10, 35, 80, 100]),
        canary=st.sampled_from(VERSIONS[1:]),
        then=passes,
    )
    def weights_are_changed(self, name: str, weight: int, canary: str, then: int) -> None:
        def change(mesh: dict[str, Any]) -> None:
            entries = {e["destination"].get("subset"): e for e in mesh["http"][-1]["route"]}
            if {"v1", canary} <= entries.keys():
                for entry in entries.values():
                    entry["weight"] = 0
                entries["v1"]["weight"], entries[canary]["weight"] = 100 - weight, weight

        if name in self.world.services:
            self.promises.tainted.add(name)
            self.world.edit(name, change, "kubectl-edit")
        self.world.pass_time(then)

    @rule(name=services, then=passes)
    def a_gitops_tool_keeps_applying(self, name: str, then: int) -> None:
        self.world.looping.add(name)
        self.world.reapply()
        self.world.pass_time(then)

    @rule(then=passes)
    def gitops_tools_stop(self, then: int) -> None:
        self.world.looping.clear()
        self.world.pass_time(then)

    @rule(name=services, then=passes)
    def other_fields_are_edited(self, name: str, then: int) -> None:
        self.token += 1
        self.world.edit_both(name, lambda mesh: mesh["http"][-1].update(timeout=f"{self.token}s"))
        self.world.pass_time(then)

    @rule(old=st.sampled_from(["primary", "renamed"]), then=passes)
    def a_route_is_renamed(self, old: str, then: int) -> None:
        new = {"primary": "renamed", "renamed": "primary"}[old]

        def change(mesh: dict[str, Any]) -> None:
            for route in mesh["http"]:
                if route["name"] == old:
                    route["name"] = new

        self.promises.tainted.add("gateway")
        self.world.edit_both("gateway", change)
        self.world.pass_time(then)

    @rule(name=services, host=st.sampled_from(["reviews", "elsewhere"]), then=passes)
    def hosts_are_changed(self, name: str, host: str, then: int) -> None:
        self.world.edit_both(name, lambda mesh: mesh.update(hosts=[host]))
        self.world.pass_time(then)

    @rule(name=services, then=passes)
    def a_virtual_service_goes_or_comes(self, name: str, then: int) -> None:
        if name in self.world.aside:
            self.world.bring_back(name)
        else:
            self.world.remove_service(name)
        self.world.pass_time(then)

    @rule(then=passes)
    def the_destination_rule_goes_or_comes(self, then: int) -> None:
        if self.world.rule is None:
            self.world.bring_back_rule()
        else:
            self.world.rule = None
        self.world.pass_time(then)

    @rule(then=passes)
    def subsets_of_others_come_and_ours_go(self, then: int) -> None:
        world = self.world
        if world.rule is not None and world.authored_rule is not None:
            ours = self.promises.ours.get("subsets", set())
            world.rule["spec"]["subsets"] = [s for s in world.rule["spec"]["subsets"] if s["name"] not in ours]
            world._touch(world.rule, "kubectl-edit")
        world.pass_time(then)

    @rule(then=passes, subset=st.sampled_from(VERSIONS))
    def somebody_else_names_a_subset(self, then: int, subset: str) -> None:
        self.world.services["bystander"] = virtual_service("bystander", {"route": [destination(subset, 100)]})
        self.world.authored["bystander"] = copy.deepcopy(self.world.services["bystander"])
        self.world.pass_time(then)

    @rule(on=st.booleans(), then=passes)
    def another_rollout_claims_the_host(self, on: bool, then: int) -> None:
        claim = Claim("shop/other", "uid-0", START - timedelta(days=1), active=True)
        self.world.claims = (claim,) if on else ()
        self.world.pass_time(then)

    # -- faults -----------------------------------------------------------------------------------------------------

    @rule(up=st.booleans(), then=passes)
    def the_api_server_goes_or_comes(self, up: bool, then: int) -> None:
        self.world.api = up
        self.world.pass_time(then)

    @rule(names=st.sampled_from([(), ("reviews",), ("gateway",)]), then=passes)
    def writes_are_refused(self, names: tuple[str, ...], then: int) -> None:
        self.world.refusing = frozenset(names)
        self.world.pass_time(then)

    @rule(refused=st.booleans(), then=passes)
    def status_is_refused(self, refused: bool, then: int) -> None:
        self.world.status_refused = refused
        self.world.pass_time(then)

    @rule(count=st.integers(1, 3), then=passes)
    def somebody_writes_in_between(self, count: int, then: int) -> None:
        self.world.races = count
        self.world.pass_time(then)

    @rule(mode=st.sampled_from(["away", "well", "partial", "slow", "unasked", "no edge", "other labels"]), then=passes)
    def the_provider_changes(self, mode: str, then: int) -> None:
        world = self.world
        world.prometheus, world.partial = mode != "away", mode == "partial"
        world.extra_lag = timedelta(seconds=45 if mode == "slow" else 0)
        answers: dict[str, dict[str, Any]] = {
            "no edge": {"edge_problem": "no edge"},
            "other labels": {"versions": ("x",)},
        }
        world.found = answers.get(mode, {})
        if mode == "unasked":
            world.found = None
        world.pass_time(then)

    @rule(
        rate=st.sampled_from([faultless, faultless, faulty, grumbling]),
        value=st.sampled_from([1, 9, None, -1]),
        then=passes,
    )
    def the_canary_changes(self, rate: Any, value: int | None, then: int) -> None:
        self.world.error_rate = rate
        self.world.metric = lambda name, at: value
        self.world.pass_time(then)

    @rule(
        rps=st.sampled_from([0, 1, 100, 500]), seen=st.booleans(), share=st.sampled_from([None, None, 60]), then=passes
    )
    def traffic_changes(self, rps: int, seen: bool, share: int | None, then: int) -> None:
        self.world.rps, self.world.canary_seen = rps, seen
        self.world.skews.append((self.world.real, share))
        self.world.pass_time(then)

    @rule(
        ready=st.sampled_from(
            [None, {"v1": 2}, {"v1": 2, "v2": 1, "v3": 1}, {"v2": 2, "v3": 2}, {}, {"v1": 9, "v2": 2, "v3": 2}]
        ),
        then=passes,
    )
    def endpoints_change(self, ready: dict[str, int] | None, then: int) -> None:
        self.world.ready = ready
        self.world.pass_time(then)

    @rule(then=st.integers(5, 40))
    def all_is_well_again(self, then: int) -> None:
        make_well(self.world)
        self.world.pass_time(then)

    @rule(then=passes)
    def endpoints_and_api_server_are_well_again(self, then: int) -> None:
        self.world.ready, self.world.api = {"v1": 2, "v2": 2, "v3": 2}, True
        self.world.pass_time(then)

    @rule(writes=st.integers(1, 6), after=st.booleans(), then=st.integers(4, 20))
    def the_operator_dies_at_a_write(self, writes: int, after: bool, then: int) -> None:
        self.world.arm(writes, after=after)
        self.world.pass_time(then)

    @rule(then=passes)
    def the_operator_restarts(self, then: int) -> None:
        self.world.restart()
        self.world.pass_time(then)

    @rule(seconds=st.sampled_from([1, 7, 30, 60, 300, 3600]), then=passes)
    def the_operator_is_stopped_for_a_while(self, seconds: int, then: int) -> None:
        self.world.now += timedelta(seconds=seconds)
        self.world.pass_time(then)

    @rule(minutes=st.sampled_from([-10, -3, -1, 1, 3, 10]), then=passes)
    def the_clock_is_set(self, minutes: int, then: int) -> None:
        self.world.jump(timedelta(minutes=minutes))
        self.world.pass_time(then)

    @rule(then=passes)
    @precondition(lambda self: self.world.skew)
    def the_clock_is_set_right(self, then: int) -> None:
        self.world.jump(-self.world.skew)
        self.world.pass_time(then)

    @rule(minutes=st.sampled_from([2, 6]))
    def a_long_time_goes_by(self, minutes: int) -> None:
        end = self.world.now + timedelta(minutes=minutes)
        while self.world.now < end and not (self.world.deleting and not self.world.finalizer):
            self.world.pass_time(5)

    # -- promises that need a look into the future --------------------------------------------------------------------

    @rule()
    def an_abort_would_take_it_back_now(self) -> None:
        """Rollback is reachable from here, with nothing but an API server that serves VirtualServices."""
        probe = copy.deepcopy(self.world)
        record = probe.state.rollout
        if record is None or record.ended_at or record.version == probe.state.stable_version or probe.deleting:
            return
        cut_off(probe)
        probe.command = f"abort/{record.version}/probe"
        for _ in range(6):
            probe.pass_time(1)
        if not movable(probe) or not {record.version, probe.state.stable_version} <= probe.state.subsets.keys():
            return
        gone = probe.ready is not None and not probe.ready.get(probe.state.stable_version or "")
        low = [share for share in shares(probe, record.version) if share]
        promise("a rollback is reachable from every state before promotion", gone or not low, (low, probe.reason))

    @rule()
    def a_dead_canary_would_be_taken_back_now(self) -> None:
        """It is after its grace, although nothing works but reading the mesh and writing VirtualServices."""
        probe = copy.deepcopy(self.world)
        record = probe.state.rollout
        if record is None or record.ended_at or record.version == probe.state.stable_version or probe.deleting:
            return
        if not record.weight:
            return  # what it has then, it was given by somebody else
        cut_off(probe)
        probe.ready = {probe.state.stable_version or "": 2}
        for _ in range(3 + probe.rollout.readiness.unready_grace // timedelta(seconds=1)):
            probe.pass_time(1)
        if movable(probe) and {record.version, probe.state.stable_version} <= probe.state.subsets.keys():
            promise(
                "a canary without endpoints for the grace is taken back",
                not any(shares(probe, record.version)),
                (shares(probe, record.version), probe.reason),
            )

    @rule()
    def a_rollback_would_end_at_zero_now(self) -> None:
        """What is being taken back reaches 0 whatever else fails."""
        probe = copy.deepcopy(self.world)
        record = probe.state.rollout
        if record is None or record.ended_at or not record.reason:
            return
        cut_off(probe)
        for _ in range(4):
            probe.pass_time(1)
        gone = probe.ready is not None and not probe.ready.get(probe.state.stable_version or "")
        if movable(probe) and not gone and {record.version, probe.state.stable_version} <= probe.state.subsets.keys():
            promise("a rollback that began reaches 0", not any(shares(probe, record.version)), probe.reason)

    @rule()
    def deletion_would_end_now(self) -> None:
        """A deleted object releases its finalizer in bounded time once the world can be read and written."""
        probe = copy.deepcopy(self.world)
        make_well(probe)
        probe.deleting = True
        before, under_way = probe.state.stable_version, probe.state.rollout
        under_way = under_way if under_way is not None and under_way.ended_at is None else None
        probe.run(900)
        promise("a deleted object is released in bounded time", not probe.finalizer, (probe.phase, probe.reason))
        if under_way is not None and movable(probe) and probe.state.rollout is None and self.shape != "plain":
            shared = shares(probe, before or "")
            promise("deletion ends on stable", all(share == 100 for share in shared) or self._others_decide(probe))

    @staticmethod
    def _others_decide(probe: ModelWorld) -> bool:
        return probe.state.contest is not None or bool(getattr(probe.auditor, "tainted", ()))

    @invariant()
    def the_status_can_be_read(self) -> None:
        if hasattr(self, "world"):
            Life.lived += 1
            CanaryRolloutStatus.model_validate(self.world.status)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        make_well(world)
        world.run(2 * 3600, until=lambda w: not world.deleting and w.reason in WAITS_FOR_A_PERSON)
        if world.deleting:
            promise("a deleted object is released in bounded time", not world.finalizer, (world.phase, world.reason))
            return
        end = (world.phase, world.reason, world.state.message)
        at_rest = world.phase in (Phase.STABLE, Phase.ROLLED_BACK) or world.reason in WAITS_FOR_A_PERSON
        promise("once all is well, it comes to an end", at_rest, end)
        if world.phase is Phase.STABLE:
            stable = world.rollout.version
            promise("the wanted version serves in the end", world.state.stable_version == stable, end)
            plain = self.shape == "plain" and stable == "v1"  # such a route may name no subset
            promise("the wanted version serves in the end", plain or set(shares(world, stable)) == {100}, end)
        if world.phase in (Phase.STABLE, Phase.ROLLED_BACK) and world.state.stable_version == "v1":
            promise("a rollout that ended holds no finalizer", not world.finalizer, end)
            self._as_it_was()

    def _as_it_was(self) -> None:
        world = self.world
        for name, live in world.services.items():
            if name not in self.promises.tainted and self.shape in ("one", "weightless"):
                promise("what was taken back leaves no trace", bare(live) == bare(world.authored[name]), name)


WAITS_FOR_A_PERSON = ("WeightContested", "StableVersionUnknown", "AwaitingApproval")


def cut_off(world: ModelWorld) -> None:
    """Leave nothing working but an API server that serves the mesh: no provider, and no status is written."""
    world.api, world.refusing, world.races, world.crash_at = True, frozenset(), 0, None
    world.looping.clear()
    world.prometheus, world.found, world.status_refused = False, None, True


def make_well(world: ModelWorld) -> None:
    """Make everything well that is not a person's to decide."""
    world.api, world.refusing, world.status_refused, world.races, world.crash_at = True, frozenset(), False, 0, None
    world.looping.clear()
    world.claims = ()
    world.jump(-world.skew)
    world.prometheus, world.partial, world.extra_lag, world.found, world.deaf = True, False, timedelta(), {}, 0
    world.error_rate, world.rps, world.canary_seen = faultless, 100, True
    world.metric = lambda name, at: 1
    world.skews.append((world.real, None))
    world.ready = {"v1": 2, "v2": 2, "v3": 2}
    world.bring_back_rule()
    for name in tuple(world.aside):
        world.bring_back(name)

    def rename(mesh: dict[str, Any]) -> None:
        for route in mesh["http"]:
            if route.get("name") == "renamed":
                route["name"] = "primary"

    world.edit_both("gateway", rename)
    if world.rollout.paused:
        world.apply(paused=False)


def movable(world: ModelWorld) -> bool:
    """Return whether every listed route is there and can be moved."""
    for service in world._read().virtual_services.values():
        if not isinstance(service, VirtualServiceState):
            return False
        if not all(isinstance(route, Weights) for route in service.routes.values()):
            return False
    return True


def shares(world: ModelWorld, version: str) -> list[int]:
    """Return a version's share on each listed route, by the subsets that status remembers or the rule has."""
    names = {world.state.subsets.get(version)}
    names |= {subset for subset, of in labels_of(world).items() if of == version}
    found = []
    for ref in world.rollout.istio.virtual_services:
        if ref.name in world.services:
            index = "0" if ref.name == "reviews" else "1"
            found.append(
                sum(w for at, subset, w in destinations(world.services[ref.name]) if at == index and subset in names)
            )
    return found
