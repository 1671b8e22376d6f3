"""One rollout, from its creation to its end, with an operator of its own behind a proxy of its own.

Lives are alike but for what goes wrong, so that their ends can be compared. Times are short: a life takes seconds.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from canaryrollout.adapters.istio_patch import without_server_fields
from canaryrollout.api.status import CanaryRolloutStatus, Phase
from lab.demo.scene import grants
from lab.faultproxy import Armed, Entry, FaultProxy
from lab.mesh import Lab
from tests.cluster.program import Program
from tests.faults.cluster import (
    DESTINATION_RULES,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
    WORKLOAD_ENTRIES,
    Cluster,
    Seen,
    Witness,
)
from tests.faults.traffic import SCRAPE_SECONDS, Traffic

NAME: Final = "reviews"
LIFE: Final = "life-"
"""What names of their namespaces begin with."""
STEPS: Final = (20, 60, 100)
ANALYSIS: Final[Mapping[str, Any]] = {
    "mode": "Threshold",
    "interval": "1s",
    "minRequests": 20,
    "errorRate": {"max": "1%"},
}
LAG_SECONDS: Final = 0.3
TIMINGS: Final = {
    "subsetSettle": "200ms",
    "drain": "200ms",
    "propagation": "200ms",
    "baselineWindow": "1s",
    "convergenceBound": "4s",
    "poll": "500ms",
    "retry": "500ms",
    "blockedRetry": "1s",
    "release": "6s",
}
PATIENCE_SECONDS: Final = 60.0
_TIME: Final = re.compile(r"(At|Since|[tT]ime|deadline|notBefore)$")
_KEPT: Final = frozenset({"resourceVersion", "generation", "managedFields"})
_numbers = count(1)
_granting = threading.Lock()
"""Two that create the same binding at once are in each other's way."""


@dataclass(eq=False)
class Ground:
    """What all lives share: an API server, its witness, and traffic."""

    lab: Lab
    cluster: Cluster
    witness: Witness
    traffic: Traffic
    directory: Path


def host_of(namespace: str) -> str:
    """Full name of the service of a life."""
    return f"{NAME}.{namespace}.svc.cluster.local"


def shares(virtual_service: Mapping[str, Any]) -> dict[str, int]:
    """Weight by version: subsets are named after versions here."""
    (route,) = virtual_service["spec"]["http"]
    entries = route["route"]
    if len(entries) == 1:
        return {entries[0]["destination"]["subset"]: entries[0].get("weight", 100)}
    return {entry["destination"]["subset"]: entry.get("weight", 0) for entry in entries}


