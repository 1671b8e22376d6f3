"""The watch: kopf lists and follows CanaryRollouts, and everything it sees is handed to the engine.

This is the only module that knows kopf, and all that is used of it is ``on.event``: no timers, daemons, change
handlers, indexes, finalizers or peering, because they write to the objects, cost kilobytes each, or lose work after an
outage. The watch runs in a thread with an event loop of its own: kopf cancels what it finds in its loop when it ends,
and it ends for reasons that are no reason for the engine to. Then it is started again; what it missed meanwhile is
found by its next list and by the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import kopf
import structlog
from kubernetes.aio.client import Configuration

from canaryrollout.adapters.kube import log_in
from canaryrollout.adapters.rollouts import rollout_of
from canaryrollout.api.crd import GROUP, PLURAL, VERSION
from canaryrollout.engine.ports import Rollout

_log = structlog.get_logger(__name__)

_LONGEST_BACKOFF: Final = 30.0
_SETTLED: Final = 60.0
"""A watch that lasted this long (seconds) starts again at once when it ends."""


class Backoffs:
    """Delays between attempts of a request: doubling up to 30 s, jittered, and never exhausted.

    kopf gives up, and ends, when its delays are used up.
    """

    def __iter__(self) -> Iterator[float]:
        delay = 0.5
        while True:
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
            delay = min(_LONGEST_BACKOFF, delay * 2)


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings for nothing but watching."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = 600  # an int: it goes into the URL as it is
    settings.watching.client_timeout = 630
    settings.watching.connect_timeout = 5
    settings.watching.reconnect_backoff = 1.0
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    settings.watching.initial_streaming = False  # it loses objects when the first stream is cut
    settings.queueing.idle_timeout = 0.1
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = Backoffs()
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = None
    return settings


def kopf_registry(
    seen: Callable[[Rollout], None],
    vanished: Callable[[Rollout], None],
    kubeconfig: str | None,
    context: str | None,
) -> kopf.OperatorRegistry:
    """Return the handlers: one that logs in, and one for every event of every CanaryRollout."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo:
        return await connection(kubeconfig, context, trust_env=settings.networking.trust_env)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def on_event(event: kopf.RawEvent, **_: Any) -> None:
        rollout = rollout_of(event["object"])
        if event["type"] == "DELETED":
            vanished(rollout)
        else:
            seen(rollout)

    return registry


async def connection(kubeconfig: str | None, context: str | None, *, trust_env: bool = False) -> kopf.ConnectionInfo:
    """Return kopf's credentials, found in the same way as those of the operator's own client.

    Raises:
        ApiError: If there are none.
    """
    found = Configuration()
    await log_in(found, kubeconfig, context)
    scheme, _, token = str(found.api_key.get("BearerToken") or found.api_key.get("authorization") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert or None,
        insecure=not found.verify_ssl,
        scheme=scheme if token else None,
        token=token or None,
        certificate_path=found.cert_file or None,
        private_key_path=found.key_file or None,
        proxy_url=found.proxy or None,
        trust_env=trust_env,
    )


class Watch:
    """Runs kopf in a thread, starts it again when it ends, and hands what it sees to an event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seen: Callable[[Rollout], None],
        vanished: Callable[[Rollout], None],
        restarted: Callable[[], None],
        *,
        namespaces: tuple[str, ...] = (),
        kubeconfig: str | None = None,
        context: str | None = None,
    ) -> None:
        """Prepare a watch.

        Args:
            loop: Where the following are called.
            seen: Called with a rollout that exists, when it is listed, created or changed.
            vanished: Called with the last state of a rollout that was deleted.
            restarted: Called when the watch had ended and is about to be started again.
            namespaces: What to watch; everything when empty.
            kubeconfig: Path of a kubeconfig, see `KubeClient.connect`.
            context: Context of the kubeconfig.
        """
        self._restarted = restarted
        self._loop = loop
        self._namespaces = namespaces
        self._registry = kopf_registry(
            lambda rollout: self._hand_over(seen, rollout),
            lambda rollout: self._hand_over(vanished, rollout),
            kubeconfig,
            context,
        )
        self._stopping = threading.Event()
        self._end: Callable[[], object] | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Return whether the watch is up."""
        return self._ready.is_set() and self._thread.is_alive()

    async def stop(self, within: float = 8.0) -> None:
        """Stop watching; a watch that does not end within so many seconds is left to the end of the process."""
        self._stopping.set()
        if self._end is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended already
                self._end()
        await asyncio.to_thread(self._thread.join, within)

    def _hand_over(self, call: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _run(self) -> None:
        backoffs = iter(Backoffs())
        while not self._stopping.is_set():
            lasted = asyncio.run(self._watch())
            self._ready.clear()
            if self._stopping.is_set():
                return
            self._hand_over(self._restarted)
            if lasted > _SETTLED:
                backoffs = iter(Backoffs())
            self._stopping.wait(next(backoffs))

    async def _watch(self) -> float:
        """Watch until something ends it, and return for how many seconds."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        started = loop.time()
        self._end = partial(loop.call_soon_threadsafe, stop.set)
        if self._stopping.is_set():
            return 0.0
        scope: dict[str, Any] = {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        try:
            await kopf.operator(
                registry=self._registry,
                settings=kopf_settings(),
                stop_flag=stop,
                ready_flag=self._ready,
                **scope,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the watch starts again
            _log.warning("watch ended, starting it again", error=str(error) or type(error).__name__)
        else:
            if not self._stopping.is_set():
                _log.warning("watch ended, starting it again")
        return loop.time() - started
