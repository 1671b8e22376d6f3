"""Subsets: those of both versions have to be there before a route names them, and to stay for as long as one does."""

from __future__ import annotations

from canaryrollout.api.status import ChangeKind, Phase
from canaryrollout.domain.decision import AddSubset, Decision
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.naming import subset_name


def find_or_add(draft: Draft) -> Decision | None:
    """Find or add the subsets of both versions, one patch at a time."""
    case = draft.case
    rule = case.traffic.rule
    assert rule is not None  # noqa: S101 - the caller looked
    names = dict(draft.status.subsets)
    for version in (draft.status.stable_version or "", draft.record.version):
        existing = [s.name for s in rule.subsets if s.version == version]
        if not existing:
            message = f"adding a subset for version {version} to DestinationRule {rule.name}"
            return add_subset(draft, version, Phase.PREPARING, message)
        routed = [name for route in case.traffic.routes if (name := route.subset_of(version))]
        names[version] = next((name for name in routed if name in existing), existing[0])
    if names != draft.status.subsets:
        draft.update(subsets=names)
    return None


def add_subset(draft: Draft, version: str, phase: Phase, message: str) -> Decision:
    """Add a subset for a version, on record before it is written; its name stays the one that routes know."""
    case = draft.case
    rule = case.traffic.rule
    assert rule is not None  # noqa: S101 - the caller looked
    taken = {s.name for s in rule.subsets}
    known = draft.status.subsets.get(version)
    name = known if known and known not in taken else subset_name(version, taken)
    stable = draft.status.stable_version or ""
    template = next((s.name for s in rule.subsets if s.version == stable), None)
    action = AddSubset(rule, name, version, case.spec.version_label, template)
    draft.update(subsets={**draft.status.subsets, version: name})
    if draft.status.rollout is not None:
        draft.rollout(subset_seen_at=None)
    return draft.move(phase, "AddingSubset", message, actions=(action,), again=True, wake_in=case.settings.retry)


def restore_lost(draft: Draft, versions: tuple[str, ...], phase: Phase) -> Decision | None:
    """Add a subset again that routes name and somebody removed: until then their requests go nowhere.

    Args:
        draft: The decision in the making; its DestinationRule is readable.
        versions: Versions that routes name.
        phase: Phase to show meanwhile.
    """
    rule = draft.case.traffic.rule
    assert rule is not None  # noqa: S101 - the caller looked
    present = {subset.version for subset in rule.subsets}
    lost = next((version for version in versions if version not in present), None)
    if lost is None:
        return None
    message = f"DestinationRule {rule.name} lost its subset for {lost}; adding it again"
    if draft.case.seen.message != message:
        draft.note("SubsetLost", message, warning=True)
    return add_subset(draft, lost, phase, message)


def restore_own(draft: Draft, phase: Phase) -> Decision | None:
    """Add the stable version's subset again, if it was ours and routes still name it."""
    stable = draft.status.stable_version or ""
    ours = any(c.kind is ChangeKind.SUBSET and c.version == stable for c in draft.status.changes)
    named = any(route.subset_of(stable) for route in draft.case.traffic.routes)
    if not (ours and named) or draft.case.traffic.rule is None:
        return None
    return restore_lost(draft, (stable,), phase)
