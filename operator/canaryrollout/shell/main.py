"""Makes the operator out of its parts and runs it: the one place that knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from canaryrollout import __version__
from canaryrollout.adapters.clock import SystemClock
from canaryrollout.adapters.endpoints import MeshEndpoints
from canaryrollout.adapters.events import Recorder
from canaryrollout.adapters.istio import IstioRouter
from canaryrollout.adapters.kube import ApiError, KubeClient
from canaryrollout.adapters.lease import KubernetesLease
from canaryrollout.adapters.prometheus import PrometheusSource
from canaryrollout.adapters.prometheus_client import Provider
from canaryrollout.adapters.store import KubernetesStore
from canaryrollout.api.crd import GROUP, VERSION
from canaryrollout.domain.decide import decide, decide_invalid
from canaryrollout.domain.letting_go import decide_unread
from canaryrollout.domain.naming import fqdn
from canaryrollout.domain.needs import needs
from canaryrollout.domain.settings import DomainSettings
from canaryrollout.engine.core import Core
from canaryrollout.engine.elector import Elector, Leading
from canaryrollout.engine.engine import Engine, Leadership, Ports
from canaryrollout.engine.ports import Rollout
from canaryrollout.engine.settings import EngineSettings, LeaseSettings
from canaryrollout.shell.handlers import Watch
from canaryrollout.shell.http import HttpServer, application
from canaryrollout.shell.provider_settings import Block, ProviderSettings
from canaryrollout.shell.reload import Reload
from canaryrollout.shell.settings import Settings, in_a_pod, own_namespace, this_replica
from canaryrollout.shell.telemetry import EngineCollector, PrometheusTelemetry

_log = structlog.get_logger(__name__)

_RETRY: Final = 5.0
"""Seconds between attempts to find the definition of CanaryRollouts, and then all of them."""


@dataclass(slots=True)
class Operator:
    """The parts that live as long as the program."""

    engine: Engine
    elector: Elector | None
    client: KubeClient
    telemetry: PrometheusTelemetry
    registry: CollectorRegistry
    metrics: PrometheusSource
    watch: Watch | None = None
    campaign: asyncio.Task[None] | None = None
    listed: bool = False

    def stuck(self) -> str:
        """Return why this replica does not get on with its work; empty while it does."""
        if self.campaign is not None and self.campaign.done():
            return "the election has ended by itself"
        return self.engine.stuck()

    def unready(self) -> str:
        """Return why this replica is not ready; empty when it is."""
        if self.watch is None or not self.watch.ready:
            return "CanaryRollouts are not watched yet"
        if not self.listed:
            return "CanaryRollouts could not be listed yet"
        if self.elector is not None and not self.elector.answered:
            return "the Lease could not be read yet"
        return ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings were read from, and can be read again: a file, and flags that come before it."""

    file: Path
    flags: Mapping[str, Any]


async def run(settings: Settings, source: Source | None = None) -> None:
    """Run the operator until it is told to stop by SIGTERM or SIGINT.

    Args:
        settings: The settings to start with.
        source: Where changed providers are read from; ``None`` where nothing can change.

    Raises:
        ApiError: If there are no credentials for the API server.
        OSError: If the address of the probes is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stop)
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(_assemble(settings))
        await stack.enter_async_context(_reloading(operator, settings, source))
        await stack.enter_async_context(_serving(operator, settings))
        _log.info("starting", version=__version__, namespaces=settings.namespaces or "all")
        if await _definition_served(operator.client, stop):
            await stack.enter_async_context(_watching(operator, settings))
            await stack.enter_async_context(_beside(_list_all(operator), "first list"))
            await stack.enter_async_context(_campaigning(operator))
            await operator.engine.run(stop)
    _log.info("stopped")


def _on_signal(number: signal.Signals, stop: asyncio.Event) -> None:
    if stop.is_set():
        raise SystemExit(128 + number)
    _log.info("stopping", signal=number.name)
    stop.set()


@asynccontextmanager
async def _assemble(settings: Settings) -> AsyncIterator[Operator]:
    """Make engine, adapters and elector, and close what has to be closed."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    identity, clock = this_replica(), SystemClock()
    telemetry = PrometheusTelemetry(registry)
    client = await KubeClient.connect(
        registry,
        kubeconfig=settings.kubeconfig,
        context=settings.context,
        connections=settings.workers * 2,
        replica=identity,
    )
    metrics = PrometheusSource(providers(settings.providers), registry)
    recorder = Recorder(client, clock, identity)
    domain = settings.cluster_domain
    ports = Ports(
        store=KubernetesStore(client, recorder, settings.namespaces),
        router=IstioRouter(client, domain=domain, cluster_wide=not settings.namespaces),
        endpoints=MeshEndpoints(client, domain=domain),
        metrics=metrics,
        clock=clock,
    )
    leadership: Leadership = Leading()
    engine = Engine(
        ports,
        core(domain_settings(settings)),
        partial(_host_of, domain=domain),
        lambda: leadership,
        engine_settings(settings),
        telemetry,
    )
    registry.register(EngineCollector(engine.phases, engine.queue_depth))
    elector = None
    if settings.leader_election.enabled:
        election = settings.leader_election
        lease = KubernetesLease(client, election.namespace or own_namespace(), election.name)
        elector = leadership = Elector(lease, clock, identity, lease_settings(settings), engine.lead)
    try:
        yield Operator(engine, elector, client, telemetry, registry, metrics)
    finally:
        await metrics.close()
        await client.close()


