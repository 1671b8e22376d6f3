"""The API server as a test sees it: a client, and a witness of every version of every object that matters.

Both go straight to the API server, past every proxy, so that what they see is what is there.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import requests

from lab.mesh import Lab

ROLLOUTS: Final = "apis/canaryrollout.io/v1alpha1", "canaryrollouts"
VIRTUAL_SERVICES: Final = "apis/networking.istio.io/v1", "virtualservices"
DESTINATION_RULES: Final = "apis/networking.istio.io/v1", "destinationrules"
WORKLOAD_ENTRIES: Final = "apis/networking.istio.io/v1", "workloadentries"
SERVICES: Final = "api/v1", "services"
WATCHED: Final = (ROLLOUTS, VIRTUAL_SERVICES, DESTINATION_RULES)

Kind = tuple[str, str]
Document = Mapping[str, Any]


class Cluster:
    """A client of the lab's API server, as its administrator; may be used from any thread."""

    def __init__(self, lab: Lab) -> None:
        self._url = lab.site.apiserver_url
        self._verify = str(lab.site.apiserver_ca)
        self._headers = {"Authorization": f"Bearer {lab.site.tokens['admin']}"}
        self._sessions = threading.local()

    def namespace(self, name: str) -> None:
        """Create a namespace."""
        self._ask("POST", "api/v1/namespaces", json={"metadata": {"name": name}})

    def create(self, kind: Kind, namespace: str, document: Document) -> None:
        """Create an object."""
        self._ask("POST", self._path(kind, namespace), json=document)

    def merge(self, kind: Kind, namespace: str, name: str, patch: Document, manager: str = "") -> None:
        """Change an object (`kubectl patch --type=merge`), as a field manager of some name."""
        headers = {"Content-Type": "application/merge-patch+json"}
        query = {"fieldManager": manager} if manager else {}
        url = f"{self._path(kind, namespace)}/{name}"
        self._ask("PATCH", url, data=json.dumps(patch), headers=headers, params=query)

    def replace(self, kind: Kind, namespace: str, name: str, field: str, value: Any) -> None:
        """Put another value into the place of a top-level field; nulls in it stay what they are."""
        headers = {"Content-Type": "application/json-patch+json"}
        change = [{"op": "add", "path": f"/{field}", "value": value}]
        self._ask("PATCH", f"{self._path(kind, namespace)}/{name}", data=json.dumps(change), headers=headers)

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete an object."""
        self._ask("DELETE", f"{self._path(kind, namespace)}/{name}")

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        """Read an object."""
        found: dict[str, Any] = self._ask("GET", f"{self._path(kind, namespace)}/{name}").json()
        return found

    def list(self, kind: Kind) -> dict[str, Any]:
        """Read all objects of a kind, with the list's resourceVersion."""
        found: dict[str, Any] = self._ask("GET", "/".join(kind)).json()
        return found

    def watch(self, kind: Kind, version: str) -> requests.Response:
        """Begin to follow all objects of a kind; the answer's lines are events."""
        query = {"watch": "true", "resourceVersion": version}
        return self._ask("GET", "/".join(kind), params=query, stream=True, timeout=(5, None))

    def _path(self, kind: Kind, namespace: str) -> str:
        return f"{kind[0]}/namespaces/{namespace}/{kind[1]}"

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
            session.trust_env = False
        options["headers"] = self._headers | options.get("headers", {})
        options.setdefault("timeout", 10)
        answer = session.request(method, f"{self._url}/{path}", verify=self._verify, **options)
        if not answer.ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer


@dataclass(frozen=True, slots=True)
class Seen:
    """One version of one object: when it was seen (seconds since the epoch), and its place in the order of writes."""

    at: float
    version: int
    document: Document


class Witness:
    """Follows all rollouts, VirtualServices and DestinationRules until the API server ends.

    Args:
        cluster: The API server.
        on_change: Called with kind and object for every change, in the thread of the kind's watch.
    """

    def __init__(self, cluster: Cluster, on_change: Callable[[Kind, Document], None]) -> None:
        self._cluster = cluster
        self._on_change = on_change
        self._lock = threading.Lock()
        self._seen: dict[tuple[Kind, str, str], list[Seen]] = {}
        self._stopping = False
        listening = [threading.Event() for _ in WATCHED]
        for kind, ready in zip(WATCHED, listening, strict=True):
            threading.Thread(target=self._follow, args=(kind, ready), daemon=True).start()
        for ready in listening:
            assert ready.wait(10), "the API server cannot be watched"

    def stop(self) -> None:
        """Do not come back when a watch ends."""
        self._stopping = True

    def seen(self, kind: Kind, namespace: str, name: str) -> list[Seen]:
        """Every version of an object, in the order of writes."""
        with self._lock:
            return sorted(self._seen.get((kind, namespace, name), ()), key=lambda seen: seen.version)

    def latest(self, kind: Kind, namespace: str, name: str) -> Document:
        """The newest version of an object; empty where there is none."""
        found = self.seen(kind, namespace, name)
        return found[-1].document if found else {}

    def _follow(self, kind: Kind, ready: threading.Event) -> None:
        while not self._stopping:
            try:
                listed = self._cluster.list(kind)
                for item in listed["items"]:
                    self._note(kind, item)
                with self._cluster.watch(kind, listed["metadata"]["resourceVersion"]) as stream:
                    ready.set()
                    for line in stream.iter_lines(chunk_size=None):
                        event = json.loads(line)
                        if event["type"] in ("ADDED", "MODIFIED"):
                            self._note(kind, event["object"])
            except (requests.RequestException, AssertionError):
                time.sleep(0.1)

    def _note(self, kind: Kind, document: Document) -> None:
        metadata = document["metadata"]
        seen = Seen(time.time(), int(metadata["resourceVersion"]), document)
        with self._lock:
            known = self._seen.setdefault((kind, metadata["namespace"], metadata["name"]), [])
            if any(other.version == seen.version for other in known):
                return
            known.append(seen)
        self._on_change(kind, document)
