"""The rollouts this replica knows, and who judges which host.

Fed by the watch, by our own writes and by a periodic list. It tells what a change means for the queue: our own status
writes come back as watch events and mean nothing; a new generation, a command or a deletion means a pass at once.
A rollout at rest is kept as little more than its name: thousands of them should cost next to nothing, and a pass reads
the object anew anyway. Of several on one host all but the one that judges it wait for their turn: they are told when
that is another, and nothing else of it, or many on one host would keep each other awake. One whose spec is not followed
stands for no host: whoever wrote it, in whatever namespace, must not be able to keep others waiting by a mistake. And
what is gone stays gone: the answer to our last write may come in after the watch has told that the object was deleted.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from canaryrollout.api.status import CanaryRolloutStatus, Phase
from canaryrollout.domain.decision import Event
from canaryrollout.domain.observation import Claim, Identity
from canaryrollout.engine.leftovers import left_in_place
from canaryrollout.engine.ports import Rollout
from canaryrollout.engine.workqueue import Priority

REMEMBERED: Final = 4096
"""So many objects that are gone are told from new ones; what is late about them comes in within seconds."""

HostOf = Callable[[Rollout], str | None]
"""Returns the fully qualified host of a rollout, or ``None`` where its spec cannot be read."""

_AT_REST = (Phase.STABLE, Phase.ROLLED_BACK)
_UNDER_WAY = (Phase.PREPARING, Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING, Phase.ROLLING_BACK)


def is_active(status: CanaryRolloutStatus) -> bool:
    """Return whether a rollout of this status holds its host: a change of version was begun and has not ended."""
    if status.phase is Phase.BLOCKED:
        return status.rollout is not None and status.rollout.ended_at is None
    return status.phase in _UNDER_WAY


def is_followed(rollout: Rollout) -> bool:
    """Return whether a spec is followed: one with problems is only while it tells which traffic to take back."""
    if rollout.spec is None:
        return False
    return not rollout.problems or is_active(rollout.status) or rollout.identity.deleting


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
        self._judges: dict[str, str] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
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

        An older state than the known one is ignored, and any of an object that is gone. A change of resourceVersion
        alone, such as the echo of our own status write, concerns nobody.
        """
        if rollout.identity.uid in self._gone:
            return {}
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
        concerned: dict[str, Priority] = {}
        if known is not None and known.host is not None and known.host != entry.host:
            concerned |= self._leave(known.host, key)
        if entry.host is not None:
            concerned |= self._stand(entry.host, key)
        return concerned | self._itself(key, rollout, known, entry)

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
        return entry, self._leave(entry.host, key)

    def bury(self, uid: str) -> None:
        """Take in no more of an object that was seen deleted; one that was not found may be there again."""
        self._gone[uid] = None
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def claims(self, key: str) -> tuple[Claim, ...]:
        """Return the claim of the rollout that judges the host of ``key``, unless that is ``key`` itself."""
        entry = self._entries.get(key)
        judge = self._judges.get(entry.host) if entry is not None and entry.host is not None else None
        return () if judge in (None, key) else (self._claim(judge),)

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
            host=self._host_of(rollout) if is_followed(rollout) else None,
            phase=rollout.status.phase,
            active=is_active(rollout.status),
            readable=rollout.spec is not None,
            left=left_in_place(rollout.status.changes),
            rollout=rollout if wants_attention(rollout) else None,
            mark=self._mark,
        )

    def _claim(self, key: str) -> Claim:
        entry = self._entries[key]
        return Claim(key, entry.identity.uid, entry.identity.created_at, entry.active)

    def _stand(self, host: str, key: str) -> dict[str, Priority]:
        """Let a rollout stand for a host as it is now, and return whom it concerns."""
        self._hosts.setdefault(host, set()).add(key)
        judge = self._judges.get(host)
        if judge == key:
            return self._appoint(host, key)  # which may have come to rank behind another
        if judge is None or self._claim(key).rank < self._claim(judge).rank:
            self._judges[host] = key
            return self._others(host, key)
        return {}

    def _leave(self, host: str, key: str) -> dict[str, Priority]:
        """Take a rollout off a host, and return whom that concerns."""
        keys = self._hosts.get(host, set())
        keys.discard(key)
        if not keys:
            self._hosts.pop(host, None)
            self._judges.pop(host, None)
            return {}
        return self._appoint(host, key) if self._judges.get(host) == key else {}

    def _appoint(self, host: str, before: str) -> dict[str, Priority]:
        """Find out anew who judges a host, and return whom it concerns that it is another than before."""
        judge = min(self._hosts[host], key=lambda key: self._claim(key).rank)
        self._judges[host] = judge
        return self._others(host, before) if judge != before else {}

    def _others(self, host: str, key: str) -> dict[str, Priority]:
        return dict.fromkeys((other for other in self._hosts[host] if other != key), Priority.ROUTINE)

    @staticmethod
    def _itself(key: str, rollout: Rollout, known: Entry | None, entry: Entry) -> dict[str, Priority]:
        if known is None or known.identity.uid != entry.identity.uid:
            return {key: Priority.URGENT} if wants_attention(rollout) else {}
        changed = known.identity != entry.identity or known.readable != entry.readable
        return {key: Priority.URGENT} if changed else {}
