"""Several operators for one rollout, each behind a proxy of its own, elected by the usual times."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from lab.faultproxy import Entry, FaultProxy
from tests.cluster.program import Program
from tests.faults.audit import Audit, Write, terms
from tests.faults.cluster import ROLLOUTS
from tests.faults.life import NAME, Ground, Life, new_life

LEASES: Final = "apis/coordination.k8s.io/v1", "leases"
LEASE: Final = "canaryrollout"
_STARTING: Final = threading.Lock()
"""Teams start one after the other: that is what costs a processor, the rest of their lives is waiting."""


@dataclass(eq=False)
class Replica:
    """One operator of several."""

    name: str
    proxy: FaultProxy
    program: Program

    @property
    def pid(self) -> int:
        """Its process."""
        return self.program.process.pid

    def signal(self, number: signal.Signals) -> float:
        """Send it a signal, and return when."""
        self.program.process.send_signal(number)
        return time.time()

    def writes(self) -> list[Entry]:
        """What it wrote or tried to, Leases and Events left out."""
        entries = (entry for entry in self.proxy.entries() if entry.call.writes)
        return [entry for entry in entries if entry.call.resource not in ("leases", "events")]


@dataclass(eq=False)
class Team:
    """A life, and the replicas that look after it."""

    life: Life
    audit: Audit | None
    replicas: list[Replica]

    def writes(self) -> list[Write]:
        """What the API server says that replicas have written."""
        assert self.audit is not None, "the audit log is not on"
        return self.audit.writes(self.life.namespace)

    def named(self) -> str:
        """Whom the Lease names now; empty where nobody."""
        with suppress(AssertionError):  # there is no Lease yet
            lease = self.life.ground.cluster.get(LEASES, self.life.namespace, LEASE)
            return str(lease["spec"].get("holderIdentity") or "").partition("_")[0]
        return ""

    def leader(self) -> Replica:
        """Whom the Lease names; there has to be somebody."""
        self.life.until(self.named, "leader", 20)
        name = self.named()
        return next(replica for replica in self.replicas if replica.name == name)

    def others(self, leader: Replica) -> list[Replica]:
        """The rest."""
        return [replica for replica in self.replicas if replica is not leader]

    def successor(self, former: Replica, within: float = 30.0) -> Replica:
        """Wait until another replica leads."""
        self.life.until(lambda: self.named() not in ("", former.name), f"successor of {former.name}", within)
        return self.leader()

    def took_over(self, since: float) -> float:
        """Return how many seconds after a moment the next leader was."""
        return next(term.done for term in terms(self.writes()) if term.done > since) - since

    def approve(self, token: str) -> None:
        """Let the canary go on from a step that asks for it."""
        command = {"metadata": {"annotations": {"canaryrollout.io/command": f"approve/v2/{token}"}}}
        self.life.ground.cluster.merge(ROLLOUTS, self.life.namespace, NAME, command)


@contextmanager
def new_team(
    ground: Ground,
    audit: Audit | None = None,
    size: int = 2,
    lease: tuple[str, str, str] | None = None,
    environment: Callable[[str], dict[str, str]] = lambda _: {},
) -> Iterator[Team]:
    """Furnish a namespace, and start so many operators for it.

    Args:
        ground: What is shared.
        audit: The audit log of its API server, where it is on.
        size: How many.
        lease: Duration, deadline and period of the election in place of the usual ones.
        environment: Returns variables for a replica of a name.
    """
    times = zip(("leaseDuration", "renewDeadline", "retryPeriod"), lease or (), strict=False)
    with new_life(ground, elected=True, **dict(times)) as life:
        config, stack, credentials = life.configure(), life.stack, ground.lab.kubeconfig_for("operator")
        replicas: list[Replica] = []
        with _STARTING:
            for name in "abcdef"[:size]:
                proxy = life.proxy if not replicas else stack.enter_context(FaultProxy(credentials))
                kubeconfig = proxy.kubeconfig(config.with_name(f"kubeconfig-{name}"))
                program = stack.enter_context(
                    Program(kubeconfig, "--config", str(config), **environment(name), POD_NAME=name)
                )
                replicas.append(Replica(name, proxy, program))
            life.program = replicas[0].program
            for replica in replicas:
                replica.program.wait_ready()
        yield Team(life, audit, replicas)


def in_effect(life: Life, weight: int) -> Callable[[], bool]:
    """Return a condition: the canary has a weight, and requests to show for it."""

    def holds() -> bool:
        record = life.status.rollout
        return record is not None and record.weight == weight and record.in_effect_at is not None

    return holds
