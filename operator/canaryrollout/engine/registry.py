"""The rollouts this replica knows, and who claims which host.

Fed by the watch, by our own writes and by a periodic list. It tells what a change means for the queue: our own status
writes come back as watch events and mean nothing; a new generation, a command or a deletion means a pass at once.
A rollout at rest is kept as little more than its name: thousands of them should cost next to nothing, and a pass reads
the object anew anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.decision import Event
from canaryrollout.domain.observation import Claim, Identity
from canaryrollout.engine.leftovers import left_in_place
from canaryrollout.engine.ports import Rollout
from canaryrollout.engine.workqueue import Priority

HostOf = Callable[[Rollout], str | None]
"""Returns the fully qualified host of a rollout, or ``None`` where its spec cannot be read."""

_AT_REST = (Phase.STABLE, Phase.ROLLED_BACK)
_UNDER_WAY = (Phase.PREPARING, Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING, Phase.ROLLING_BACK)


def is_active(status: CanaryRolloutStatus) -> bool:
    """Return whether a rollout of this status holds its host: a change of version was begun and has not ended."""
    if status.phase is Phase.BLOCKED:
        return status.rollout is not None and status.rollout.ended_at is None
    return status.phase in _UNDER_WAY


def wants_attention(rollout: Rollout) -> bool:
    """Return whether there is something to do beyond looking now and then."""
    status = rollout.status
    wanted = rollout.spec.version if rollout.spec is not None else None
    handled = status.last_command.command if status.last_command else ""
    return (
        status.phase not in _AT_REST
        or status.observed_generation != rollout.identity.generation
        or rollout.identity.deleting
        or (status.phase is Phase.STABLE and wanted is not None and status.stable_version not in (None, wanted))
        or (rollout.identity.command != "" and rollout.identity.command != handled)
    )


def is_newer(version: str, known: str) -> bool:
    """Return whether a resourceVersion is not older than a known one; versions that are no numbers count as newer."""
    if version.isdecimal() and known.isdecimal():
        return int(version) >= int(known)
    return True


@dataclass(slots=True)
class Entry:
    """What is kept about one rollout; ``rollout`` is ``None`` while it is at rest."""

    identity: Identity
    resource_version: str
    host: str | None
    phase: Phase | None
    active: bool
    readable: bool
    left: Event | None
    rollout: Rollout | None
    mark: int


class Registry:
    """Known rollouts by key, and keys by host."""

    def __init__(self, host_of: HostOf) -> None:
        self._host_of = host_of
        self._entries: dict[str, Entry] = {}
        self._hosts: dict[str, set[str]] = {}
        self._mark = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Entry | None:
        """Return what is known about ``key``."""
        return self._entries.get(key)

    def entries(self) -> list[tuple[str, Entry]]:
        """Return all known rollouts by key."""
        return list(self._entries.items())

    def phases(self) -> Counter[str]:
        """Count rollouts by phase; one that has none yet counts as ``Unknown``."""
        return Counter(str(entry.phase or "Unknown") for entry in self._entries.values())

    def apply(self, rollout: Rollout) -> dict[str, Priority]:
        """Take a rollout in as read, and return which keys should be looked at because of it.

        An older state than the known one is ignored. A change of resourceVersion alone, such as the echo of our own
        status write, concerns nobody.
        """
        key = rollout.identity.key
        known = self._entries.get(key)
        if known and known.identity.uid == rollout.identity.uid:
            if not is_newer(rollout.resource_version, known.resource_version):
                known.mark = self._mark
                return {}
            if rollout.resource_version == known.resource_version:
                known.mark = self._mark
                return {}
        entry = self._entry(rollout)
        self._entries[key] = entry
        if entry.host is not None:
            self._hosts.setdefault(entry.host, set()).add(key)
        if known is not None and known.host is not None and known.host != entry.host:
            self._drop_host(known.host, key)
        return self._concerned(key, rollout, known, entry)

    def forget(self, key: str, uid: str | None = None) -> tuple[Entry | None, dict[str, Priority]]:
        """Drop a rollout that does not exist any more.

        Args:
            key: Its key.
            uid: When given, only an entry of this uid is dropped (a namesake may have been created since).

        Returns:
            The entry that was dropped, and the keys that should be looked at because of it.
        """
        entry = self._entries.get(key)
        if entry is None or (uid is not None and entry.identity.uid != uid):
            return None, {}
        del self._entries[key]
        if entry.host is None:
            return entry, {}
        self._drop_host(entry.host, key)
        return entry, dict.fromkeys(self._hosts.get(entry.host, ()), Priority.ROUTINE)

    def claims(self, key: str) -> tuple[Claim, ...]:
        """Return the other rollouts on the host of ``key``, oldest first."""
        entry = self._entries.get(key)
        if entry is None or entry.host is None:
            return ()
        others = ((other, self._entries[other]) for other in self._hosts.get(entry.host, ()) if other != key)
        claims = (Claim(other, e.identity.uid, e.identity.created_at, e.active) for other, e in others)
        return tuple(sorted(claims, key=lambda claim: (claim.created_at, claim.key)))

    def begin_sweep(self) -> int:
        """Start a mark-and-sweep: what is taken in from now on is marked; pass the result to `sweep`."""
        self._mark += 1
        return self._mark

    def unmarked(self, mark: int) -> tuple[str, ...]:
        """Return the keys that nobody has seen since `begin_sweep` gave ``mark``."""
        return tuple(key for key, entry in self._entries.items() if entry.mark < mark)

    def _entry(self, rollout: Rollout) -> Entry:
        return Entry(
            identity=rollout.identity,
            resource_version=rollout.resource_version,
            host=self._host_of(rollout),
            phase=rollout.status.phase,
            active=is_active(rollout.status),
            readable=rollout.spec is not None,
            left=left_in_place(rollout.status.changes),
            rollout=rollout if wants_attention(rollout) else None,
            mark=self._mark,
        )

    def _drop_host(self, host: str, key: str) -> None:
        keys = self._hosts.get(host, set())
        keys.discard(key)
        if not keys:
            self._hosts.pop(host, None)

    def _rivals(self, host: str | None, key: str) -> Iterable[str]:
        return (other for other in self._hosts.get(host or "", ()) if other != key)

    def _concerned(self, key: str, rollout: Rollout, known: Entry | None, entry: Entry) -> dict[str, Priority]:
        concerned: dict[str, Priority] = {}
        if known is None or known.host != entry.host or known.active != entry.active:
            concerned.update(dict.fromkeys(self._rivals(entry.host, key), Priority.ROUTINE))
        if known is not None and known.host != entry.host:
            concerned.update(dict.fromkeys(self._rivals(known.host, key), Priority.ROUTINE))
        if known is None or known.identity.uid != entry.identity.uid:
            if wants_attention(rollout):
                concerned[key] = Priority.URGENT
        elif known.identity != entry.identity or known.readable != entry.readable:
            concerned[key] = Priority.URGENT
        return concerned
