"""Free loopback ports that stay ours until the part that needs them listens.

Ports are taken below the ephemeral range, because a port inside it may be handed to any outgoing connection between
the moment it was found free and the moment it is bound. Between those moments the port is held by a socket that is
bound but does not listen: another lab's look sees it as taken, while the part itself, which sets ``SO_REUSEADDR`` or
``SO_REUSEPORT`` as servers do, can bind it. That also covers Envoy, two of which would otherwise share a port
silently.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable
from pathlib import Path

from lab.errors import LabError

LOOPBACK = "127.0.0.1"
LOWEST = 10_000
EPHEMERAL = 32_768


def port_range() -> range:
    """Ports to choose from: from 10000 up to where this machine's ephemeral range, or Linux's usual one, starts."""
    upper = EPHEMERAL
    with contextlib.suppress(OSError, ValueError, IndexError):
        upper = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    upper = min(upper, EPHEMERAL)
    # A machine whose ephemeral range starts very low leaves no choice but to share it.
    return range(LOWEST, upper if upper >= LOWEST + 1_000 else EPHEMERAL)


class Reservation:
    """Ports held for parts that do not listen yet.

    Args:
        host: address that the parts will listen on.
        candidates: ports to choose from; by default `port_range()`.
    """

    def __init__(self, host: str = LOOPBACK, candidates: Iterable[int] | None = None) -> None:
        self._host = host
        self._candidates = list(port_range() if candidates is None else candidates)
        random.shuffle(self._candidates)
        self._held: dict[int, socket.socket] = {}

    def take(self) -> int:
        """Choose a free port and hold it.

        Raises:
            LabError: every candidate is taken.
        """
        while self._candidates:
            port = self._candidates.pop()
            if self.hold(port):
                return port
        raise LabError(f"no free port left on {self._host} in {LOWEST}-{EPHEMERAL - 1}: end what listens there")

    def hold(self, port: int) -> bool:
        """Hold one given port; say whether it was free."""
        if port in self._held:
            return True
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            # Without SO_REUSEADDR, so that held, listening and lingering sockets all count as taken.
            probe.bind((self._host, port))
        except OSError:
            probe.close()
            return False
        # Set after binding: it changes nothing for us, but lets the part bind beside us.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held[port] = probe
        return True

    def release(self, ports: Iterable[int]) -> None:
        """Let go of ports, once their parts listen."""
        for port in list(ports):
            held = self._held.pop(port, None)
            if held is not None:
                held.close()

    def close(self) -> None:
        """Let go of everything."""
        self.release(list(self._held))
