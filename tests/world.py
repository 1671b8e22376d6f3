"""A world in memory for replays of `needs` and `decide`: real documents and patches, and a clock that moves when told.

A stand-in for the API server, the mesh and Prometheus, where hours have to pass in milliseconds and every write has to
be interrupted: documents are read and patched by the shipped adapters' pure functions, and traffic follows them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from canaryrollout.adapters.istio_coverage import Listed, uncovered
from canaryrollout.adapters.istio_patch import build_patch
from canaryrollout.adapters.istio_read import read_destination_rule, read_virtual_service, subsets_named
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Condition, Counts, Phase
from canaryrollout.domain.decide import decide
from canaryrollout.domain.decision import Action, AddSubset, Decision, Order, RemoveSubsets, SetFinalizer, SetWeights
from canaryrollout.domain.evidence import (
    Block,
    Evidence,
    EvidenceRequest,
    MetricReading,
    MetricValue,
    Preflight,
    PreflightRequest,
)
from canaryrollout.domain.naming import fqdn
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import (
    Claim,
    Endpoints,
    Failure,
    Identity,
    Mesh,
    Missing,
    Observation,
    Unreadable,
)
from canaryrollout.domain.settings import DomainSettings

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
OURS = "canaryrollout"
NAMESPACE = "shop"
HOST = fqdn("reviews", NAMESPACE)
SETTINGS = DomainSettings(lag={"default": timedelta(seconds=2)})


class Crash(Exception):  # noqa: N818 - an event of the world
    """The operator was killed."""


def destination(subset: str | None, weight: int | None = None) -> dict[str, Any]:
    """Return a destination entry of a route."""
    entry: dict[str, Any] = {"destination": {"host": "reviews", "port": {"number": 9080}}}
    if subset:
        entry["destination"]["subset"] = subset
    if weight is not None:
        entry["weight"] = weight
    return entry


def virtual_service(name: str = "reviews", *routes: dict[str, Any]) -> dict[str, Any]:
    """Return a VirtualService; by default one unnamed route with all traffic to subset v1."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "generation": 1,
            "resourceVersion": "1",
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:http": {}}}}],
        },
        "spec": {"hosts": ["reviews"], "http": list(routes) or [{"route": [destination("v1")]}]},
    }


