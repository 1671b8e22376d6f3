"""The witness: every version of every object of the demo, with the time at which this program saw it.

It watches the API server as any client does and knows nothing of the operator. The API server keeps times of writes to
the second only, so times are those of this machine's clock when the change arrived, a few milliseconds after the write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import urllib3
from kubernetes import client, config
from kubernetes import watch as kubernetes_watch

ROLLOUT: Final = "CanaryRollout"
VIRTUAL_SERVICE: Final = "VirtualService"
DESTINATION_RULE: Final = "DestinationRule"
EVENT: Final = "Event"

WATCHED: Final[Mapping[str, tuple[str, str, str]]] = {
    ROLLOUT: ("canaryrollout.io", "v1alpha1", "canaryrollouts"),
    VIRTUAL_SERVICE: ("networking.istio.io", "v1", "virtualservices"),
    DESTINATION_RULE: ("networking.istio.io", "v1", "destinationrules"),
    EVENT: ("events.k8s.io", "v1", "events"),
}
"""Group, version and plural by kind."""

_RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Seen:
    """One version of one object.

    Attributes:
        at: When it was seen, in seconds since the epoch.
        kind: Its kind.
        name: Its name.
        version: Its resourceVersion. One etcd counts them, so they put the versions of all objects in order.
        document: The object.
    """

    at: float
    kind: str
    name: str
    version: int
    document: Mapping[str, Any]


class Witness:
    """Watches a namespace from ``with`` to the end of its block, or until `stop`.

    Args:
        kubeconfig: With which to ask the API server.
        namespace: What to watch.
        clock: Seconds since the epoch.
    """

    def __init__(self, kubeconfig: Path, namespace: str, clock: Callable[[], float] = time.time) -> None:
        self._api_client = config.new_client_from_config(str(kubeconfig))
        self._namespace = namespace
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._known: set[tuple[str, str, int]] = set()
        self._latest: dict[tuple[str, str], Seen] = {}
        self._listening = {kind: threading.Event() for kind in WATCHED}
        self.gaps: list[str] = []

    def __enter__(self) -> Self:
        for kind in WATCHED:
            threading.Thread(target=self._watch, args=(kind,), name=f"watch-{kind}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Note nothing more; the threads end with the API server, or with this program."""
        self._stopping.set()

    def wait_listening(self, timeout_seconds: float = 10.0) -> None:
        """Wait until every watch stands.

        Raises:
            TimeoutError: One does not.
        """
        for kind, listening in self._listening.items():
            if not listening.wait(timeout_seconds):
                raise TimeoutError(f"cannot watch {kind}: {'; '.join(self.gaps) or 'no answer'}")

    def seen(self) -> tuple[Seen, ...]:
        """Everything seen so far, in the order in which it was written."""
        with self._lock:
            return tuple(sorted(self._seen, key=lambda seen: seen.version))

    def latest(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """The newest version of an object; ``None`` where there is none."""
        with self._lock:
            found = self._latest.get((kind, name))
        return found.document if found else None

    def since(self, kind: str, count: int) -> tuple[Seen, ...]:
        """What was seen of a kind, without the first ``count``, in the order in which it was seen."""
        with self._lock:
            return tuple(seen for seen in self._seen if seen.kind == kind)[count:]

    def _watch(self, kind: str) -> None:
        while not self._stopping.is_set():
            try:
                for document in self._changes(kind):
                    self._note(kind, document)
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                if self._stopping.is_set():
                    return
                self.gaps.append(f"{time.strftime('%H:%M:%S')} watch of {kind}: {type(error).__name__}: {error}")
                self._stopping.wait(_RETRY_SECONDS)

    def _changes(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """Yield what is there, then every change, until the API server ends the watch."""
        group, version, plural = WATCHED[kind]
        place = (group, version, self._namespace, plural)
        api = client.CustomObjectsApi(self._api_client)
        listed: Any = api.list_namespaced_custom_object(*place)
        yield from listed["items"]
        stream = kubernetes_watch.Watch().stream(
            api.list_namespaced_custom_object, *place, resource_version=listed["metadata"]["resourceVersion"]
        )
        self._listening[kind].set()
        for event in stream:
            if self._stopping.is_set():
                return
            yield event["object"]

    def _note(self, kind: str, document: Mapping[str, Any]) -> None:
        now = self._clock()
        metadata = document["metadata"]
        seen = Seen(now, kind, metadata["name"], int(metadata["resourceVersion"]), document)
        key = (kind, seen.name, seen.version)
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
            self._seen.append(seen)
            self._latest[kind, seen.name] = seen
