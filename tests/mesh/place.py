"""A namespace on the mesh with services of a test's own, their load, and a witness of everything that is written.

A test asks the witness, which watches as any client does, so that waiting costs the API server nothing and every state
in between is known afterwards. The operator is the real one; all that a test does is what a user does.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.naming import fqdn
from lab.backends import Backend, service, workload_entry
from lab.demo.checks import interval
from lab.demo.facts import StepFacts
from lab.demo.measure import Routing, between, difference, requests_of, status_of, steps_of
from lab.demo.watch import DESTINATION_RULE, EVENT, ROLLOUT, VIRTUAL_SERVICE, Seen, Witness
from lab.istio import GATEWAY
from lab.load import BackgroundLoad
from lab.loadreport import Record
from lab.mesh import Lab
from tests.operatorprocess import OperatorProcess

INTERVAL: Final = "2s"
PATIENCE_SECONDS: Final = 45.0
LONGEST_LOAD_SECONDS: Final = 900.0
"""A load ends with its test or module; this is for one that is left behind."""

Route = dict[str, Any]
Weights = dict[str, int | None]
"""Written weight by subset, ``""`` being the destination without one, in the order of the route."""


def destination(host: str, subset: str | None = None, weight: int | None = None, **fields: Any) -> dict[str, Any]:
    """A destination of a route, as its author writes it."""
    to: dict[str, Any] = {"host": host} | ({"subset": subset} if subset else {})
    return {"destination": to, **({} if weight is None else {"weight": weight}), **fields}


def route(*destinations: dict[str, Any], name: str = "", prefix: str = "") -> Route:
    """An http route. Envoy's retries are off: they would hide a request that the mesh lost."""
    return {
        **({"name": name} if name else {}),
        **({"match": [{"uri": {"prefix": prefix}}]} if prefix else {}),
        "timeout": "10s",
        "retries": {"attempts": 0},
        "headers": {"response": {"set": {"x-envoy-response-flags": "%RESPONSE_FLAGS%"}}},
        "route": list(destinations),
    }


