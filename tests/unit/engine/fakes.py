"""An outside world in memory for the engine's tests: every call is recorded with the time of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.decision import Action, Decision, Event, Needs
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, Preflight, PreflightRequest
from canaryrollout.domain.letting_go import decide_unread
from canaryrollout.domain.observation import Endpoints, Identity, Mesh, Missing, Observation, Unreadable
from canaryrollout.domain.settings import DomainSettings
from canaryrollout.engine.core import Core
from canaryrollout.engine.elector import Leading
from canaryrollout.engine.engine import Engine, Ports
from canaryrollout.engine.ports import Conflict, Gone, Permit, Rollout
from canaryrollout.engine.settings import EngineSettings
from canaryrollout.engine.telemetry import Silent

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

SPEC = CanaryRolloutSpec.model_validate(
    {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
    }
)


class LoopClock:
    """The event loop's time; ``step`` moves the wall clock alone."""

    def __init__(self) -> None:
        self.step = timedelta()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time()) + self.step

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def rollout(name: str = "reviews", phase: Phase | None = Phase.STABLE, *, version: int = 1, **identity: Any) -> Rollout:
    """A rollout in namespace ``shop`` that is at rest unless ``phase`` says otherwise."""
    known: dict[str, Any] = {
        "namespace": "shop",
        "name": name,
        "uid": f"uid-{name}",
        "generation": 1,
        "created_at": EPOCH,
    }
    who = Identity(**(known | identity))
    status = CanaryRolloutStatus(phase=phase, observed_generation=who.generation)
    return Rollout(who, str(version), SPEC, status)


@dataclass
class World:
    """API server, mesh and Prometheus in one; ``errors`` are raised, one per call, by the call they are filed under."""

    objects: dict[str, Rollout] = field(default_factory=dict)
    calls: list[tuple[float, str, str]] = field(default_factory=list)
    errors: dict[str, list[Exception]] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    statuses: list[CanaryRolloutStatus] = field(default_factory=list)
    wakes: list[Callable[[], None]] = field(default_factory=list)
    delays: dict[str, float] = field(default_factory=dict)
    version: int = 100
    busy: int = 0
    most_busy: int = 0

    def at(self, call: str) -> list[float]:
        return [round(when, 3) for when, what, _ in self.calls if what == call]

    def order(self) -> list[str]:
        return [what for _, what, _ in self.calls]

    async def _call(self, what: str, key: str) -> None:
        self.calls.append((asyncio.get_running_loop().time(), what, key))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(self.delays.get(what, 0))
        finally:
            self.busy -= 1
        if self.errors.get(what):
            raise self.errors[what].pop(0)

    def put(self, new: Rollout) -> Rollout:
        self.version += 1
        stored = replace(new, resource_version=str(self.version))
        self.objects[new.identity.key] = stored
        return stored

    async def get(self, key: str) -> Rollout | None:
        await self._call("get", key)
        return self.objects.get(key)

    async def list(self) -> AsyncIterator[Rollout]:
        await self._call("list", "")
        for known in tuple(self.objects.values()):
            yield known

    def _guard(self, known: Rollout) -> None:
        present = self.objects.get(known.identity.key)
        if present is None:
            raise Gone(f"{known.identity.key} does not exist")
        if present.resource_version != known.resource_version:
            raise Conflict("the object has been modified")

    async def write_status(self, known: Rollout, status: CanaryRolloutStatus, permit: Permit) -> Rollout:
        permit()
        await self._call("write_status", known.identity.key)
        self._guard(known)
        self.statuses.append(status)
        return self.put(replace(known, status=status))

    async def set_finalizer(self, known: Rollout, present: bool, permit: Permit) -> Rollout:
        permit()
        await self._call("set_finalizer", known.identity.key)
        self._guard(known)
        return self.put(replace(known, identity=replace(known.identity, finalizer=present)))

    async def emit(self, known: Rollout, event: Event, permit: Permit) -> None:
        permit()
        if "emit" in self.delays:
            await asyncio.sleep(self.delays["emit"])
        self.events.append((known.identity.key, event.reason))

    async def observe(self, namespace: str, spec: CanaryRolloutSpec, *, references: bool) -> Mesh:
        await self._call("observe", namespace)
        return Mesh({}, Missing("DestinationRuleMissing", "there is none"))

    async def apply(self, namespace: str, action: Action, permit: Permit) -> None:
        permit()
        await self._call(action.key, namespace)

    async def ready(self, namespace: str, spec: CanaryRolloutSpec) -> Endpoints | Unreadable:
        await self._call("ready", namespace)
        return Endpoints({"v1": 1})

    def latest(self, request: EvidenceRequest, now: datetime, wake: Callable[[], None]) -> Evidence | None:
        self.calls.append((asyncio.get_running_loop().time(), "latest", request.host))
        self.wakes.append(wake)
        return None

    def preflight(self, request: PreflightRequest, now: datetime, wake: Callable[[], None]) -> Preflight | None:
        self.calls.append((asyncio.get_running_loop().time(), "preflight", request.host))
        return None


Decide = Callable[[CanaryRolloutSpec, CanaryRolloutStatus, Observation, datetime], Decision]


def host_of(known: Rollout) -> str | None:
    return f"{known.spec.host}.{known.identity.namespace}" if known.spec else None


def core(decide: Decide, needs: Needs | None = None) -> Core:
    """A core that always needs the same."""
    return Core(
        needs=lambda spec, status, identity, now: needs or Needs(),
        decide=decide,
        decide_invalid=lambda status, identity, problems, now: Decision(
            status.model_copy(update={"phase": Phase.BLOCKED, "message": "; ".join(problems)})
        ),
        decide_unread=partial(decide_unread, settings=DomainSettings()),
    )


def engine(
    world: World,
    decide: Decide,
    *,
    needs: Needs | None = None,
    settings: EngineSettings | None = None,
    leadership: Any = None,
    clock: LoopClock | None = None,
) -> Engine:
    """An engine on ``world``; it leads unless told otherwise."""
    leads = leadership or Leading()
    return Engine(
        Ports(store=world, router=world, endpoints=world, metrics=world, clock=clock or LoopClock()),
        core(decide, needs),
        host_of,
        lambda: leads,
        settings or EngineSettings(workers=4),
        Silent(),
    )


class Running:
    """Runs an engine inside ``async with`` and stops it at the end."""

    def __init__(self, subject: Engine) -> None:
        self._subject = subject
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Engine:
        self._task = asyncio.create_task(self._subject.run(self._stop))
        await asyncio.sleep(0)
        return self._subject

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task
