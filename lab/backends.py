"""Endpoints of services in the mesh: a process of the sample service each, and the WorkloadEntry that makes it known.

Pods are not needed for traffic: a Service picks WorkloadEntries up by their labels as it does Pods, and unlike an
EndpointSlice a WorkloadEntry may name a loopback address.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import requests

from lab import probe
from lab.errors import LabError, PartFailed
from lab.paths import REPO_DIR
from lab.ports import LOOPBACK, Reservation
from lab.process import Guard, Processes

if TYPE_CHECKING:
    from lab.running import RunningLab

SAMPLE_SERVICE = REPO_DIR / "examples" / "sample-service" / "app.py"
READY_SECONDS = 15.0


@dataclass
class Backend:
    """One running endpoint.

    Attributes:
        namespace: namespace of its WorkloadEntry.
        app: value of its ``app`` label.
        version: value of its ``version`` label, and what it answers in ``X-App-Version``.
        name: name of its WorkloadEntry and its process.
        url: where it listens.
    """

    namespace: str
    app: str
    version: str
    name: str
    url: str
    _owner: Backends = field(repr=False)

    @property
    def process(self) -> int | None:
        """Process id; None when it has ended."""
        return self._owner.processes.pid(self.name)

    def set_mode(
        self,
        *,
        error_rate: float = 0.0,
        latency_ms: float = 0.0,
        latency_rate: float = 1.0,
        unhealthy: bool = False,
        crash_after_requests: int | None = None,
    ) -> None:
        """Have it misbehave from now on; without arguments, have it behave.

        Args:
            error_rate: share of requests answered with status 500, 0 to 1.
            latency_ms: delay of slow requests, in milliseconds.
            latency_rate: share of requests that are slow, 0 to 1.
            unhealthy: whether ``/healthz`` fails.
            crash_after_requests: exit on the first request after so many answers.
        """
        mode: dict[str, Any] = {"errorRate": error_rate, "unhealthy": unhealthy}
        if latency_ms:
            mode |= {"latencyMs": latency_ms, "latencyRate": latency_rate}
        if crash_after_requests is not None:
            mode["crashAfterRequests"] = crash_after_requests
        with probe.session() as client:
            answer = client.post(f"{self.url}/admin/mode", json=mode, timeout=5)
        if answer.status_code >= requests.codes.bad_request:
            raise LabError(f"{self.name} refuses the mode {mode}: {answer.text.strip()}")

    def crash(self) -> None:
        """Have the process end at once while the mesh still sends to it, as a crashing Pod would."""
        self._owner.processes.stop([self.name], grace=0.0)

    def stop(self) -> None:
        """Take it out of the mesh, then end it, as an orderly scale-down would."""
        self.withdraw()
        self._owner.processes.stop([self.name], grace=2.0)

    def withdraw(self) -> None:
        """Delete its WorkloadEntry; the process goes on."""
        self._owner.lab.kubectl("delete", "workloadentry", self.name, "-n", self.namespace, "--ignore-not-found")

    def publish(self) -> None:
        """Write its WorkloadEntry (again)."""
        self._owner.lab.apply(workload_entry(self, int(self.url.rsplit(":", 1)[1])))


def workload_entry(backend: Backend, port: int) -> dict[str, Any]:
    """The WorkloadEntry of a backend; ``http`` is the name of the Service's port."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": backend.name, "namespace": backend.namespace},
        "spec": {
            "address": LOOPBACK,
            "ports": {"http": port},
            "labels": {"app": backend.app, "version": backend.version},
        },
    }


def service(namespace: str, name: str, *, port: int = 80, app: str | None = None) -> dict[str, Any]:
    """A Service over all versions of an app."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app or name}},
        "spec": {"selector": {"app": app or name}, "ports": [{"name": "http", "port": port, "targetPort": "http"}]},
    }


class Backends:
    """The backends that this program started; they end with it, whether or not the lab does.

    Args:
        lab: the mesh they are made known to.
    """

    def __init__(self, lab: RunningLab) -> None:
        self.lab = lab
        directory = lab.dir / "backends" / f"{os.getpid()}-{time.monotonic_ns()}"
        self.processes = Processes(directory, logs=lab.dir / "logs")
        self._guard = Guard(directory)
        self._ports = Reservation()
        self._started: list[Backend] = []

    def start(
        self, namespace: str, app: str, version: str, *, name: str = "", register: bool = True, **mode: Any
    ) -> Backend:
        """Start one endpoint of a version; call it again for a second one.

        Args:
            namespace: namespace of the WorkloadEntry; made when needed.
            app: label ``app``, by which the Service selects.
            version: label ``version``.
            name: of WorkloadEntry and process; ``<app>-<version>-<n>`` by default.
            register: whether to write the WorkloadEntry at once; else `Backend.publish` does it.
            mode: as for `Backend.set_mode`.

        Raises:
            PartFailed: the process died or was late.
        """
        name = name or self._free_name(app, version)
        port = self._ports.take()
        backend = Backend(namespace, app, version, name, f"http://{LOOPBACK}:{port}", self)
        command = [sys.executable, str(SAMPLE_SERVICE), "--version", version, "--host", LOOPBACK, "--port", str(port)]
        self._started.append(backend)
        self.processes.spawn(name, command, {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1"})
        self._wait_ready(backend)
        self._ports.release([port])
        if mode:
            backend.set_mode(**mode)
        if register:
            self.lab.namespace(namespace)
            backend.publish()
        return backend

    def _free_name(self, app: str, version: str) -> str:
        taken = set(self.processes.names())
        stem = f"{app}-{version}".lower().replace(".", "-")
        return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)

    def _wait_ready(self, backend: Backend) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while missing := probe.waiting_for(f"{backend.url}/healthz"):
            if not self.processes.alive(backend.name):
                raise PartFailed(backend.name, self.processes.obituary(backend.name, "died"))
            if time.monotonic() > deadline:
                raise PartFailed(backend.name, self.processes.obituary(backend.name, f"was not ready: {missing}"))
            time.sleep(0.02)

    def close(self) -> None:
        """End every backend; in a lab that lives on, take them out of the mesh first."""
        if self.lab.standing:
            for backend in self._started:
                backend.withdraw()
        self.processes.stop_all(grace=1.0)
        self._guard.dismiss()
        shutil.rmtree(self.processes.directory, ignore_errors=True)
        self._ports.close()