@dataclass
class Service:
    """A service with versions, routes and a CanaryRollout, all of the same name.

    Attributes:
        place: The namespace it is in.
        name: Its name.
        routing: Managed routes by VirtualService.
        rule_host: Host as the DestinationRule spells it.
        backends: Running endpoints by version.
        originals: The mesh objects as they were applied.
        load: Requests to it, where there are any.
    """

    place: Place
    name: str
    routing: Mapping[str, tuple[str, ...]]
    backends: dict[str, Backend] = field(default_factory=dict)
    originals: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    load: BackgroundLoad | None = None

    @property
    def host(self) -> str:
        """Fully qualified host."""
        return fqdn(self.name, self.place.namespace)

    @property
    def public_host(self) -> str:
        """Host by which the gateway knows it."""
        return f"{self.name}.{self.place.namespace}.example"

    # --- what a user does -------------------------------------------------------------------------------------------

    def run(self, version: str) -> None:
        """Start an endpoint of a version and make it known to the mesh."""
        self.place.lab.apply(self.start(version))

    def start(self, version: str) -> dict[str, Any]:
        """Start an endpoint of a version, and return the WorkloadEntry that would make it known."""
        backend = self.place.lab.backend(self.place.namespace, self.name, version, register=False)
        self.backends[version] = backend
        return workload_entry(backend, int(backend.url.rpartition(":")[2]))

    def send(self, rate: float, path: str = "/") -> BackgroundLoad:
        """Begin to send so many requests a second; the load ends with the test."""
        load = BackgroundLoad(
            f"{self.place.lab.gateway_url}{path}",
            host_header=self.public_host,
            rate=rate,
            max_seconds=LONGEST_LOAD_SECONDS,
        )
        self.load = self.place.stack.enter_context(load)
        return load

    def rollout(self, version: str, **spec: Any) -> dict[str, Any]:
        """The CanaryRollout as a user writes it; two steps without holds where nothing else is said."""
        services = [{"name": name, **({"routes": list(r)} if r else {})} for name, r in self.routing.items()]
        analysis = {"interval": INTERVAL, "minRequests": 20, "errorRate": {"max": "1%"}}
        return {
            "apiVersion": "canaryrollout.io/v1alpha1",
            "kind": "CanaryRollout",
            "metadata": {"name": self.name, "namespace": self.place.namespace},
            "spec": {
                "version": version,
                "host": self.name,
                "istio": {"virtualServices": services, "destinationRule": {"name": self.name}},
                "steps": [{"weight": 50}, {"weight": 100}],
                "hold": "0s",
                **spec,
                "analysis": analysis | spec.get("analysis", {}),
            },
        }

    def apply(self, version: str, **spec: Any) -> None:
        """Apply the CanaryRollout."""
        self.place.lab.apply(self.rollout(version, **spec))

    def patch(self, **spec: Any) -> None:
        """Change fields of its spec (`kubectl patch`)."""
        self.kubectl("patch", "canaryrollout", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def command(self, command: str) -> None:
        """Give a command (`kubectl annotate`)."""
        self.kubectl("annotate", "--overwrite", "canaryrollout", self.name, f"canaryrollout.io/command={command}")

    def reweigh(self, name: str | None = None, **weights: int) -> None:
        """Change weights of the first route behind the operator's back (`kubectl patch`), and see it done."""
        known = len(self.seen(VIRTUAL_SERVICE, name))
        document = self.latest(VIRTUAL_SERVICE, name or self.name)
        entries = document["spec"]["http"][0]["route"]
        patch = [
            {"op": "add", "path": f"/spec/http/0/route/{index}/weight", "value": weights[subset]}
            for index, entry in enumerate(entries)
            if (subset := entry["destination"].get("subset", "")) in weights
        ]
        self.kubectl("patch", "virtualservice", name or self.name, "--type=json", "-p", json.dumps(patch))
        self.until(lambda: len(self.seen(VIRTUAL_SERVICE, name)) > known, "sight of changed weights")

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """Run kubectl in its namespace."""
        return self.place.lab.kubectl("-n", self.place.namespace, *arguments, **options)

    # --- what a user sees -------------------------------------------------------------------------------------------

    @property
    def status(self) -> CanaryRolloutStatus:
        """The newest status."""
        return status_of(self.place.witness.latest(ROLLOUT, self.name))

    @property
    def statuses(self) -> list[CanaryRolloutStatus]:
        """Every status it has had, oldest first."""
        return [status_of(seen.document) for seen in self.seen(ROLLOUT)]

    @property
    def reason(self) -> str:
        """Why it is in its state: the reason of the condition Ready."""
        return next((c.reason for c in self.status.conditions if c.type == "Ready"), "")

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        return next(((c.status, c.reason) for c in self.status.conditions if c.type == kind), ("", ""))

    def latest(self, kind: str, name: str | None = None) -> Mapping[str, Any]:
        """The newest version of an object."""
        found = self.place.witness.latest(kind, name or self.name)
        assert found is not None, f"there is no {kind} {name or self.name}"
        return found

    def seen(self, kind: str, name: str | None = None) -> list[Seen]:
        """Every version of an object, oldest first."""
        return [seen for seen in self.place.witness.seen() if (seen.kind, seen.name) == (kind, name or self.name)]

    def weights(self, name: str | None = None, index: int = 0) -> Weights:
        """What a route of a VirtualService says now."""
        return written(self.latest(VIRTUAL_SERVICE, name)["spec"]["http"][index])

    def subsets(self) -> list[str]:
        """Names of the DestinationRule's subsets."""
        return [subset["name"] for subset in self.latest(DESTINATION_RULE)["spec"].get("subsets", ())]

    def events(self) -> list[Mapping[str, Any]]:
        """Kubernetes Events about it, oldest first; those about an earlier object of its name are left out."""
        uid = self.latest(ROLLOUT)["metadata"]["uid"]
        found = [seen.document for seen in self.place.witness.seen() if seen.kind == EVENT]
        return [event for event in found if event.get("regarding", {}).get("uid") == uid]

    def event(self, reason: str) -> Mapping[str, Any]:
        """The first Event with a reason; waits for it, as Events are sent after the fact."""
        found: list[Mapping[str, Any]] = self.until(
            lambda: [event for event in self.events() if event["reason"] == reason], f"Event {reason}"
        )
        return found[0]

    def until(self, found: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until something is found (true), and return it."""
        deadline = time.monotonic() + seconds
        while not (value := found()):
            self.place.operator.check_alive()
            assert time.monotonic() < deadline, f"no {what} within {seconds:g} s; {self.story()}"
            time.sleep(0.02)
        return value

    def until_phase(self, phase: Phase, reason: str = "", seconds: float = PATIENCE_SECONDS) -> CanaryRolloutStatus:
        """Wait for a phase (and reason), and return the status."""
        self.until(
            lambda: self.status.phase is phase and reason in ("", self.reason), f"{phase} {reason}".strip(), seconds
        )
        return self.status

    def until_condition(self, kind: str, state: str, reason: str) -> None:
        """Wait for the status and reason of a condition."""
        self.until(lambda: self.condition(kind) == (state, reason), f"{kind} {state} {reason}")

    def until_weight(self, weight: int, *, in_effect: bool = False) -> CanaryRolloutStatus:
        """Wait until the canary's weight is confirmed, or seen in traffic too."""

        def there() -> bool:
            record = self.status.rollout
            return record is not None and record.weight == weight and not (in_effect and record.in_effect_at is None)

        self.until(there, f"weight {weight}")
        return self.status

    def until_promoted(self, version: str) -> CanaryRolloutStatus:
        """Wait until a version is stable and everything is cleaned up."""
        self.until(
            lambda: (
                (self.status.phase, self.status.stable_version, self.status.rollout) == (Phase.STABLE, version, None)
            ),
            f"promotion of {version}",
        )
        return self.status

    def until_asked(self) -> None:
        """Wait until it asks for approval of its first step, at 50 %."""
        status = self.until_phase(Phase.PAUSED, "AwaitingApproval")
        assert (status.weight, self.weights()) == (50, {"v1": 50, "v2": 50})

    def until_taken_back(self, reason: str) -> CanaryRolloutStatus:
        """Wait until the canary was taken back and everything is cleaned up; ``reason`` is why."""
        status = self.until_phase(Phase.ROLLED_BACK)
        assert status.rollout is not None
        assert status.rollout.reason == reason, self.story()
        return status

    def story(self) -> str:
        """What happened to it, for the message of a failed test."""
        status = self.status
        lines = [f"{self.place.namespace}/{self.name} is {status.phase}: {self.reason}: {status.message}"]
        lines += [f"  {entry.time:%H:%M:%S.%f} {entry.reason}: {entry.message}" for entry in status.history]
        lines += [f"  {name} http: {self._routes(name)}" for name in self.routing]
        return "\n".join(lines)

    def _routes(self, name: str) -> list[Weights]:
        found = self.place.witness.latest(VIRTUAL_SERVICE, name)
        return [written(each) for each in found["spec"].get("http", ())] if found else []

    # --- what is checked --------------------------------------------------------------------------------------------

    def steps(self, canary: str) -> tuple[StepFacts, ...]:
        """The canary's weights, with the requests of each while it was in effect."""
        assert self.load is not None
        now = self.load.now()
        self.load.wait_settled(now)
        seen = [each for each in self.place.witness.seen() if each.kind != ROLLOUT or each.name == self.name]
        return steps_of(seen, Routing(self.host, self.routing), canary, now, self.load.records)

    def requests(self, *, since: float = 0.0, until: float = float("inf")) -> list[Record]:
        """Requests sent in a stretch of time, all answered."""
        assert self.load is not None
        self.load.wait_settled(self.load.now())
        return between(self.load.records, since, until)

    def assert_nothing_lost(self, *faulty: str) -> None:
        """Check that no request failed but by the fault of the versions named."""
        facts = requests_of(self.requests(), frozenset(faulty))
        assert facts.sent > 0
        assert (facts.lost, facts.failed) == ((), ())

    def assert_restored(self) -> None:
        """Check that every mesh object is as its author wrote it, and that nothing is left to undo."""
        differences = {key: difference(before, self.latest(*key)) for key, before in self.originals.items()}
        assert not any(differences.values()), differences


def written(http_route: Mapping[str, Any]) -> Weights:
    """The weights of a route as written."""
    return {entry["destination"].get("subset", ""): entry.get("weight") for entry in http_route.get("route", ())}


def assert_fair(steps: Iterable[StepFacts]) -> None:
    """Check that each weight explains the canary's share of requests (99.99 % of fair splits do)."""
    for step in steps:
        assert step.in_effect_at is not None, step
        low, high = interval(step)
        print(f"  at {step.weight} %: {step.canary} of {step.requests} requests; {low} to {high} are expected")
        assert step.requests > 0
        assert low <= step.canary <= high, step


@dataclass
class Place:
    """A namespace on the mesh."""

    lab: Lab
    operator: OperatorProcess
    namespace: str
    witness: Witness
    stack: ExitStack
    services: list[Service] = field(default_factory=list)

    def service(
        self,
        name: str,
        *,
        versions: Sequence[str] = ("v1", "v2"),
        http: Mapping[str, Sequence[Route]] | None = None,
        routes: Mapping[str, tuple[str, ...]] | None = None,
        subsets: Sequence[Mapping[str, Any]] | None = None,
        rule_host: str = "",
        external: Sequence[str] = (),
    ) -> Service:
        """Put up a service whose traffic goes to the first version, and wait until the gateway knows it.

        Args:
            name: Its name.
            versions: Versions to run, the first of which serves.
            http: Routes by VirtualService; those not named in ``external`` are for callers inside the mesh.
            routes: Managed routes by VirtualService; the only ones where nothing is said.
            subsets: Subsets of the DestinationRule; the one of the first version where nothing is said.
            rule_host: Host as the DestinationRule spells it; the name where nothing is said.
            external: VirtualServices at the gateway; the first where nothing is said.
        """
        stable = versions[0]
        http = http or {name: [route(destination(name, stable))]}
        outside = tuple(external) or (next(iter(http)),)
        made = Service(self, name, routes or dict.fromkeys(http, ()))
        self.services.append(made)
        entries = [made.start(version) for version in versions]
        if subsets is None:
            subsets = [{"name": stable, "labels": {"version": stable}}]
        rule = {"host": rule_host or name, **({"subsets": list(subsets)} if subsets else {})}
        self.lab.apply(
            *entries,
            service(self.namespace, name),
            self._object("DestinationRule", name, rule),
            *(
                self._object("VirtualService", each, self._exposed(made, list(http[each]), each in outside))
                for each in http
            ),
        )
        self.lab.wait_synced()
        keys = [(DESTINATION_RULE, name), *((VIRTUAL_SERVICE, each) for each in http)]
        made.until(lambda: all(self.witness.latest(*key) for key in keys), "mesh objects")
        made.originals = {key: made.latest(*key) for key in keys}
        return made

    def _exposed(self, made: Service, http: list[Route], outside: bool) -> dict[str, Any]:
        if outside:
            return {"hosts": [made.public_host], "gateways": [GATEWAY], "http": http}
        return {"hosts": [made.name], "http": http}

    def _object(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.namespace, "annotations": {"example.com/owner": "team-shop"}}
        return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}

    def close(self) -> None:
        """Take everything away again, so that later tests find an empty mesh."""
        self.stack.close()
        run = self.lab.kubectl
        run("delete", "canaryrollouts", "--all", "-n", self.namespace, "--timeout=30s")
        kinds = "virtualservices,destinationrules,services,workloadentries"
        run("delete", kinds, "--all", "-n", self.namespace, "--wait=false")
        self.witness.stop()
        for made in self.services:
            for backend in made.backends.values():
                backend.crash()


@contextmanager
def new_place(lab: Lab, operator: OperatorProcess, namespace: str) -> Iterator[Place]:
    """Open a namespace that nobody has used."""
    lab.namespace(namespace)
    witness = Witness(lab.kubeconfig, namespace)
    with ExitStack() as stack, witness:
        witness.wait_listening()
        place = Place(lab, operator, namespace, witness, stack)
        try:
            yield place
        finally:
            place.close()


def reasons(events: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How often each reason occurs."""
    return Counter(event["reason"] for event in events)
