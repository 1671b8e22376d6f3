"""What a pass has to read before it can decide; nothing more is read."""

from __future__ import annotations

from datetime import datetime, timedelta

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, ChangeKind, RolloutRecord
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import EvidenceRequest
from canaryrollout.domain.gates import effective_analysis
from canaryrollout.domain.looks import grid_start, opening_window
from canaryrollout.domain.naming import fqdn
from canaryrollout.domain.observation import Identity
from canaryrollout.domain.prepare import baseline_window
from canaryrollout.domain.scope import altered_scope
from canaryrollout.domain.settings import DomainSettings


def needs(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    identity: Identity,
    now: datetime,
    settings: DomainSettings,
) -> Needs:
    """Say what to read for the next decision.

    Args:
        spec: What the user wants.
        status: What was decided so far.
        identity: The rollout object.
        now: The wall-clock time, UTC.
        settings: Timing.

    Returns:
        The readings needed. A rollout at rest needs its mesh objects only.
    """
    if identity.deleting and not identity.finalizer:
        return Needs()
    record = status.rollout
    if status.stable_version is None:
        return Needs(mesh=True, endpoints=True)
    if record is None or record.ended_at is not None:
        return Needs(mesh=True, endpoints=status.contest is not None)
    closing = bool(record.reason) or record.version == status.stable_version or identity.deleting
    own_subsets = any(change.kind is ChangeKind.SUBSET for change in status.changes)
    if closing:
        promoted = record.version == status.stable_version
        scope = None if promoted else altered_scope(spec, status.changes)
        references = own_subsets and record.cleaned_at is not None
        return Needs(mesh=True, scope=scope, endpoints=True, references=references)
    return Needs(
        mesh=True,
        endpoints=True,
        evidence=_step(spec, status, record, identity, settings),
        opening=_opening(spec, status, record, identity, settings),
        baseline=_baseline(spec, status, record, identity, settings),
    )


def _step(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    record: RolloutRecord,
    identity: Identity,
    settings: DomainSettings,
) -> EvidenceRequest | None:
    if record.applied_at is None or not record.weight:
        return None
    start = grid_start(record.applied_at, settings.propagation)
    return _request(spec, status, record, identity, start, spec.analysis.interval)


def _opening(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    record: RolloutRecord,
    identity: Identity,
    settings: DomainSettings,
) -> EvidenceRequest | None:
    if record.applied_at is None or not record.weight or not settings.propagation:
        return None
    start, end = opening_window(record.applied_at, settings.propagation)
    return _request(spec, status, record, identity, start, end - start, end)


def _baseline(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    record: RolloutRecord,
    identity: Identity,
    settings: DomainSettings,
) -> EvidenceRequest | None:
    if record.baseline is not None or record.weight or record.target is not None or record.promote:
        return None
    start, end = baseline_window(record.started_at, settings.baseline_window)
    return _request(spec, status, record, identity, start, settings.baseline_window, end)


def _request(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    record: RolloutRecord,
    identity: Identity,
    start: datetime,
    interval: timedelta,
    until: datetime | None = None,
) -> EvidenceRequest:
    analysis = effective_analysis(spec.analysis)
    measured = until is None
    return EvidenceRequest(
        provider=analysis.provider,
        namespace=identity.namespace,
        host=fqdn(spec.host, identity.namespace),
        stable=status.stable_version or "",
        canary=record.version,
        version_label=spec.version_label,
        start=start,
        interval=interval,
        until=until,
        slow_above=analysis.latency.threshold if measured and analysis.latency else None,
        queries=tuple((metric.name, metric.query) for metric in analysis.metrics) if measured else (),
        weight=record.weight,
    )
