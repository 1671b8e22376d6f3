"""A lab in use: addresses, kubectl, backends, outages. How it is started and ended is in `lab.mesh`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lab import istio, probe
from lab.backends import Backend, Backends
from lab.errors import LabError, PartFailed
from lab.kubectl import Kubectl
from lab.paths import run_dir
from lab.ports import Reservation
from lab.process import Processes
from lab.progress import duration
from lab.site import Part, Site


class RunningLab:
    """What can be done with a lab that is up.

    Args:
        name: its name.
        parts: its parts by name, in start order.

    Attributes:
        dir: state directory; logs are in ``logs`` below it.
        processes: its parts' processes.
        standing: whether it outlives this program.
    """

    def __init__(self, name: str, parts: dict[str, Part]) -> None:
        self.name = name
        self.parts = parts
        self.dir = run_dir(name)
        self.processes = Processes(self.dir)
        self.standing = False
        self._reservation = Reservation()
        self._site: Site | None = None
        self._backends: Backends | None = None

    @property
    def site(self) -> Site:
        """Directories, ports, tools and options of the running lab.

        Raises:
            LabError: it is not up.
        """
        if self._site is None:
            raise LabError(f"the lab {self.name!r} is not up")
        return self._site

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.site.kubeconfig()

    def kubeconfig_for(self, user: str) -> Path:
        """Kubeconfig of another user, who may do what Roles bound to that user name allow.

        Raises:
            LabError: the lab has no such user.
        """
        if user not in self.site.tokens:
            raise LabError(f"the lab has no user {user!r}; it has: {', '.join(self.site.tokens)} (see Options.users)")
        return self.site.kubeconfig(user)

    @property
    def gateway_url(self) -> str:
        """Where requests enter the mesh: the Istio Gateway ``istio-system/lab``."""
        return f"http://{self.site.address('envoy.gateway')}"

    @property
    def prometheus_url(self) -> str:
        """Base URL of Prometheus."""
        return f"http://{self.site.address('prometheus.http')}"

    @property
    def envoy_admin_url(self) -> str:
        """Base URL of the gateway's administration interface."""
        return f"http://{self.site.address('envoy.admin')}"

    @property
    def istiod_debug_url(self) -> str:
        """Base URL of istiod's debug endpoints (``/debug/syncz`` and others)."""
        return f"http://{self.site.address('istiod.http')}"

    @property
    def kubectl(self) -> Kubectl:
        """Kubectl as the administrator: ``lab.kubectl("get", "pods")``."""
        return Kubectl(self.site.tools["kubectl"], self.kubeconfig, self.dir)

    def kubectl_as(self, user: str) -> Kubectl:
        """Kubectl as another user."""
        return Kubectl(self.site.tools["kubectl"], self.kubeconfig_for(user), self.dir)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects, in the order given."""
        self.kubectl.apply(*objects)

    def apply_yaml(self, text: str) -> None:
        """Apply YAML documents."""
        self.kubectl("apply", "-f", "-", input=text)

    def namespace(self, name: str) -> None:
        """Have a namespace."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def backend(self, namespace: str, app: str, version: str, **options: Any) -> Backend:
        """Start one endpoint of a service; see `lab.backends.Backends.start`."""
        if self._backends is None:
            self._backends = Backends(self)
        return self._backends.start(namespace, app, version, **options)

    def wait_synced(self, timeout: float = 60.0) -> None:
        """Wait until the gateway works with everything written so far.

        Milliseconds, as a rule; an Envoy that has lost istiod for a while tries again after up to half a minute.

        istiod tells what each proxy acknowledged, but not whether it has heard of the latest write. So a marker is
        written last, and asked for through the gateway; then istiod must count nothing as sent and not acknowledged.

        Raises:
            PartFailed: a part has died.
            LabError: it did not happen within ``timeout`` seconds.
        """
        token = time.time_ns()
        self.apply(istio.sync_marker(str(token)))
        deadline = time.monotonic() + timeout
        while missing := self._waiting_for_sync(token):
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the gateway has not taken over the latest configuration after {timeout} s: {missing}")
            time.sleep(0.02)

    def _waiting_for_sync(self, token: int) -> str:
        seen, why_not = probe.number(self.gateway_url, headers={"Host": istio.SYNC_HOST})
        # A newer marker is another waiter's, and proves as much.
        if seen is None or seen < token:
            return why_not or f"it still answers the marker {seen}"
        return probe.unacknowledged(f"{self.istiod_debug_url}/debug/syncz")

    def detach(self) -> None:
        """End the backends that this program started, and leave the lab itself running."""
        if self._backends is not None:
            self._backends.close()
            self._backends = None

    def check_alive(self) -> None:
        """Raise if a part has died.

        Raises:
            PartFailed: naming it, with the end of its log.
        """
        for name in self.processes.names():
            if not self.processes.alive(name):
                raise PartFailed(name, self.processes.obituary(name, "has died"))

    def stop(self, part: str) -> None:
        """End one part, as an outage would; its ports stay reserved."""
        self.processes.stop([self._part(part).name], self._part(part).grace)
        for listener in self._part(part).listeners:
            self._reservation.hold(self.site.ports[f"{part}.{listener}"])

    def start(self, part: str) -> None:
        """Start a stopped part again, on the same ports and data, and wait until it is ready.

        Raises:
            PartFailed: it died or was late.
        """
        self._spawn(self._part(part))
        self._wait_ready(self._part(part))
        self._reservation.release(self.site.ports[f"{part}.{name}"] for name in self._part(part).listeners)

    def restart(self, part: str) -> None:
        """End one part and start it again."""
        self.stop(part)
        self.start(part)

    def _part(self, name: str) -> Part:
        if name not in self.parts:
            raise LabError(f"the lab {self.name!r} has no part {name!r}; it has: {', '.join(self.parts)}")
        return self.parts[name]

    def _spawn(self, part: Part) -> None:
        command = part.command(self.site)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.dir), **command.env}
        self.processes.spawn(part.name, command.argv, environment, cwd=self.dir)

    def _wait_ready(self, part: Part) -> None:
        deadline = time.monotonic() + part.deadline
        while missing := part.waiting_for(self.site):
            if not self.processes.alive(part.name):
                in_use = self.processes.address_in_use(part.name)
                raise PartFailed(part.name, self.processes.obituary(part.name, "died"), address_in_use=in_use)
            if time.monotonic() > deadline:
                what = f"was not ready after {duration(part.deadline)}: {missing}"
                raise PartFailed(part.name, self.processes.obituary(part.name, what))
            time.sleep(0.05)
