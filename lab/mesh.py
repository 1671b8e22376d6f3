"""A whole lab: starts its parts in order, waits until each is really ready, and ends exactly what it started."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter

from lab import controlplane, istio, metrics, tools
from lab.errors import LabError, PartFailed
from lab.process import Guard, Processes
from lab.progress import Progress, duration
from lab.running import RunningLab
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


class Lab(RunningLab):
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
        super().__init__(name, {part.name: part for part in (*(p for n, p in PARTS.items() if n in wanted), *extra)})
        self.progress = progress or Progress()
        self.options = options or Options()
        self._lock = Lock(self.dir)
        self._guard: Guard | None = None

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
                self._check_same()
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

    def _is_up(self) -> bool:
        state = State.read(self.dir)
        return state is not None and state.complete and all(map(self.processes.alive, state.parts))

    def _check_same(self) -> None:
        state = State.read(self.dir)
        missing = [name for name in self.parts if state is None or name not in state.parts]
        if missing:
            raise LabError(
                f"the lab {self.name!r} is already up, but without {', '.join(missing)}; "
                f"end it with `{_command('down', self.name)}` first, or choose another name"
            )

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
        names = {"kubectl", "istio-crds.yaml", *(part.tool for part in self.parts.values() if part.tool)}
        return names | ({"kwok-stages.yaml"} if "kwok" in self.parts else set())

    def _clear_leftover(self) -> None:
        leftover = self.processes.names()
        if leftover:
            self.progress.say(f"Ending a leftover of the lab {self.name!r}: {', '.join(leftover)}")
            self.processes.stop_all(grace=2.0)
            self.restore_host()
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
        self.prepare_host()
        for wave in self._waves():
            state.parts += [part.name for part in wave]
            state.write(self.dir)
            self._start_wave(wave)
        if "envoy" in self.parts:
            self.wait_synced()
        state.complete = True
        state.write(self.dir)
        if standing:
            self._guard.dismiss()
            self._guard = None
        self._reservation.close()
        self.standing = standing
        self.progress.say(f"The lab {self.name!r} is up after {duration(time.monotonic() - started)}.")

    def prepare_host(self) -> None:
        """What must be there before any part starts; nothing for a lab without a node."""

    def restore_host(self) -> None:
        """Undo `prepare_host` once every part has ended; also after a crash, so it may be called more than once."""

    def _waves(self) -> list[list[Part]]:
        """Parts that may start together, in order: each wave needs the ones before it."""
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

    def _end(self) -> None:
        self.standing = False
        self.detach()
        _stop_backends_of(self.dir)
        # Their data is thrown away: nothing is lost by not waiting for the slow ones to end gracefully.
        self.processes.stop_all(grace=1.0)
        self.restore_host()
        self._reservation.close()
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        if self.dir.is_dir():
            for path in self.dir.iterdir():
                if path.name != "logs":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._site = None


def _command(what: str, name: str) -> str:
    return f"make lab-{what}" + ("" if name == "default" else f" LAB_NAME={name}")


def _stop_backends_of(directory: Path) -> None:
    for path in sorted((directory / "backends").glob("*/")):
        Processes(path).stop_all(grace=1.0)
