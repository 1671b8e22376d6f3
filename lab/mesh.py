"""A whole lab: starts its parts in order, waits until each is really ready, and ends exactly what it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from lab import controlplane, istio, metrics, probe, tools
from lab.backends import Backend, Backends
from lab.errors import LabError, PartFailed
from lab.kubectl import Kubectl
from lab.paths import run_dir
from lab.ports import Reservation
from lab.process import Guard, Processes
from lab.progress import Progress, duration
from lab.site import Options, Part, Site
from lab.state import Lock, State

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        controlplane.ETCD,
        metrics.PROMETHEUS,
        controlplane.APISERVER,
        controlplane.CONTROLLER_MANAGER,
        controlplane.SCHEDULER,
        controlplane.KWOK,
        istio.ISTIOD,
        istio.ENVOY,
    )
}
"""Every part the lab knows, in start order."""

CLUSTER = ("etcd", "kube-apiserver")
"""An API server alone, with Istio's resource definitions."""

MESH = (*CLUSTER, "istiod", "envoy", "prometheus")
"""What moves real requests: the default."""

_PORT_ATTEMPTS = 3
_DEFINITIONS_SECONDS = 30.0


class Lab:
    """A mesh on this machine: API server, istiod, an Envoy gateway, Prometheus. A context manager.

    Inside a ``with`` the lab ends with the block, and with the program, whatever way that goes. `up` instead starts a
    lab that stays until `down`, in this program or any other.

    Args:
        name: labs of different names run side by side.
        parts: names from `PARTS`; their order does not matter.
        progress: where to say what goes on.
        options: see `Options`.
        extra: further parts, started after the others.
    """

    kind = "none"
    """See `lab.kinds.Kind`; written to the state file, so that `down` knows what to tear down."""

    def __init__(
        self,
        name: str = "default",
        parts: Iterable[str] = MESH,
        *,
        progress: Progress | None = None,
        options: Options | None = None,
        extra: Sequence[Part] = (),
    ) -> None:
        wanted = set(parts)
        if unknown := wanted - PARTS.keys():
            raise LabError(f"the lab has no part {', '.join(sorted(unknown))}; it has: {', '.join(PARTS)}")
        self.name = name
        self.dir = run_dir(name)
        self.progress = progress or Progress()
        self.options = options or Options()
        self.parts = {part.name: part for part in (*(p for n, p in PARTS.items() if n in wanted), *extra)}
        self.processes = Processes(self.dir)
        self._lock = Lock(self.dir)
        self._guard: Guard | None = None
        self._reservation = Reservation()
        self._site: Site | None = None
        self._backends: Backends | None = None
        self.standing = False
        """Whether it outlives this program."""

    # --- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._lock.acquire()
            undo.callback(self._lock.release)
            if self._is_up():
                raise LabError(f"the lab {self.name!r} is already up; end it with `{_command('down', self.name)}`")
            self._start(standing=False)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._end()
        finally:
            self._lock.release()

    def up(self) -> bool:
        """Start a lab that stays; say whether it had to be started.

        Raises:
            LabError: it is in use by another program, or a part did not start.
        """
        self._lock.acquire()
        try:
            if self._is_up():
                self._take_over()
                return False
            self._start(standing=True)
            return True
        finally:
            self._lock.release()

    def down(self) -> list[str]:
        """End everything recorded under this name, whoever started it; names of what was still running.

        Raises:
            LabError: it is in use by another program.
        """
        self._lock.acquire()
        try:
            running = [name for name in self.processes.names() if self.processes.alive(name)]
            self._end()
            return running
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Delete what a lab that has ended left behind: its logs."""
        shutil.rmtree(self.dir, ignore_errors=True)
        self._lock.remove()

    @classmethod
    def attach(cls, name: str, progress: Progress | None = None) -> Self:
        """Use a lab that is up and leave it running; call `detach` at the end.

        Raises:
            LabError: no such lab is up.
            PartFailed: it was, but a part of it has died.
        """
        lab = cls(name, progress=progress)
        if not lab._is_up():
            lab.check_alive()
            raise LabError(f"no lab {name!r} is up; start it with `{_command('up', name)}`")
        lab._take_over()
        return lab

    def detach(self) -> None:
        """End the backends that this program started, and leave the lab itself running."""
        if self._backends is not None:
            self._backends.close()
            self._backends = None

    def _is_up(self) -> bool:
        state = State.read(self.dir)
        return state is not None and state.complete and all(map(self.processes.alive, state.parts))

    def _take_over(self) -> None:
        state = State.read(self.dir)
        assert state is not None
        self.options = TypeAdapter(Options).validate_python(state.options)
        known = PARTS | self.parts
        self.parts = {name: known[name] for name in state.parts if name in known}
        paths = {name: Path(path) for name, path in state.tools.items()}
        self._site = Site(self.dir, state.ports, paths, state.tokens, self.options)
        self.standing = True

    # --- starting --------------------------------------------------------------------------------------------------

    def _start(self, *, standing: bool) -> None:
        paths = tools.ensure(self._tools(), self.progress)
        self._clear_leftover()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._start_once(paths, standing=standing)
            except BaseException as error:
                self._end()
                if not (isinstance(error, PartFailed) and error.address_in_use and attempt < _PORT_ATTEMPTS):
                    raise
                self.progress.say(f"{error.part}: another process took its port; trying other ports")
            else:
                return

    def _tools(self) -> set[str]:
        names = {"kubectl", "istio-crds.yaml", *(part.tool for part in self.parts.values())}
        return names | ({"kwok-stages.yaml"} if "kwok" in self.parts else set())

    def _clear_leftover(self) -> None:
        leftover = self.processes.names()
        if leftover:
            self.progress.say(f"Ending a leftover of the lab {self.name!r}: {', '.join(leftover)}")
            self.processes.stop_all(grace=2.0)
        _stop_backends_of(self.dir)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _start_once(self, paths: Mapping[str, Path], *, standing: bool) -> None:
        started = time.monotonic()
        ports = {f"{p.name}.{name}": self._reservation.take() for p in self.parts.values() for name in p.listeners}
        tokens = controlplane.new_tokens(self.options.users)
        self._site = Site(self.dir, ports, paths, tokens, self.options)
        state = State(
            [], ports, {k: str(v) for k, v in paths.items()}, tokens, asdict(self.options), standing, self.kind
        )
        state.write(self.dir)
        self._guard = Guard(self.dir)
        for wave in self._waves():
            state.parts += [part.name for part in wave]
            state.write(self.dir)
            self._start_wave(wave)
        if "envoy" in self.parts:
            self.wait_synced(30)
        state.complete = True
        state.write(self.dir)
        if standing:
            self._guard.dismiss()
            self._guard = None
        self._reservation.close()
        self.standing = standing
        self.progress.say(f"The lab {self.name!r} is up after {duration(time.monotonic() - started)}.")

    def _waves(self) -> list[list[Part]]:
        """Parts that may start together, in order; what a wave leaves behind is done by `_after`."""
        order = (("etcd", "prometheus"), ("kube-apiserver",), ("kube-controller-manager", "kube-scheduler", "kwok"))
        waves = [
            [self.parts[name] for name in names if name in self.parts] for names in (*order, ("istiod",), ("envoy",))
        ]
        rest = [[part] for name, part in self.parts.items() if name not in PARTS]
        return [wave for wave in (*waves, *rest) if wave]

    def _start_wave(self, wave: list[Part]) -> None:
        with self.progress.working(f"starting {', '.join(part.name for part in wave)}"):
            for part in wave:
                self._spawn(part)
            for part in wave:
                self._wait_ready(part)
            if any(part.name == "kube-apiserver" for part in wave):
                self._prepare_cluster()

    def _prepare_cluster(self) -> None:
        self.kubectl("create", "-f", str(self.site.tools["istio-crds.yaml"]))
        deadline = time.monotonic() + _DEFINITIONS_SECONDS
        while missing := controlplane.waiting_for_definitions(self.site):
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"Istio's resource definitions are not served after {_DEFINITIONS_SECONDS} s: {missing}")
            time.sleep(0.05)
        self.namespace(istio.SYSTEM_NAMESPACE)
        if "envoy" in self.parts:
            self.apply(istio.gateway(self.site.ports["envoy.gateway"]), istio.telemetry())

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

    def _end(self) -> None:
        self.standing = False
        self.detach()
        _stop_backends_of(self.dir)
        # Their data is thrown away: nothing is lost by not waiting for the slow ones to end gracefully.
        self.processes.stop_all(grace=1.0)
        self._reservation.close()
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        if self.dir.is_dir():
            for path in self.dir.iterdir():
                if path.name != "logs":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._site = None

    # --- use -------------------------------------------------------------------------------------------------------

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

    def wait_synced(self, timeout: float = 10.0) -> None:
        """Wait until the gateway works with everything written so far.

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

    # --- parts -----------------------------------------------------------------------------------------------------

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


def _command(what: str, name: str) -> str:
    return f"make lab-{what}" + ("" if name == "default" else f" LAB_NAME={name}")


def _stop_backends_of(directory: Path) -> None:
    for path in sorted((directory / "backends").glob("*/")):
        Processes(path).stop_all(grace=1.0)
