"""Elects one replica by a Lease, so that two never write at the same time.

A lease is a promise about time, and wall clocks of two machines do not agree. So nobody compares a time in the Lease
with a clock: a follower notes on its own monotonic clock when it last saw the Lease change, and the leader counts the
validity of its lease from the moment it *sent* the renewal. A leader that cannot renew stops itself while others still
respect it; what it had sent by then is fenced by the resourceVersion that every write carries.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import structlog

from canaryrollout.engine.ports import Clock, Conflict, LeaseStore, NotLeading
from canaryrollout.engine.settings import LeaseSettings

RELEASED: Final = "released"
SOON: Final = 0.25
"""The part of the usual period that is waited after a failure, by a replica that may have the lease."""

_log = structlog.get_logger(__name__)


def micro_time(value: datetime) -> str:
    """Spell a UTC time as the Kubernetes type MicroTime does: ``2026-01-31T12:00:00.000250Z``."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Leading:
    """The answer to "do I lead?" where there is no election: always."""

    def leads(self) -> bool:
        """Return ``True``."""
        return True

    def permit(self) -> None:
        """Permit every write."""


class Elector:
    """Campaigns for a Lease, keeps it, and tells at any moment whether this replica may write."""

    def __init__(
        self,
        store: LeaseStore,
        clock: Clock,
        identity: str,
        settings: LeaseSettings,
        on_change: Callable[[bool], None],
    ) -> None:
        """Create an elector.

        Args:
            store: The Lease.
            clock: Wall clock for what is written, monotonic clock for what is decided.
            identity: Name of this replica, unique for each process.
            settings: Times.
            on_change: Called with ``True`` when this replica becomes leader and ``False`` when it no longer is.
        """
        self._store = store
        self._clock = clock
        self._identity = identity
        self._settings = settings
        self._on_change = on_change
        self._write_until = 0.0
        self._leads = False
        self._reachable = True
        self._held: tuple[str, dict[str, Any]] | None = None
        self._last_seen: tuple[str, dict[str, Any]] | None = None
        self._observed: tuple[str, Any, Any] | None = None
        self._observed_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._attempt: asyncio.Task[bool] | None = None
        self.answered = False
        """Whether the API server has ever answered about the Lease."""

    def leads(self) -> bool:
        """Return whether this replica leads and may still write."""
        return self._leads and self._clock.monotonic() < self._write_until

    def permit(self) -> None:
        """Return if this replica may send a write now; raise `NotLeading` otherwise."""
        if not self.leads():
            raise NotLeading("this replica does not hold the lease")

    async def run(self) -> None:
        """Campaign and renew until cancelled."""
        while True:
            started = self._clock.monotonic()
            period = self._settings.retry
            self._attempt = asyncio.create_task(self._try_once(), name="lease")
            if not await asyncio.shield(self._attempt) and self._may_have_it():
                period *= SOON * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
            elapsed = self._clock.monotonic() - started
            await asyncio.sleep(max(0.01, period - elapsed))

    async def release(self) -> None:
        """Give the lease up, so that another replica takes over at its next look.

        An attempt under way when `run` was cancelled is let end first: what it writes could arrive after the release.
        """
        if self._attempt is not None:
            await asyncio.wait({self._attempt})
        if not self._leads:
            return
        self._step_down(RELEASED)
        try:
            async with asyncio.timeout(self._settings.retry):
                found = await self._store.read()
                if found is None or found[1].get("holderIdentity") != self._identity:
                    return
                version, spec = found
                await self._store.replace(version, spec | {"holderIdentity": "", "leaseDurationSeconds": 1})
        except Exception as error:  # noqa: BLE001 - others wait until it expires
            _log.warning("lease not released, it will expire", error=str(error) or type(error).__name__)

    async def _try_once(self) -> bool:
        """Campaign or renew; return whether the API server answered."""
        try:
            async with asyncio.timeout(self._settings.retry):
                await self._acquire_or_renew()
        except Conflict:
            _log.debug("lease changed in between")
            self._held = None
        except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt follows
            log = _log.warning if self._reachable else _log.debug  # once per outage
            log("lease not reachable", error=str(error) or type(error).__name__)
            self._reachable = False
            return False
        if not self._reachable:
            _log.info("lease reachable again")
        self._reachable = True
        return True

    def _may_have_it(self) -> bool:
        """Return whether the lease as last seen is this replica's, or nobody's any more.

        Who waits for another's lease to expire has time. Who has lost its own in an outage keeps rollbacks waiting.
        """
        if self._last_seen is None:
            return False
        version, spec = self._last_seen
        return spec.get("holderIdentity") in (self._identity, "", None) or self._has_expired(version, spec)

    async def _acquire_or_renew(self) -> None:
        found = self._held if self._leads and self._held else await self._store.read()
        self._held = None
        self.answered = True
        if found is None:
            started = self._clock.monotonic()
            spec = self._spec(transitions=0, acquired=None)
            self._renewed(started, await self._store.create(spec), spec)
            return
        self._last_seen = version, present = found
        holder = present.get("holderIdentity") or ""
        transitions = int(present.get("leaseTransitions") or 0)
        if holder == self._identity:
            spec = self._spec(transitions, present.get("acquireTime"))
        else:
            if self._leads:
                self._step_down(f"taken over by {holder or 'nobody'}")
            if holder and not self._has_expired(version, present):
                return
            spec = self._spec(transitions + 1, acquired=None)
        started = self._clock.monotonic()
        self._renewed(started, await self._store.replace(version, spec), spec)

    def _has_expired(self, version: str, spec: dict[str, Any]) -> bool:
        """Return whether a foreign lease has stayed the same for longer than it lasts, as seen from here."""
        now = self._clock.monotonic()
        seen = (version, spec.get("holderIdentity"), spec.get("renewTime"))
        if seen != self._observed:
            self._observed, self._observed_at = seen, now
        lasts = float(spec.get("leaseDurationSeconds") or self._settings.duration)
        return now >= self._observed_at + lasts

    def _spec(self, transitions: int, acquired: str | None) -> dict[str, Any]:
        now = micro_time(self._clock.now())
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._settings.duration),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _renewed(self, started: float, version: str, spec: dict[str, Any]) -> None:
        self._held = self._last_seen = (version, spec)
        self._write_until = started + self._settings.renew_deadline
        if self._expiry is not None:
            self._expiry.cancel()
        delay = max(0.0, self._write_until - self._clock.monotonic())
        self._expiry = asyncio.get_running_loop().call_later(delay, self._step_down, "not renewed in time")
        if not self._leads:
            self._leads = True
            _log.info("leading", identity=self._identity)
            self._on_change(True)

    def _step_down(self, reason: str) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._write_until = 0.0
        if self._leads:
            self._leads = False
            log = _log.info if reason == RELEASED else _log.warning
            log("no longer leading", identity=self._identity, reason=reason)
            self._on_change(False)
