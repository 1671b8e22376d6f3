"""What a part of the lab must know to start: directories, ports, tools and options, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.ports import LOOPBACK


@dataclass(frozen=True)
class Options:
    """What a lab may want otherwise than usual.

    Attributes:
        bind_address: where the API server listens.
        advertise_address: address that Pods reach the API server at; None leaves it out.
        apiserver_flags: further flags of kube-apiserver, after the lab's own, so that they win.
        controller_manager_flags: likewise for kube-controller-manager.
        kwok_manage_all_nodes: whether kwok plays kubelet for every Node, or only for those labelled ``type=kwok``.
        users: users beside ``admin`` that get a token, without any group. ``operator`` is bound to the chart's Role by
            whoever runs the operator; ``guest`` may do nothing until a test gives it a right in a namespace of its own.
    """

    bind_address: str = LOOPBACK
    advertise_address: str | None = None
    apiserver_flags: tuple[str, ...] = ("--endpoint-reconciler-type=none",)
    controller_manager_flags: tuple[str, ...] = ()
    kwok_manage_all_nodes: bool = True
    users: tuple[str, ...] = ("operator", "guest")


@dataclass(frozen=True)
class Site:
    """One lab's directories, ports, tools and options.

    Attributes:
        directory: state directory of the lab.
        ports: port by ``part.listener``, e.g. ``etcd.client``.
        tools: path by tool name.
        tokens: bearer token by user.
        options: see `Options`.
    """

    directory: Path
    ports: Mapping[str, int]
    tools: Mapping[str, Path]
    tokens: Mapping[str, str]
    options: Options = field(default_factory=Options)

    def data(self, name: str) -> Path:
        """A data directory, made when needed."""
        path = self.directory / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def address(self, listener: str) -> str:
        """``host:port`` of a listener on loopback."""
        return f"{LOOPBACK}:{self.ports[listener]}"

    @property
    def apiserver_url(self) -> str:
        """Base URL of the API server."""
        return f"https://{self.options.bind_address}:{self.ports['kube-apiserver.https']}"

    @property
    def apiserver_ca(self) -> Path:
        """Certificate that the API server made for itself; its own authority."""
        return self.directory / "certs" / "apiserver.crt"

    def kubeconfig(self, user: str = "admin") -> Path:
        """Path of a user's kubeconfig."""
        return self.directory / ("kubeconfig" if user == "admin" else f"kubeconfig-{user}")


@dataclass(frozen=True)
class Command:
    """How to start a process: arguments, and what to set in its environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One process of the lab.

    Attributes:
        name: as shown, recorded and logged.
        tool: the tool it runs; empty where ``command`` finds the program by itself.
        command: writes its configuration and says how to start it.
        waiting_for: what is still missing until it is ready, in words; empty when nothing is.
        listeners: names of the ports it needs; in `Site.ports` they are prefixed by the part's name and a dot.
        deadline: seconds until it must be ready.
        grace: seconds it is given to end by itself.
    """

    name: str
    tool: str
    command: Callable[[Site], Command]
    waiting_for: Callable[[Site], str]
    listeners: tuple[str, ...] = ()
    deadline: float = 60.0
    grace: float = 5.0
