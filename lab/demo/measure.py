"""From notes to facts: what the witness saw and what the load generator kept, put together. Pure functions only."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nextafter
from typing import Any, Final

import yaml

from canaryrollout.adapters.istio_patch import undo, without_server_fields
from canaryrollout.adapters.istio_read import read_virtual_service
from canaryrollout.api.resource import read_status
from canaryrollout.api.status import CanaryRolloutStatus, Change, Phase, RolloutRecord
from canaryrollout.domain.observation import Weights
from lab.demo.facts import BreachFacts, Failures, ObjectFacts, Outcome, RequestFacts, StepFacts, UndoFacts
from lab.demo.watch import DESTINATION_RULE, ROLLOUT, VIRTUAL_SERVICE, Seen
from lab.loadreport import Record

MESH_KINDS: Final = (VIRTUAL_SERVICE, DESTINATION_RULE)
SHOWN_LINES: Final = 20
"""Lines of a difference that are kept."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the canary's weight stands.

    Attributes:
        host: Fully qualified host.
        routes: Managed routes by VirtualService; none listed where the only route is meant.
    """

    host: str
    routes: Mapping[str, tuple[str, ...]]

    def weight(self, document: Mapping[str, Any], subset: str) -> int | None:
        """The weight of a subset on the managed routes of a VirtualService; ``None`` where they differ or lack."""
        routes = self.routes[document["metadata"]["name"]]
        state = read_virtual_service(document, routes, self.host, manager="canaryrollout")
        weights = {
            sum(d.weight for d in route.destinations if d.subset == subset) if isinstance(route, Weights) else None
            for route in state.routes.values()
        }
        return weights.pop() if len(weights) == 1 else None


def status_of(document: Mapping[str, Any] | None) -> CanaryRolloutStatus:
    """The status of a CanaryRollout; empty where there is none."""
    return read_status((document or {}).get("status"))[0]


def outcome_of(document: Mapping[str, Any] | None, canary: str) -> Outcome:
    """How a rollout stands: promoted and taken back only once everything is cleaned up and at rest."""
    status = status_of(document)
    if status.phase is Phase.STABLE and status.stable_version == canary and status.rollout is None:
        return Outcome.PROMOTED
    if status.phase is Phase.ROLLED_BACK and status.canary_version == canary:
        return Outcome.TAKEN_BACK
    return Outcome.UNFINISHED


def timeline(seen: Iterable[Seen], routing: Routing, subset: str) -> Iterator[tuple[float, dict[str, int | None]]]:
    """Yield each change of a subset's weight: when, and its weight on every VirtualService from then on."""
    weights: dict[str, int | None] = {}
    for each in seen:
        if each.kind == VIRTUAL_SERVICE and each.name in routing.routes:
            weight = routing.weight(each.document, subset)
            if each.name not in weights or weights[each.name] != weight:
                weights = {**weights, each.name: weight}
                if len(weights) == len(routing.routes):
                    yield each.at, weights


def steps_of(
    seen: Sequence[Seen], routing: Routing, canary: str, ended_at: float, records: Iterable[Record]
) -> tuple[StepFacts, ...]:
    """Tell the canary's weights apart, and count the requests of each while it was in effect.

    Args:
        seen: Everything seen from the beginning of the demo to the end of this rollout.
        routing: Where the weights stand.
        canary: Version of the canary.
        ended_at: When the rollout came to rest.
        records: The requests; all of those sent before ``ended_at`` must be among them.
    """
    statuses = _statuses(seen, canary)
    in_effect = _in_effect(statuses)
    decided = _decided(statuses)
    changes = list(timeline(seen, routing, _subset(seen, canary)))
    records = tuple(records)
    steps: list[StepFacts] = []
    for number, (at, weights) in enumerate(changes):
        weight = next(iter(weights.values()))
        if set(weights.values()) != {weight} or not weight:
            continue
        written = changes[number + 1][0] if number + 1 < len(changes) else ended_at
        # The witness may hear of a write late; whoever writes it decides before.
        until = min((each for each in decided if at < each < written), default=written)
        since = in_effect.get(weight)
        if since is None and not steps and statuses[-1:] and statuses[-1][1].reason:  # taken back
            since = _first_answer(records, canary, until)
        steps.append(_step(weight, at, since, until, canary, records))
    return tuple(steps)


def _step(
    weight: int, at: float, in_effect_at: float | None, until: float, canary: str, records: Iterable[Record]
) -> StepFacts:
    counts: Counter[str] = Counter()
    if in_effect_at is not None:
        counts.update(r.version for r in records if in_effect_at <= r.sent < until and r.version is not None)
    return StepFacts(weight, at, in_effect_at, until, counts.total(), counts[canary])


def _statuses(seen: Iterable[Seen], canary: str) -> list[tuple[CanaryRolloutStatus, RolloutRecord]]:
    """What status said while it spoke of a canary, oldest first."""
    statuses = [status_of(each.document) for each in seen if each.kind == ROLLOUT]
    return [(s, s.rollout) for s in statuses if s.rollout is not None and s.rollout.version == canary]


def _in_effect(statuses: Iterable[tuple[CanaryRolloutStatus, RolloutRecord]]) -> dict[int, float]:
    """Since when each weight was in effect, as status said last."""
    return {record.weight: record.in_effect_at.timestamp() for _, record in statuses if record.in_effect_at is not None}


