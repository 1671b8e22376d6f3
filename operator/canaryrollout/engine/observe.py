"""Reads what a decision needs, all at once, and turns every failure to read into a value.

A rollback must not wait for, or fail with, something it does not depend on: an EndpointSlice that cannot be read is
`Unreadable`, never an exception, and Prometheus is only ever asked for what it has already answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, Preflight, PreflightRequest
from canaryrollout.domain.observation import Endpoints, Mesh, Observation, Unreadable
from canaryrollout.engine.attempts import Attempts
from canaryrollout.engine.ports import Clock, EndpointSource, MetricsSource, Rollout, TrafficRouter
from canaryrollout.engine.registry import Registry

_log = structlog.get_logger(__name__)


def _because(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return f"{type(error).__name__}: {error}"


class Observer:
    """Makes Observations; ``read_timeout`` (seconds) bounds each reading."""

    def __init__(
        self,
        router: TrafficRouter,
        endpoints: EndpointSource,
        metrics: MetricsSource,
        registry: Registry,
        clock: Clock,
        read_timeout: float,
    ) -> None:
        self._router = router
        self._endpoints = endpoints
        self._metrics = metrics
        self._registry = registry
        self._clock = clock
        self._read_timeout = read_timeout

    async def observe(
        self,
        rollout: Rollout,
        spec: CanaryRolloutSpec,
        needs: Needs,
        attempts: Attempts,
        wake: Callable[[], None],
    ) -> Observation:
        """Read what ``needs`` asks for; ``wake`` is called when newer evidence has come in later."""
        mesh, endpoints = await asyncio.gather(
            self._read_mesh(rollout, spec, needs), self._read_endpoints(rollout, spec, needs)
        )
        now = self._clock.now()
        return Observation(
            identity=rollout.identity,
            mesh=mesh,
            endpoints=endpoints,
            evidence=self._latest(needs.evidence, rollout, now, wake),
            opening=self._latest(needs.opening, rollout, now, wake),
            baseline=self._latest(needs.baseline, rollout, now, wake),
            preflight=self._preflight(needs.preflight, rollout, now, wake),
            failures=dict(attempts.failures),
            claims=self._registry.claims(rollout.identity.key),
            clock_step=attempts.clock_step(now.timestamp() - self._clock.monotonic()),
            unstored=attempts.unstored_on(rollout.status),
        )

    async def _read_mesh(self, rollout: Rollout, spec: CanaryRolloutSpec, needs: Needs) -> Mesh | None:
        if not (needs.mesh or needs.references):
            return None
        try:
            async with asyncio.timeout(self._read_timeout):
                return await self._router.observe(
                    rollout.identity.namespace, needs.scope or spec, references=needs.references
                )
        except Exception as error:  # noqa: BLE001 - a failure to read is a value
            _log.warning("mesh unreadable", rollout=rollout.identity.key, error=_because(error))
            unreadable = Unreadable(_because(error))
            names = (reference.name for reference in (needs.scope or spec).istio.virtual_services)
            return Mesh(virtual_services=dict.fromkeys(names, unreadable), destination_rule=unreadable)

    async def _read_endpoints(
        self, rollout: Rollout, spec: CanaryRolloutSpec, needs: Needs
    ) -> Endpoints | Unreadable | None:
        if not needs.endpoints:
            return None
        try:
            async with asyncio.timeout(self._read_timeout):
                return await self._endpoints.ready(rollout.identity.namespace, spec)
        except Exception as error:  # noqa: BLE001 - a failure to read is a value
            _log.warning("endpoints unreadable", rollout=rollout.identity.key, error=_because(error))
            return Unreadable(_because(error))

    def _latest(
        self, request: EvidenceRequest | None, rollout: Rollout, now: datetime, wake: Callable[[], None]
    ) -> Evidence | None:
        if request is None:
            return None
        try:
            return self._metrics.latest(request, now, wake)
        except Exception as error:  # noqa: BLE001 - a failure to read is a value
            _log.exception("no evidence", rollout=rollout.identity.key)
            return Evidence(request=request, error=_because(error), error_since=now)

    def _preflight(
        self, request: PreflightRequest | None, rollout: Rollout, now: datetime, wake: Callable[[], None]
    ) -> Preflight | None:
        if request is None:
            return None
        try:
            return self._metrics.preflight(request, now, wake)
        except Exception as error:  # noqa: BLE001 - a failure to read is a value
            _log.exception("no preflight", rollout=rollout.identity.key)
            return Preflight(request=request, error=_because(error), error_since=now)
