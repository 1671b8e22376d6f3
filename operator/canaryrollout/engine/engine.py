"""Runs everything: takes in what the watch sees, and has rollouts looked at when there is a reason to.

All replicas take in and remember; only the one that leads works. A rollout at rest is looked at once per resync period,
at a moment that its uid decides, and costs nothing in between. Every few minutes the leader lists all rollouts, because
a watch can lose what vanished while it was disconnected.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.observation import Identity
from canaryrollout.engine.act import Executor
from canaryrollout.engine.core import Core
from canaryrollout.engine.observe import Observer
from canaryrollout.engine.ports import (
    Clock,
    EndpointSource,
    MetricsSource,
    Rollout,
    RolloutStore,
    TrafficRouter,
)
from canaryrollout.engine.registry import HostOf, Registry
from canaryrollout.engine.scheduler import Scheduler, next_turn
from canaryrollout.engine.settings import EngineSettings
from canaryrollout.engine.telemetry import Telemetry
from canaryrollout.engine.worker import Parts, Worker
from canaryrollout.engine.workqueue import Priority, WorkQueue

CLOCK_PERIOD = 1.0
"""How often the wall clock is compared with the monotonic one, in seconds."""
CLOCK_STEP = 1.0
"""What they may drift apart in that time; more is a clock that was set (seconds)."""

_log = structlog.get_logger(__name__)


class Leadership(Protocol):
    """Tells whether this replica may write."""

    def leads(self) -> bool:
        """Return whether this replica leads."""
        ...

    def permit(self) -> None:
        """Return if a write may be sent now; raise `NotLeading` otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside world of the engine."""

    store: RolloutStore
    router: TrafficRouter
    endpoints: EndpointSource
    metrics: MetricsSource
    clock: Clock


class Engine:
    """Takes rollouts in and works on them while this replica leads.

    All methods must be called from the event loop that runs `run`.
    """

    def __init__(
        self,
        ports: Ports,
        core: Core,
        host_of: HostOf,
        leadership: Callable[[], Leadership],
        settings: EngineSettings,
        telemetry: Telemetry,
    ) -> None:
        """Create an engine.

        Args:
            ports: The outside world.
            core: The functions that decide.
            host_of: Returns the fully qualified host of a rollout.
            leadership: Returns who tells whether this replica leads (an elector is told of changes by the engine's
                `lead`, so one of the two has to come first).
            settings: Times and sizes.
            telemetry: Receives figures.
        """
        self._ports = ports
        self._settings = settings
        self._telemetry = telemetry
        self._leadership = leadership
        self._registry = Registry(host_of)
        self._queue = WorkQueue(ports.clock, settings.share)
        self._scheduler = Scheduler(ports.clock, self._on_due)
        self._sweep_now = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        observer = Observer(
            ports.router, ports.endpoints, ports.metrics, self._registry, ports.clock, settings.read_timeout
        )
        self._executor = Executor(ports.store, ports.router, lambda: leadership().permit(), settings.write_timeout)
        self._worker = Worker(
            Parts(
                core=core,
                clock=ports.clock,
                store=ports.store,
                observer=observer,
                executor=self._executor,
                registry=self._registry,
                queue=self._queue,
                scheduler=self._scheduler,
                telemetry=telemetry,
                leads=lambda: leadership().leads(),
                background=self._spawn,
            ),
            settings,
        )

    def seen(self, rollout: Rollout) -> None:
        """Take in a rollout that the watch has seen."""
        self._enqueue(self._registry.apply(rollout))
        key = rollout.identity.key
        if self._leads() and self._scheduler.due(key) is None and key in self._registry:
            self._scheduler.no_later_than(key, self._turn(rollout.identity))

    def vanished(self, rollout: Rollout) -> None:
        """Take in that the watch has seen a rollout deleted."""
        self._registry.apply(rollout)  # the last state tells best what stays behind
        self._forget(rollout.identity.key, rollout.identity.uid)
        self._registry.bury(rollout.identity.uid)

    def lead(self, leads: bool) -> None:
        """Start or stop working, as the election says."""
        self._telemetry.leading(leads)
        if not leads:
            self._scheduler.clear()
            self._worker.follow()
            return
        self._sweep_now.set()
        for key, entry in self._registry.entries():
            if entry.rollout is not None:
                self._queue.add(key, Priority.URGENT)
            else:
                self._scheduler.no_later_than(key, self._turn(entry.identity))

    def use(self, core: Core) -> None:
        """Decide by other functions from now on, and look at every rollout that is not at rest: it may be concerned."""
        self._worker.use(core)
        self._enqueue(dict.fromkeys(self._under_way(), Priority.ROUTINE))

    def resweep(self) -> None:
        """Have all rollouts listed soon, because the watch may have missed something."""
        self._sweep_now.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then let passes under way end.

        Raises:
            RuntimeError: If a part of the engine has ended by itself, which is a defect.
        """
        self._tasks = [
            asyncio.create_task(self._worker.run(), name=f"worker-{n}") for n in range(self._settings.workers)
        ]
        self._tasks.append(asyncio.create_task(self._watch_clock(), name="clock"))
        self._tasks.append(asyncio.create_task(self._sweep_regularly(), name="sweep"))
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([*self._tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                ended = next(task for task in self._tasks if task.done())
                raise RuntimeError(f"{ended.get_name()} has ended by itself") from _error_of(ended)
        finally:
            stopping.cancel()
            await self._stop()

    def stuck(self) -> str:
        """Return why the engine does not get on with its work; empty while it does."""
        if any(task.done() for task in self._tasks):
            return "a part of the engine has ended by itself"
        stalled = self._queue.stalled()
        if self._leads() and stalled > self._settings.stuck_after:
            return f"rollouts wait, and no worker has taken one for {stalled:.0f} s"
        return ""

    def queue_depth(self) -> int:
        """Return how many rollouts wait for a worker."""
        return len(self._queue)

    def phases(self) -> Counter[str]:
        """Count known rollouts by phase."""
        return self._registry.phases()

    async def sweep(self) -> None:
        """List all rollouts: take in what the watch has missed, and forget what has vanished.

        Raises:
            Exception: Whatever the store raises; nothing is forgotten then.
        """
        mark = self._registry.begin_sweep()
        async for rollout in self._ports.store.list():
            self.seen(rollout)
        for key in self._registry.unmarked(mark):
            _log.info("rollout vanished unseen", rollout=key)
            self._forget(key, None)

    async def _sweep_regularly(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            timer = loop.call_later(self._settings.sweep, self._sweep_now.set)
            await self._sweep_now.wait()
            timer.cancel()
            self._sweep_now.clear()
            if not self._leads():
                continue
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - the next one follows
                _log.warning("rollouts could not be listed", error=str(error) or type(error).__name__)
                self._telemetry.sweep_done(succeeded=False)
            else:
                self._telemetry.sweep_done(succeeded=True)

    async def _watch_clock(self) -> None:
        """Look at what is under way again once the wall clock was set: what is due was reckoned by another time."""
        clock = self._ports.clock
        offset = clock.now().timestamp() - clock.monotonic()
        while True:
            await asyncio.sleep(CLOCK_PERIOD)
            before, offset = offset, clock.now().timestamp() - clock.monotonic()
            if abs(offset - before) >= CLOCK_STEP:
                _log.warning("the clock was set", seconds=round(offset - before))
                self._enqueue(dict.fromkeys(self._under_way(), Priority.ROUTINE))

    def _under_way(self) -> list[str]:
        return [key for key, entry in self._registry.entries() if entry.rollout is not None]

    async def _stop(self) -> None:
        self._scheduler.clear()
        self._queue.close()
        endless = [self._tasks.pop(), self._tasks.pop()]
        for task in endless:
            task.cancel()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.stop_grace
        pending = self._unfinished()
        while pending and loop.time() < end:  # a pass that ends begins to tell what it did
            await asyncio.wait(pending, timeout=end - loop.time())
            pending = self._unfinished()
        for task in pending:
            task.cancel()
        await asyncio.gather(*endless, *pending, return_exceptions=True)
        self._tasks = []

    def _unfinished(self) -> list[asyncio.Task[None]]:
        return [task for task in (*self._tasks, *self._background) if not task.done()]

    def _leads(self) -> bool:
        return self._leadership().leads()

    def _on_due(self, key: str, lag: float) -> None:
        self._telemetry.schedule_lag(lag)
        self._queue.add(key)

    def _enqueue(self, keys: dict[str, Priority]) -> None:
        if self._leads():
            for key, priority in keys.items():
                self._queue.add(key, priority)

    def _turn(self, identity: Identity) -> float:
        """Return when (monotonic) a rollout is due if nothing happens."""
        wall = self._ports.clock.now().timestamp()
        return self._ports.clock.monotonic() + next_turn(wall, self._settings.resync, identity.uid) - wall

    def _forget(self, key: str, uid: str | None) -> None:
        entry, concerned = self._registry.forget(key, uid)
        self._enqueue(concerned)
        if entry is None:
            return
        self._worker.forget(key)
        self._scheduler.cancel(key)
        self._queue.discard(key)
        if entry.left is not None and self._leads():
            gone = Rollout(entry.identity, entry.resource_version, spec=None, status=CanaryRolloutStatus())
            self._spawn(self._executor.tell(gone, (entry.left,)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception()