def _decided(statuses: Iterable[tuple[CanaryRolloutStatus, RolloutRecord]]) -> frozenset[float]:
    """When another weight of the canary was about to be written: a raise, or its way back."""
    found = set()
    for status, record in statuses:
        if record.target is not None:
            found.add(record.target.set_at.timestamp())
        if record.reason:
            found |= {entry.time.timestamp() for entry in status.history if entry.reason == record.reason}
    return frozenset(found)


def _first_answer(records: Iterable[Record], canary: str, until: float) -> float | None:
    """Just after the canary's first request was sent: it had none before, so its weight had come into effect."""
    first = min((record.sent for record in records if record.version == canary and record.sent < until), default=None)
    return None if first is None else nextafter(first, inf)


def _subset(seen: Iterable[Seen], version: str) -> str:
    names = [status_of(each.document).subsets.get(version) for each in seen if each.kind == ROLLOUT]
    return next((name for name in reversed(names) if name), version)


def breach_of(seen: Sequence[Seen], routing: Routing, canary: str, visible: tuple[float, str] | None) -> BreachFacts:
    """Tell how long the way back took: ``visible`` is when Fail was first seen, and what the gate said."""
    zero_at = None
    raised = False
    for at, weights in timeline(seen, routing, _subset(seen, canary)):
        raised = raised or any(weights.values())
        at_zero = raised and set(weights.values()) == {0}
        zero_at = (zero_at or at) if at_zero else None
    visible_at, message = visible or (None, "")
    return BreachFacts(visible_at, message, zero_at)


def requests_of(records: Iterable[Record], faulty: frozenset[str]) -> RequestFacts:
    """Sort requests by what became of them; 500s of ``faulty`` versions are the injected fault."""
    sent = injected = 0
    lost: Counter[tuple[str | None, int, str, str]] = Counter()
    failed: Counter[tuple[str | None, int, str, str]] = Counter()
    for record in records:
        sent += 1
        if record.version is None:
            lost[record.version, record.status, record.reason, record.flags] += 1
        elif record.status == 500 and record.version in faulty:
            injected += 1
        elif record.status != 200:
            failed[record.version, record.status, record.reason, record.flags] += 1
    return RequestFacts(sent, injected, _failures(lost), _failures(failed))


def _failures(counts: Counter[tuple[str | None, int, str, str]]) -> tuple[Failures, ...]:
    return tuple(Failures(count, *key) for key, count in counts.most_common())


def originals_of(seen: Iterable[Seen]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The mesh objects as their author wrote them, by kind and name: the first version of each."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for each in seen:
        if each.kind in MESH_KINDS:
            found.setdefault((each.kind, each.name), each.document)
    return found


def objects_of(
    seen: Sequence[Seen], originals: Mapping[tuple[str, str], Mapping[str, Any]], host: str, began_at: float
) -> tuple[ObjectFacts, ...]:
    """Compare each mesh object with the original, our recorded changes undone.

    Args:
        seen: Everything seen from the beginning of the demo to the end of this rollout.
        originals: The objects as their author wrote them, by kind and name.
        host: Fully qualified host.
        began_at: When this rollout began.
    """
    changes = _last_changes(seen)
    facts = []
    for (kind, name), original in originals.items():
        own = [each for each in seen if (each.kind, each.name) == (kind, name)]
        before = next((each.document for each in reversed(own) if each.at < began_at), original)
        after = own[-1].document if own else original
        facts.append(
            ObjectFacts(
                kind,
                name,
                difference(original, undo(after, changes, host)),
                difference(before, after),
                sum(each.at >= began_at for each in own),
            )
        )
    return tuple(facts)


def _last_changes(seen: Sequence[Seen]) -> tuple[Change, ...]:
    records = [each for each in seen if each.kind == ROLLOUT]
    return status_of(records[-1].document).changes if records else ()


def undo_of(seen: Iterable[Seen], originals: Mapping[tuple[str, str], Mapping[str, Any]], host: str) -> UndoFacts:
    """Undo the record in force after every single write of an object or of the record, and compare."""
    changes: tuple[Change, ...] = ()
    current = dict(originals)
    moments, mismatches = 0, []
    for each in seen:
        if each.kind == ROLLOUT:
            changes = status_of(each.document).changes
            touched: Sequence[tuple[str, str]] = tuple(current)
        elif each.kind in MESH_KINDS:
            current[each.kind, each.name] = each.document
            touched = ((each.kind, each.name),)
        else:
            continue
        for kind, name in touched:
            if (kind, name) not in originals:
                continue
            moments += 1
            found = difference(originals[kind, name], undo(current[kind, name], changes, host))
            if found:
                mismatches.append(f"{kind} {name} at resourceVersion {each.version}: {' '.join(found)}")
    return UndoFacts(moments, tuple(mismatches))


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines of YAML that differ between two objects, without what the API server keeps in them."""
    old, new = (yaml.safe_dump(without_server_fields(each)).splitlines() for each in (before, after))
    unified = difflib.unified_diff(old, new, lineterm="", n=0)
    lines = [line for line in unified if not line.startswith(("---", "+++", "@@"))]
    rest = len(lines) - SHOWN_LINES
    return tuple(lines[:SHOWN_LINES] + ([f"... and {rest} more lines"] if rest > 0 else []))


def between(records: Iterable[Record], since: float, until: float) -> list[Record]:
    """Requests sent in ``[since, until)``."""
    return [record for record in records if since <= record.sent < until]
