"""The metrics source on Prometheus: evidence is fetched in the background and kept, block by block.

No decision waits for Prometheus. Whoever asks gets what is at hand; asking is also what keeps the fetching going, so
that a rollout nobody looks at costs no query. A block is asked for once its end is as far back as the provider lags,
many blocks (after a restart or an outage) by a range query at once, and the blocks of all rollouts that end at the same
time by the same few queries. What was fetched is never fetched again, except blocks that came with a warning: their
counts may be partial. Queries of the user's own run beside the built-in ones and never delay them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus_backend import Backend
from canaryrollout.adapters.prometheus_breaker import Availability
from canaryrollout.adapters.prometheus_client import Metrics, PrometheusClient
from canaryrollout.adapters.prometheus_entry import Entry
from canaryrollout.adapters.prometheus_own import Asks
from canaryrollout.adapters.prometheus_preflight import Check
from canaryrollout.adapters.prometheus_provider import Provider
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, Preflight, PreflightRequest

__all__ = ["PrometheusSource", "Provider"]

KEPT_INTERVALS: Final = 20
KEPT_AT_LEAST: Final = timedelta(minutes=5)
SWEEP_EVERY: Final = timedelta(minutes=1)

_log = structlog.get_logger(__name__)

Connect = Callable[[Provider, Metrics], Asks]


class PrometheusSource:
    """Implements the engine's ``MetricsSource`` on the providers that the administrator defined.

    All methods belong to one event loop.

    Args:
        providers: The providers by name.
        registry: Where to register metrics.
        connect: Makes what asks a provider.
    """

    def __init__(
        self, providers: Mapping[str, Provider], registry: CollectorRegistry, connect: Connect = PrometheusClient
    ) -> None:
        self._providers = dict(providers)
        self._metrics = Metrics(registry)
        self._availability = Availability(registry)
        self._connect = connect
        self._backends: dict[str, Backend] = {}
        self._entries: dict[str, dict[EvidenceRequest, Entry]] = {}
        self._checks: dict[PreflightRequest, Check] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._swept_at: datetime | None = None

    def latest(self, request: EvidenceRequest, now: datetime, wake: Callable[[], None]) -> Evidence | None:
        """Return the newest evidence at hand and see to it that due blocks are fetched.

        Args:
            request: What to count.
            now: The present time.
            wake: Called from the event loop when newer evidence (or an error) has come in.

        Returns:
            The evidence so far, or ``None`` when nothing was fetched yet.
        """
        self._sweep(now)
        entries = self._entries.setdefault(request.provider, {})
        entry = entries.get(request)
        if entry is None:
            entry = entries[request] = Entry(request, wake, now)
        entry.wake, entry.asked_at = wake, now
        refused = self._refusal(request.provider, request.namespace)
        if refused:
            entry.fail(refused, now)
        else:
            self._backend(request.provider).ask(entry, now)
        return entry.evidence()

    def preflight(self, request: PreflightRequest, now: datetime, wake: Callable[[], None]) -> Preflight | None:
        """Return what is known of a provider before traffic moves, and see to it that it is found out.

        Args:
            request: What has to be known.
            now: The present time.
            wake: Called from the event loop when an answer (or an error) has come in.

        Returns:
            The answer, or ``None`` when there is none yet.
        """
        self._sweep(now)
        refused = self._refusal(request.provider, request.namespace)
        if refused:
            self._checks.pop(request, None)
            return Preflight(request, refused=refused)
        check = self._checks.setdefault(request, Check(request, wake, now))
        check.wake, check.asked_at = wake, now
        if check.due(now):
            backend = self._backend(request.provider)
            backend.tell(now)
            check.asking = backend.start(self._check(check, backend))
        return check.answer

    def reconfigure(self, providers: Mapping[str, Provider]) -> None:
        """Use other providers from now on; evidence that was fetched stays.

        Clients of providers that have changed or gone are closed in the background, those of others are kept.

        Args:
            providers: All providers by name.
        """
        before, self._providers = self._providers, dict(providers)
        changed = {name for name in before.keys() | providers.keys() if before.get(name) != providers.get(name)}
        for name in changed:
            backend = self._backends.pop(name, None)
            if backend is not None:
                self._close(backend)
            if name not in providers:
                self._availability.forget(name)
            for entry in self._entries.get(name, {}).values():
                entry.retry_now()
                entry.wake()
        for check in list(self._checks.values()):
            if check.request.provider in changed:
                del self._checks[check.request]
                check.wake()

    async def close(self) -> None:
        """Give up what is under way and release threads and connections."""
        for backend in self._backends.values():
            self._close(backend)
        self._backends.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _check(self, check: Check, backend: Backend) -> None:
        try:
            answer = await backend.preflight(check.request)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must show up as a missing answer
            _log.exception("preflight failed", provider=backend.provider.name, host=check.request.host)
            answer = Preflight(check.request, error=f"the operator could not read the answer: {error!r}")
        finally:
            check.asking = None
        if check.take(answer, backend.now()):
            check.wake()

    def _refusal(self, name: str, namespace: str) -> str:
        """Return why rollouts of a namespace may not use a provider; empty where they may."""
        provider = self._providers.get(name)
        if provider is None:
            defined = ", ".join(sorted(self._providers)) or "none"
            return f"analysis.provider {name} is not defined here; defined are: {defined}"
        if not provider.serves(namespace):
            allowed = ", ".join(provider.namespaces)
            return f"analysis.provider {name} may not be used in namespace {namespace}; allowed are: {allowed}"
        return ""

    def _backend(self, name: str) -> Backend:
        """Return what works for a provider, made when it is first needed."""
        backend = self._backends.get(name)
        if backend is None:
            server = self._connect(self._providers[name], self._metrics)
            entries = self._entries.setdefault(name, {})
            backend = self._backends[name] = Backend(server, entries, self._availability)
        return backend

    def _close(self, backend: Backend) -> None:
        backend.stop()
        task = asyncio.get_running_loop().create_task(backend.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _sweep(self, now: datetime) -> None:
        """Forget requests that nobody has asked for in a while."""
        if self._swept_at is not None and timedelta() <= now - self._swept_at < SWEEP_EVERY:
            return
        self._swept_at = now
        for entries in self._entries.values():
            for request, entry in list(entries.items()):
                if now - entry.asked_at > max(KEPT_INTERVALS * request.interval, KEPT_AT_LEAST) and not entry.jobs:
                    del entries[request]
        for check in list(self._checks.values()):
            if now - check.asked_at > KEPT_AT_LEAST and check.asking is None:
                del self._checks[check.request]