@asynccontextmanager
async def _reloading(operator: Operator, settings: Settings, source: Source | None) -> AsyncIterator[None]:
    """Take changed providers in."""
    warn_of_unverified(settings.providers)
    if source is None:
        yield
        return

    def apply(changed: Mapping[str, ProviderSettings]) -> None:
        warn_of_unverified(changed)
        operator.metrics.reconfigure(providers(changed))
        operator.engine.use(core(domain_settings(settings.model_copy(update={"providers": changed}))))

    reload = Reload(source.file, source.flags, settings, check=lease_settings, apply=apply, registry=operator.registry)
    async with _beside(reload.run(), "reload"):
        yield


@asynccontextmanager
async def _serving(operator: Operator, settings: Settings) -> AsyncIterator[None]:
    """Answer probes and show metrics."""
    host = settings.http_host or ("0.0.0.0" if in_a_pod() else "127.0.0.1")  # noqa: S104 - the kubelet asks from outside
    app = application(operator.registry, operator.stuck, operator.unready)
    server = HttpServer(app, host, settings.http_port)
    try:
        _log.info("serving probes and metrics", address=await server.start())
        yield
    finally:
        await server.close()


@asynccontextmanager
async def _watching(operator: Operator, settings: Settings) -> AsyncIterator[None]:
    """Watch CanaryRollouts."""

    def restarted() -> None:
        operator.telemetry.watch_restarts.inc()
        operator.engine.resweep()

    operator.watch = Watch(
        asyncio.get_running_loop(),
        operator.engine.seen,
        operator.engine.vanished,
        restarted,
        namespaces=settings.namespaces,
        kubeconfig=settings.kubeconfig,
        context=settings.context,
    )
    operator.watch.start()
    try:
        yield
    finally:
        await operator.watch.stop()


async def _list_all(operator: Operator) -> None:
    """Take in all rollouts that there are, so that who takes over one day knows them already."""
    while not operator.listed:
        try:
            await operator.engine.sweep()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            _log.warning("rollouts could not be listed", error=str(error) or type(error).__name__)
            await asyncio.sleep(_RETRY)
        else:
            operator.listed = True


@asynccontextmanager
async def _campaigning(operator: Operator) -> AsyncIterator[None]:
    """Take part in the election, and give the lease up in the end."""
    if operator.elector is None:
        operator.engine.lead(True)
        yield
        return
    try:
        async with _beside(operator.elector.run(), "elector") as operator.campaign:
            yield
    finally:
        await operator.elector.release()


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Do something in the background meanwhile, and end it in the end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _definition_served(client: KubeClient, stop: asyncio.Event) -> bool:
    """Wait until the API server knows CanaryRollouts; return whether it does before the operator is stopped."""
    while not stop.is_set():
        try:
            if VERSION in await client.served_versions(GROUP):
                return True
            _log.error("the API server does not know CanaryRollouts", remedy="canaryrollout crd | kubectl apply -f -")
        except ApiError as error:
            _log.warning("the API server does not answer", error=str(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _RETRY)
    return False


def core(settings: DomainSettings) -> Core:
    """Return the functions that decide, with their settings bound."""
    return Core(
        needs=partial(needs, settings=settings),
        decide=partial(decide, settings=settings),
        decide_invalid=decide_invalid,
        decide_unread=partial(decide_unread, settings=settings),
    )


def providers(settings: Mapping[str, ProviderSettings]) -> dict[str, Provider]:
    """Return the Prometheus servers that rollouts may name."""
    return {name: provider.provider(name) for name, provider in settings.items()}


def warn_of_unverified(settings: Mapping[str, ProviderSettings]) -> None:
    """Say which providers may be anybody."""
    for name, provider in settings.items():
        if provider.insecure_skip_verify:
            _log.warning(
                "a provider's certificate is not verified: whoever answers decides on rollouts, and gets credentials",
                provider=name,
                remedy="set caFile instead of insecureSkipVerify",
            )


def domain_settings(settings: Settings) -> DomainSettings:
    """Return the timing of decisions."""
    lag = {name: provider.effective_lag for name, provider in settings.providers.items()}
    return replace(DomainSettings(lag=lag), **_values(settings.timings))


def engine_settings(settings: Settings) -> EngineSettings:
    """Return times and sizes of the engine; a write lasts no longer than a former leader's last one may."""
    usual = EngineSettings()
    margin = lease_settings(settings).margin if settings.leader_election.enabled else usual.write_timeout
    return replace(
        usual,
        workers=settings.workers,
        resync=_seconds(settings.resync),
        sweep=_seconds(settings.sweep),
        write_timeout=min(usual.write_timeout, margin),
    )


def lease_settings(settings: Settings) -> LeaseSettings:
    """Return the times of the election.

    Raises:
        ValueError: If they make no sense.
    """
    election = settings.leader_election
    return LeaseSettings(
        duration=_seconds(election.lease_duration),
        renew_deadline=_seconds(election.renew_deadline),
        retry=_seconds(election.retry_period),
    )


def _values(block: Block) -> dict[str, Any]:
    """Return what is set in a block, as values and not as the API spells them."""
    return {name: value for name in type(block).model_fields if (value := getattr(block, name)) is not None}


def _seconds(value: timedelta) -> float:
    return value.total_seconds()


def _host_of(rollout: Rollout, domain: str) -> str | None:
    return fqdn(rollout.spec.host, rollout.identity.namespace, domain) if rollout.spec is not None else None