def destination_rule(*versions: str) -> dict[str, Any]:
    """Return a DestinationRule with a subset for each version, named after it."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "reviews", "namespace": NAMESPACE, "generation": 1, "resourceVersion": "1"},
        "spec": {"host": "reviews", "subsets": [{"name": v, "labels": {"version": v}} for v in versions or ("v1",)]},
    }


def spec(**fields: Any) -> CanaryRolloutSpec:
    """Return a spec with short times; keyword arguments are fields as the API spells them."""
    base: dict[str, Any] = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
        "hold": "30s",
        "analysis": {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}},
        "progressDeadline": "10m",
    }
    return CanaryRolloutSpec.model_validate(base | fields)


def no_faults(version: str, weight: int, at: datetime) -> float:
    """Return the error rate of a version that never fails."""
    return 0.0


def one(name: str, at: datetime) -> int | None:
    """Return the value of a metric that never changes."""
    return 1


@dataclass
class World:
    """One rollout object, its mesh, and a clock.

    Attributes:
        rollout: The spec as last applied.
        services: VirtualServices by name.
        rule: The DestinationRule; ``None`` when it does not exist.
        ready: Ready endpoints by version; ``None`` when they cannot be read.
        error_rate: Error rate by version, weight and time.
        rps: Requests per second on the host.
        away_since: Since when the provider does not answer.
        warnings: Warnings that come with its counts.
        found: What the provider answers before the first step, as fields of `Preflight`; ``None`` while it has not
            answered yet.
        restarted: Whether the operator has just started, and has no evidence at hand.
        canary_seen: Whether the provider has any series of the canary.
        skews: Shares of the canary in traffic whatever its weight, and since when; see `show`.
        metric: Values of the user's own queries, by name and time; ``None`` where there is no data.
        refusing: Names of objects that refuse every write of the operator.
        crash_at: Number of the write at which the operator dies.
        crash_after: Whether that write still takes effect.
        listable: Whether VirtualServices can be listed.
        listings: How often they were.
    """

    rollout: CanaryRolloutSpec = field(default_factory=spec)
    services: dict[str, dict[str, Any]] = field(default_factory=lambda: {"reviews": virtual_service()})
    rule: dict[str, Any] | None = field(default_factory=destination_rule)
    ready: dict[str, int] | None = field(default_factory=lambda: {"v1": 2, "v2": 2, "v3": 2})
    error_rate: Callable[[str, int, datetime], float] = no_faults
    rps: int = 100
    away_since: datetime | None = None
    found: dict[str, Any] | None = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    restarted: bool = False
    canary_seen: bool = True
    skews: list[tuple[datetime, int | None]] = field(default_factory=list)
    metric: Callable[[str, datetime], int | None] = one
    api: bool = True
    claims: tuple[Claim, ...] = ()
    crash_at: int | None = None
    crash_after: bool = False
    status: dict[str, Any] = field(default_factory=dict)
    generation: int = 1
    command: str = ""
    finalizer: bool = False
    deleting: bool = False
    now: datetime = START
    writes: list[str] = field(default_factory=list)
    weights: list[tuple[datetime, int]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    refusing: frozenset[str] = frozenset()
    failures: dict[str, Failure] = field(default_factory=dict)
    passes: int = 0
    listable: bool = True
    listings: int = 0

    def __post_init__(self) -> None:
        self.originals = copy.deepcopy((self.services, self.rule))
        self._counted: dict[tuple[str, datetime, datetime], Block] = {}
        self._log_weights()

    @property
    def phase(self) -> Phase | None:
        """Return the phase in status."""
        return self.state.phase

    @property
    def state(self) -> CanaryRolloutStatus:
        """Return the status as another replica would read it."""
        return CanaryRolloutStatus.model_validate(copy.deepcopy(self.status))

    @property
    def reason(self) -> str:
        """Return the reason of the Ready condition."""
        return next((c.reason for c in self.state.conditions if c.type == "Ready"), "")

    @property
    def prometheus(self) -> bool:
        """Return whether the provider answers."""
        return self.away_since is None

    @prometheus.setter
    def prometheus(self, answers: bool) -> None:
        self.away_since = None if answers else self.away_since or self.now

    def condition(self, kind: str) -> Condition:
        """Return a condition."""
        return next(c for c in self.state.conditions if c.type == kind)

    def show(self, share: int | None) -> None:
        """Let the canary have a share of traffic from now on, whatever its weight; ``None``: its weight again."""
        self.skews.append((self.now, share))

    def apply(self, **fields: Any) -> None:
        """Edit the spec as a user would."""
        merged = self.rollout.model_dump(mode="json", by_alias=True, exclude_unset=True) | fields
        self.rollout = CanaryRolloutSpec.model_validate(merged)
        self.generation += 1

    def share(self, version: str) -> int:
        """Return the smallest share that any managed route gives a version by now."""
        return min(self.shares(version))

    def shares(self, version: str) -> list[int]:
        """Return a version's share on each managed route."""
        mesh = self._read()
        rule = mesh.destination_rule
        versions = {s.name: s.version for s in rule.subsets} if hasattr(rule, "subsets") else {}
        found = []
        for service in mesh.virtual_services.values():
            for route in getattr(service, "routes", {}).values():
                entries = getattr(route, "destinations", ())
                found.append(sum(d.weight for d in entries if d.subset and versions.get(d.subset) == version))
        return found or [0]

    def edit(self, name: str, change: Callable[[dict[str, Any]], None], manager: str = "argocd") -> None:
        """Change a VirtualService's spec the way another manager does."""
        document = self.services[name]
        change(document["spec"])
        self._touch(document, manager)

    def step(self) -> Decision:
        """Make one pass: observe, decide, act."""
        self.passes += 1
        status = self.state
        identity = self._identity()
        wanted = needs(self.rollout, status, identity, self.now, SETTINGS)
        observation = Observation(
            identity=identity,
            mesh=self._mesh(references=wanted.references, scope=wanted.scope) if wanted.mesh else None,
            endpoints=self._endpoints() if wanted.endpoints else None,
            evidence=self._evidence(wanted.evidence),
            opening=self._evidence(wanted.opening),
            baseline=self._evidence(wanted.baseline),
            preflight=self._preflight(wanted.preflight),
            claims=self.claims,
            failures=dict(self.failures),
        )
        decision = decide(self.rollout, status, observation, self.now, SETTINGS)
        if decision.order is Order.STATUS_FIRST:
            self._write_status(decision)
        for action in decision.actions:
            self._act(action)
        if decision.order is Order.MESH_FIRST:
            self._write_status(decision)
        if any(c.type == "Ready" and c.status == "True" for c in decision.status.conditions):
            assert decision.status.stable_version == self.rollout.version, "ready before the wanted version serves"
        due = decision.status.deadline
        assert due is None or due > self.now or self.reason == "DeadlineExceeded", "a deadline that passed unnoticed"
        released = self.deleting and not self.finalizer
        if decision.status.phase not in (Phase.STABLE, Phase.ROLLED_BACK) and not released:
            assert decision.again or decision.wake_at, "a wait without an end"
        return decision

    def run(self, seconds: float = 3600, until: Callable[[World], bool] | None = None) -> World:
        """Let time pass, waking as asked, surviving crashes, until the condition holds or nothing is to be done."""
        end = self.now + timedelta(seconds=seconds)
        while self.now < end and not (until and until(self)):
            try:
                decision = self.step()
            except Crash:
                self.now += timedelta(seconds=1)
                continue
            if decision.again and not self.failures:
                self.now += timedelta(milliseconds=20)
            elif decision.wake_at is None:
                if not decision.again:
                    break
                self.now += timedelta(seconds=1)
            else:
                assert decision.wake_at > self.now - timedelta(milliseconds=1), "wakes up in the past"
                self.now = max(decision.wake_at, self.now + timedelta(milliseconds=1))
            assert self.passes < 20_000, "no end"
        return self

    def _identity(self) -> Identity:
        return Identity(
            NAMESPACE, "reviews", "uid-1", self.generation, START, self.deleting, self.finalizer, self.command
        )

    def _mesh(self, *, references: bool, scope: CanaryRolloutSpec | None = None) -> Mesh:
        if self.api:
            return self._read(references=references, scope=scope)
        away = Unreadable("the API server does not answer")
        return Mesh({ref.name: away for ref in (scope or self.rollout).istio.virtual_services}, away)

    def _read(self, *, references: bool = False, scope: CanaryRolloutSpec | None = None) -> Mesh:
        listed = {ref.name: ref for ref in (scope or self.rollout).istio.virtual_services}
        services: dict[str, Any] = {}
        for name, ref in listed.items():
            if name not in self.services:
                services[name] = Missing("VirtualServiceNotFound", f"VirtualService {name} does not exist")
            else:
                services[name] = read_virtual_service(
                    copy.deepcopy(self.services[name]), ref.routes, HOST, manager=OURS
                )
        rule: Any
        if self.rule is None:
            rule = Missing("DestinationRuleNotFound", "DestinationRule reviews does not exist")
        else:
            rule = read_destination_rule(copy.deepcopy(self.rule), HOST, "version")
        named: dict[str, tuple[str, ...]] | None = None
        past: tuple[str, ...] | Unreadable | None = None
        if references:
            past = self._uncovered(rule)
        if references and self.listable:
            named = {}
            for name, document in self.services.items():
                for subset in subsets_named(document, HOST):
                    named[subset] = (*named.get(subset, ()), f"{NAMESPACE}/{name}")
        return Mesh(services, rule, named, past)

    def _uncovered(self, rule: Any) -> tuple[str, ...] | Unreadable | None:
        self.listings += 1
        if not self.listable:
            return Unreadable("VirtualServices could not be listed")
        if not hasattr(rule, "subsets"):
            return None
        routes = {ref.name: ref.routes for ref in self.rollout.istio.virtual_services}
        subsets = {subset.name: subset.version for subset in rule.subsets}
        return uncovered(self.services.values(), Listed(HOST, NAMESPACE, self.rollout.version, routes, subsets))

    def _endpoints(self) -> Endpoints | Unreadable:
        if self.ready is None:
            return Unreadable("endpoints cannot be read")
        return Endpoints(dict(self.ready))

    def _evidence(self, request: EvidenceRequest | None) -> Evidence | None:
        if request is None or self.restarted:
            return None
        until = min(self.now, self.away_since or self.now) - SETTINGS.lag["default"]
        blocks = []
        start = request.start
        for end in request.ends(start, min(until, request.until or until)):
            blocks.append(self._counted_once(request, start, end))
            start = end
        metrics = {
            query.name: tuple(self._reading(query.name, block.end) for block in blocks) for query in request.queries
        }
        if self.away_since is not None and (request.until is None or not blocks):
            return Evidence(request, tuple(blocks), "connection refused", self.away_since, metrics=metrics)
        return Evidence(request, tuple(blocks), warnings=self.warnings, metrics=metrics)

    def _reading(self, name: str, at: datetime) -> MetricReading:
        value = self.metric(name, at)
        if value is None:
            return MetricReading(at, MetricValue(None, at, "the query has no data", "NoData"))
        return MetricReading(at, MetricValue(Fraction(value), at))

    def _preflight(self, request: PreflightRequest | None) -> Preflight | None:
        if request is None or self.found is None or self.restarted:
            return None
        if self.away_since is not None:
            return Preflight(request, error="connection refused", error_since=self.away_since)
        answer: dict[str, Any] = {"host_series": True, "versions": (request.stable,)} | self.found
        return Preflight(request, **answer)

    def _counted_once(self, request: EvidenceRequest, start: datetime, end: datetime) -> Block:
        """Return a block as it was when it was counted first: what happens later changes nothing in the past."""
        key = request.canary, start, end
        if key not in self._counted:
            self._counted[key] = self._block(request, start, end)
        return self._counted[key]

    def _block(self, request: EvidenceRequest, start: datetime, end: datetime) -> Block:
        weight = next((w for at, w in reversed(self.weights) if at <= start), 0)
        skew = next((share for at, share in reversed(self.skews) if at <= start), None)
        weight = weight if skew is None else skew
        requests = math.floor(self.rps * (end - start).total_seconds())
        canary, stable = round(requests * weight / 100), round(requests * (100 - weight) / 100)
        canary = canary if self.canary_seen else 0
        rates = [self.error_rate(v, weight, start) for v in (request.canary, request.stable)]
        return Block(
            start,
            end,
            Counts(requests=canary, errors=round(canary * rates[0]), timed=canary),
            Counts(requests=stable, errors=round(stable * rates[1]), timed=stable),
            canary_seen=self.canary_seen,
        )

    def _write_status(self, decision: Decision) -> None:
        for event in decision.events:
            self.events.append(event.reason)
        after = decision.status.as_object()
        if after != self.status:
            self._write("status", lambda: setattr(self, "status", copy.deepcopy(after)))

    def _act(self, action: Action) -> None:
        if isinstance(action, SetFinalizer):
            self._write("finalizer", lambda: setattr(self, "finalizer", action.present))
            return
        if action.found.name in self.refusing:
            count = self.failures[action.key].count + 1 if action.key in self.failures else 1
            self.failures[action.key] = Failure(count, "refused by a webhook", self.now)
            return
        self.failures.pop(action.key, None)
        document = self.rule if isinstance(action, AddSubset | RemoveSubsets) else self.services[action.found.name]
        assert document is not None
        if isinstance(action, SetWeights):
            for route in action.routes:
                assert sum(route.weights.values()) == 100
                assert all(0 <= weight <= 100 for weight in route.weights.values())
        patch = build_patch(action.found.document, action, HOST)
        if patch:
            self._write(action.key, lambda: self._patch(document, patch))

    def _patch(self, document: dict[str, Any], patch: Any) -> None:
        apply_patch(document, patch)
        self._touch(document, OURS)

    def _touch(self, document: dict[str, Any], manager: str) -> None:
        metadata = document["metadata"]
        metadata["generation"] += 1
        metadata["resourceVersion"] = str(metadata["generation"])
        metadata["managedFields"] = [{"manager": manager, "fieldsV1": {"f:spec": {"f:http": {}}}}]
        self._log_weights()

    def _log_weights(self) -> None:
        weight = max(self.shares(self.rollout.version))
        if not self.weights or self.weights[-1][1] != weight:
            self.weights.append((self.now, weight))

    def _write(self, what: str, effect: Callable[[], Any]) -> None:
        self.writes.append(what)
        dies = self.crash_at == len(self.writes)
        if not dies or self.crash_after:
            effect()
        if dies:
            raise Crash


def apply_patch(document: dict[str, Any], patch: Any) -> None:
    """Apply a JSON Patch in place, as RFC 6902 says, for the operations that are used."""
    for operation in patch:
        parts = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
        parent: Any = document
        for part in parts[:-1]:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        key: Any = parts[-1]
        if isinstance(parent, list):
            key = len(parent) if key == "-" else int(key)
        match operation["op"]:
            case "test":
                assert parent[key] == operation["value"], operation
            case "replace":
                assert parent[key] is not None
                parent[key] = copy.deepcopy(operation["value"])
            case "add" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(operation["value"]))
            case "add":
                parent[key] = copy.deepcopy(operation["value"])
            case "remove":
                del parent[key]
            case other:
                raise AssertionError(other)
