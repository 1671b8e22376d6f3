"""What a pass has to read before it can decide; nothing more is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction

from canaryrollout.api.spec import Analysis, CanaryRolloutSpec, ErrorRateGate
from canaryrollout.api.status import CanaryRolloutStatus, ChangeKind, RolloutRecord
from canaryrollout.domain.clocks import as_of
from canaryrollout.domain.coverage import unanswered
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import EvidenceRequest, OwnQuery, PreflightRequest
from canaryrollout.domain.gates import effective_analysis
from canaryrollout.domain.looks import grid_start, judged_weight, opening_window
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
    status = as_of(status, spec, now, settings)
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
    asking = _Asking(spec, status, record, identity, settings)
    return Needs(
        mesh=True,
        references=not record.weight and record.target is None and unanswered(status, identity, now),
        endpoints=True,
        evidence=asking.step(),
        opening=asking.opening(),
        baseline=asking.baseline(),
        preflight=asking.preflight(),
    )


@dataclass(frozen=True, slots=True)
class _Asking:
    """Words the questions that the rollout under way has to the provider."""

    spec: CanaryRolloutSpec
    status: CanaryRolloutStatus
    record: RolloutRecord
    identity: Identity
    settings: DomainSettings

    @property
    def analysis(self) -> Analysis:
        return effective_analysis(self.spec.analysis)

    @property
    def before_traffic(self) -> bool:
        record = self.record
        return not (record.weight or record.target is not None or record.promote)

    def step(self) -> EvidenceRequest | None:
        judged = judged_weight(self.record)
        if judged is None:
            return None
        start = grid_start(judged[1], self.settings.propagation)
        analysis = self.analysis
        return replace(
            self._request(start, analysis.interval, None),
            slow_above=analysis.latency.threshold if analysis.latency else None,
            queries=_queries(analysis),
        )

    def opening(self) -> EvidenceRequest | None:
        judged = judged_weight(self.record)
        if judged is None or not self.settings.propagation:
            return None
        start, end = opening_window(judged[1], self.settings.propagation)
        return self._request(start, end - start, end)

    def baseline(self) -> EvidenceRequest | None:
        if self.record.baseline is not None or not self.before_traffic:
            return None
        start, end = baseline_window(self.record.started_at, self.settings.baseline_window)
        return self._request(start, self.settings.baseline_window, end)

    def preflight(self) -> PreflightRequest | None:
        if not self.before_traffic:
            return None
        analysis = self.analysis
        return PreflightRequest(
            provider=analysis.provider,
            namespace=self.identity.namespace,
            host=fqdn(self.spec.host, self.identity.namespace),
            stable=self.status.stable_version or "",
            since=self.record.started_at,
            slow_above=analysis.latency.threshold if analysis.latency else None,
            queries=_queries(analysis),
        )

    def _request(self, start: datetime, interval: timedelta, until: datetime | None) -> EvidenceRequest:
        analysis, judged = self.analysis, judged_weight(self.record)
        return EvidenceRequest(
            provider=analysis.provider,
            namespace=self.identity.namespace,
            host=fqdn(self.spec.host, self.identity.namespace),
            stable=self.status.stable_version or "",
            canary=self.record.version,
            version_label=self.spec.version_label,
            start=start,
            interval=interval,
            until=until,
            server_faults=(analysis.error_rate or ErrorRateGate(max=Fraction(0))).grpc_server_faults,
            weight=judged[0] if judged is not None else 0,
        )


def _queries(analysis: Analysis) -> tuple[OwnQuery, ...]:
    return tuple(OwnQuery(gate.name, gate.query, gate.baseline_query or "") for gate in analysis.metrics)