@dataclass
class Life:
    """A rollout of v2 in a namespace of its own.

    Attributes:
        ground: What is shared.
        namespace: Its namespace.
        proxy: What stands between its operator and the API server.
        elected: Whether its operator has to be elected, by the usual times.
        lease: Times of the election in place of the usual ones.
        neighbors: Other rollouts of the same operator, see `neighbor`.
    """

    ground: Ground
    namespace: str
    proxy: FaultProxy
    elected: bool
    lease: Mapping[str, str]
    stack: ExitStack = field(default_factory=ExitStack)
    program: Program | None = None
    starts: int = 0
    neighbors: list[Life] = field(default_factory=list)

    # --- what a user does -------------------------------------------------------------------------------------------

    def furnish(self) -> None:
        """Create namespace, service and routes: all the traffic goes to v1, and v2 is ready."""
        cluster, namespace = self.ground.cluster, self.namespace
        cluster.namespace(namespace)
        ports = [{"name": "http", "port": 80}]
        self._create(SERVICES, "v1", "Service", NAME, {"selector": {"app": NAME}, "ports": ports})
        istio = "networking.istio.io/v1"
        for version in ("v1", "v2"):
            labels = {"app": NAME, "version": version}
            self._create(WORKLOAD_ENTRIES, istio, "WorkloadEntry", version, {"address": "127.0.0.1", "labels": labels})
        subset = {"name": "v1", "labels": {"version": "v1"}}
        self._create(DESTINATION_RULES, istio, "DestinationRule", NAME, {"host": NAME, "subsets": [subset]})
        route = {"destination": {"host": NAME, "subset": "v1"}}
        self._create(VIRTUAL_SERVICES, istio, "VirtualService", NAME, {"hosts": [NAME], "http": [{"route": [route]}]})

    def begin(self, **spec: Any) -> None:
        """Create the CanaryRollout."""
        fields = {
            "version": "v2",
            "host": NAME,
            "istio": {"virtualServices": [{"name": NAME}], "destinationRule": {"name": NAME}},
            "steps": [{"weight": weight} for weight in STEPS],
            "hold": "0s",
            "analysis": ANALYSIS,
            "progressDeadline": "2m",
            **spec,
        }
        self._create(ROLLOUTS, "canaryrollout.io/v1alpha1", "CanaryRollout", NAME, fields)

    def neighbor(self) -> Life:
        """Furnish another namespace, whose rollout the same operator serves from its next start on."""
        life = Life(self.ground, f"{LIFE}{next(_numbers)}", self.proxy, self.elected, self.lease, self.stack)
        life.furnish()
        self.stack.callback(self.ground.traffic.forget, host_of(life.namespace))
        self.neighbors.append(life)
        return life

    def start(self, *, environment: Mapping[str, str] | None = None, **overrides: Any) -> None:
        """Start the operator, or start it again, and wait until it is ready.

        Args:
            environment: Variables beside those of this process.
            overrides: Top-level settings in place of the usual ones; keys of ``provider`` are those of the provider.
        """
        self.starts += 1
        config = self.configure(**overrides)
        kubeconfig = self.proxy.kubeconfig(config.with_name("kubeconfig"))
        self.program = Program(kubeconfig, "--config", str(config), **(environment or {}))
        self.stack.enter_context(self.program)
        for neighbor in self.neighbors:
            neighbor.program = self.program
        self.program.wait_ready()

    def configure(self, **overrides: Any) -> Path:
        """Write the settings file of operators of this life, see `start`, and return its path."""
        directory = self.ground.directory / self.namespace
        directory.mkdir(exist_ok=True)
        config = directory / "settings.yaml"
        provider = {
            "url": self.ground.traffic.prometheus_url,
            "scrapeInterval": f"{SCRAPE_SECONDS:g}s",
            "lag": f"{LAG_SECONDS * 1000:.0f}ms",
            "timeout": "5s",
            **overrides.pop("provider", {}),
        }
        settings = {
            "providers": {"default": provider},
            "namespaces": [self.namespace, *(neighbor.namespace for neighbor in self.neighbors)],
            "resync": "24h",
            "sweep": "24h",
            "workers": 4,
            # Where operators are killed, the next one would wait for the lease of the dead.
            "leaderElection": {
                "enabled": self.elected,
                "namespace": self.namespace,
                "name": "canaryrollout",
                **self.lease,
            },
            "timings": TIMINGS,
            **overrides,
        }
        config.write_text(yaml.safe_dump(settings))
        return config

    def command(self, command: str) -> None:
        """Give a command, such as ``approve/v2/1``."""
        annotation = {"metadata": {"annotations": {"canaryrollout.io/command": command}}}
        self.ground.cluster.merge(ROLLOUTS, self.namespace, NAME, annotation)

    def pid(self) -> int | None:
        """Process id of the operator."""
        return self.program.process.pid if self.program is not None else None

    def rule(self, text: str) -> Armed:
        """Let something go wrong; whom to kill or stop is the operator."""
        return self.proxy.rule(text, self.pid)

    def fail(self, version: str, rate: float = 1.0) -> None:
        """Let a version fail from now on."""
        self.ground.traffic.fail(host_of(self.namespace), version, rate)

    def fail_from(self, weight: int) -> None:
        """Let v2 fail whenever it has so much weight or more."""
        self.ground.traffic.fail_from(host_of(self.namespace), "v2", weight)

    # --- what there is to see ---------------------------------------------------------------------------------------

    @property
    def status(self) -> CanaryRolloutStatus:
        """The newest status."""
        return self.status_of(self.ground.witness.latest(ROLLOUTS, self.namespace, NAME))

    @property
    def weight(self) -> int:
        """The canary's weight as written now."""
        return shares(self.ground.witness.latest(VIRTUAL_SERVICES, self.namespace, NAME)).get("v2", 0)

    @staticmethod
    def status_of(rollout: Mapping[str, Any]) -> CanaryRolloutStatus:
        """The status of a CanaryRollout."""
        return CanaryRolloutStatus.model_validate(rollout.get("status") or {})

    @property
    def ended(self) -> bool:
        """Whether the rollout has come to an end, and everything is cleaned up."""
        rollout = self.ground.witness.latest(ROLLOUTS, self.namespace, NAME)
        status = self.status_of(rollout)
        at_rest = status.phase is Phase.ROLLED_BACK or (status.phase is Phase.STABLE and status.stable_version == "v2")
        return at_rest and not rollout["metadata"].get("finalizers")

    @property
    def gave_no_reason(self) -> bool:
        """Whether the traffic is back already, and status does not say why yet: a rollback writes the mesh first."""
        cluster = self.ground.cluster
        record = self.status_of(cluster.get(ROLLOUTS, self.namespace, NAME)).rollout
        back = not shares(cluster.get(VIRTUAL_SERVICES, self.namespace, NAME)).get("v2", 0)
        return back and record is not None and record.weight > 0 and not record.reason

    def until(self, holds: Callable[[], object], what: str, within: float = PATIENCE_SECONDS) -> float:
        """Wait until something holds, and return how many seconds that took."""
        started = time.monotonic()
        while not holds():
            assert time.monotonic() - started < within, f"no {what} within {within:g} s; {self.story()}"
            time.sleep(0.02)
        return time.monotonic() - started

    def until_dead(self) -> None:
        """Wait until the operator was killed."""
        assert self.program is not None
        self.program.process.wait(10)

    def until_quiet(self, seconds: float = 0.7) -> None:
        """Wait until nothing has been written for so long."""
        self.until(lambda: self.quiet(seconds), "end of writing")

    def quiet(self, seconds: float = 0.7) -> bool:
        """Whether nothing has been written for so long."""
        writes = self.writes()
        return not writes or time.time() - writes[-1].at > seconds

    def seen(self, kind: tuple[str, str]) -> list[Seen]:
        """Every version of the rollout, its VirtualService or its DestinationRule."""
        return self.ground.witness.seen(kind, self.namespace, NAME)

    def writes(self) -> list[Entry]:
        """Writes that the API server did, and those it was kept from; Leases are not counted."""
        writes = (e for e in self.proxy.entries() if e.call.writes and e.call.namespace == self.namespace)
        return [entry for entry in writes if not entry.call.resource.startswith("leases")]

    def applied(self) -> Counter[str]:
        """How many writes of each kind were done."""
        return Counter(entry.call.kind for entry in self.writes() if entry.applied)

    def end(self) -> dict[str, Any]:
        """What is left of the life, without times and other things that differ from one to the next."""
        rollout = self.ground.cluster.get(ROLLOUTS, self.namespace, NAME)
        status = self.status_of(rollout)
        record = status.rollout
        objects = {
            kind[1]: _bare(self.ground.cluster.get(kind, self.namespace, NAME), self.namespace)
            for kind in (VIRTUAL_SERVICES, DESTINATION_RULES)
        }
        return {
            "phase": status.phase,
            "stable": status.stable_version,
            "canary": status.canary_version,
            "record": record and (record.version, record.reason, record.weight, record.target),
            "changes": status.changes,
            "contest": status.contest,
            "conditions": {c.type: (c.status, c.reason) for c in status.conditions},
            "finalizers": rollout["metadata"].get("finalizers"),
            **objects,
        }

    def weights(self) -> list[int]:
        """The canary's weights, in the order of writes, without repetitions."""
        found = [shares(seen.document).get("v2", 0) for seen in self.seen(VIRTUAL_SERVICES)]
        return [weight for weight, before in zip(found, [-1, *found], strict=False) if weight != before]

    def story(self) -> str:
        """What happened, for the message of a failed test."""
        status = self.status
        lines = [f"{self.namespace}: {status.phase}: {status.message}", f"  weights {self.weights()}"]
        lines += [f"  {entry.time:%H:%M:%S.%f} {entry.reason}: {entry.message}" for entry in status.history]
        lines += [f"  {entry.as_line()}" for entry in self.proxy.entries() if entry.call.writes or entry.rule][-60:]
        if self.program is not None:
            log = [line for line in self.program.log if line.get("level") not in ("debug", "info")]
            lines += [f"  log: {line}" for line in log[-15:]]
        return "\n".join(lines)

    # --- promises ---------------------------------------------------------------------------------------------------

    def check_raises(self, on: int = 1) -> None:
        """Every raise of the weight was written after the step before it had passed, on so many requests at least."""
        statuses = [(seen.version, self.status_of(seen.document)) for seen in self.seen(ROLLOUTS)]
        raises = [
            (new.version, shares(old.document).get("v2", 0), shares(new.document).get("v2", 0))
            for old, new in pairwise(self.seen(VIRTUAL_SERVICES))
        ]
        for version, before, after in raises:
            if not 0 < before < after:
                continue
            passed = {
                step.weight
                for at, status in statuses
                if at < version and status.rollout is not None
                for step in status.rollout.finished
                if step.canary.requests >= on
            }
            assert before in passed, f"{before} -> {after} without a pass of {before} on {on} requests; {self.story()}"

    def check_not_repeated(self) -> None:
        """No step was begun anew, and the rollout was begun once."""
        records = [r for seen in self.seen(ROLLOUTS) if (r := self.status_of(seen.document).rollout) is not None]
        assert len({record.started_at for record in records}) <= 1, self.story()
        for weight in STEPS:
            for moment in ("applied_at", "in_effect_at"):
                times = {getattr(r, moment) for r in records if r.weight == weight and not r.ended_at} - {None}
                assert len(times) <= 1, f"{moment} of {weight} has been {times}; {self.story()}"
        reasons = [(entry.reason, entry.weight) for entry in self.status.history]
        for once in ("RolloutStarted", "StepPassed"):
            found = [weight for reason, weight in reasons if reason == once]
            assert len(found) == len(set(found)), f"{once} of {found}; {self.story()}"

    def redundant(self) -> list[str]:
        """Writes of the operator that brought nothing new: they changed nothing, or nothing but times."""
        versions = [entry for entry in self.writes() if entry.applied and entry.version]
        unchanged = [
            f"{new.call.kind} {new.number}"
            for kind in (ROLLOUTS, VIRTUAL_SERVICES, DESTINATION_RULES)
            for old, new in pairwise(e for e in versions if e.call.resource.partition("/")[0] == kind[1])
            if old.version == new.version
        ]
        same = [
            f"{kind[1]} at {new.version}"
            for kind in (ROLLOUTS, VIRTUAL_SERVICES, DESTINATION_RULES)
            for old, new in pairwise(self.seen(kind))
            if _timeless(old.document) == _timeless(new.document)
        ]
        return unchanged + same

    # --- private ----------------------------------------------------------------------------------------------------

    def _create(self, kind: tuple[str, str], api: str, name_of_kind: str, name: str, spec: dict[str, Any]) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        document = {"apiVersion": api, "kind": name_of_kind, "metadata": metadata, "spec": spec}
        self.ground.cluster.create(kind, self.namespace, document)


def _timeless(value: Any) -> Any:
    """Return a copy without times, and without what the API server keeps of versions and managers."""
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _timeless(item) for key, item in value.items() if not _TIME.search(key) and key not in _KEPT}


def _bare(document: dict[str, Any], namespace: str) -> dict[str, Any]:
    bare = without_server_fields(document)
    assert bare["metadata"].pop("namespace") == namespace
    return bare


@contextmanager
def new_life(ground: Ground, *, elected: bool = False, **lease: str) -> Iterator[Life]:
    """Open a namespace with a service, and a proxy for an operator that is not started yet."""
    namespace = f"{LIFE}{next(_numbers)}"
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(ground.lab.kubeconfig_for("operator")))
        life = Life(ground, namespace, proxy, elected, lease, stack)
        life.furnish()
        if elected:
            with _granting:
                ground.lab.apply(*grants(namespace))
        try:
            yield life
        finally:
            ground.traffic.forget(host_of(namespace))
