"""Which routes a rollout that is being taken back has to look at.

A user may take a VirtualService or a route off the list while the canary has traffic on it. What was altered there is
on record, and a rollback takes it back all the same.
"""

from __future__ import annotations

from canaryrollout.api.spec import CanaryRolloutSpec, VirtualServiceRef
from canaryrollout.api.status import Change, ChangeKind


def altered_scope(spec: CanaryRolloutSpec, changes: tuple[Change, ...]) -> CanaryRolloutSpec | None:
    """Return the spec with every VirtualService and route that is on record, or ``None`` if it lists them all.

    Args:
        spec: What the user lists now.
        changes: What was altered.

    Returns:
        A spec to read by, or ``None``.
    """
    listed = {ref.name: set(ref.routes) for ref in spec.istio.virtual_services}
    altered: dict[str, set[str]] = {}
    for change in changes:
        if change.kind is not ChangeKind.SUBSET:
            altered.setdefault(change.object, set()).add(change.route)
    missing = {
        name: routes for name, routes in altered.items() if name not in listed or not routes - {""} <= listed[name]
    }
    if not missing:
        return None
    kept = tuple(ref for ref in spec.istio.virtual_services if ref.name not in missing)
    added = tuple(
        VirtualServiceRef(name=name, routes=tuple(sorted((routes | listed.get(name, set())) - {""})))
        for name, routes in sorted(missing.items())
    )
    routing = spec.istio.model_copy(update={"virtual_services": kept + added})
    return spec.model_copy(update={"istio": routing})
