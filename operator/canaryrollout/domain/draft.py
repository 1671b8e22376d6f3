"""One decision in the making.

Every branch of `decide` starts from the present status, records what it does, and ends in exactly one move. The draft
keeps the bookkeeping that all branches share in one place: history, Events, conditions, printer columns, and the rule
that a moving counter alone does not change the status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import (
    CanaryRolloutStatus,
    Change,
    Condition,
    EffectiveAnalysis,
    HistoryEntry,
    Phase,
    RolloutRecord,
)
from canaryrollout.domain import steps
from canaryrollout.domain.changes import changes_of, merge_changes
from canaryrollout.domain.clocks import as_of
from canaryrollout.domain.decision import Action, Decision, Event, Order
from canaryrollout.domain.gate_status import gate_status, in_short
from canaryrollout.domain.gates import effective_analysis
from canaryrollout.domain.observation import Endpoints, Identity, Observation
from canaryrollout.domain.results import Judgement
from canaryrollout.domain.routes import TrafficView, view
from canaryrollout.domain.settings import DomainSettings

HISTORY_LENGTH: Final = 20
COVERED: Final = "TrafficCovered"
"""A condition that is found out before the first step and holds until the rollout ends."""
WRITE_FAILED: Final = "WriteFailed"
LASTING: Final = 2
"""So many failures of a write in a row are said in an Event, too: once may happen to anybody."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a branch may look at; ``now`` has the precision that status keeps, so a restart changes nothing."""

    spec: CanaryRolloutSpec
    seen: CanaryRolloutStatus
    observation: Observation
    traffic: TrafficView
    now: datetime
    settings: DomainSettings

    @property
    def identity(self) -> Identity:
        """Return the rollout object."""
        return self.observation.identity

    def ready(self, version: str | None) -> int | None:
        """Return how many ready endpoints a version has; ``None`` when that is not known."""
        endpoints = self.observation.endpoints
        return endpoints.of(version) if isinstance(endpoints, Endpoints) else None

    @property
    def step_phase(self) -> Phase:
        """Return the phase of a step that waits for anything but a person."""
        return Phase.PAUSED if self.spec.paused else Phase.PROGRESSING

    def known_gone(self, version: str | None) -> bool:
        """Return whether a version is known to have no ready endpoint."""
        return self.ready(version) == 0


def situation(
    spec: CanaryRolloutSpec,
    status: CanaryRolloutStatus,
    observation: Observation,
    now: datetime,
    settings: DomainSettings,
) -> Situation:
    """Put together what a decision looks at."""
    trimmed = now.replace(microsecond=now.microsecond // 1000 * 1000)
    status = as_of(status, spec, trimmed, settings)
    return Situation(spec, status, observation, view(observation.mesh, status.subsets), trimmed, settings)


class Draft:
    """A decision in the making; ends with `move`."""

    def __init__(self, case: Situation) -> None:
        self.case = case
        self.status = case.seen
        self._events: list[Event] = []
        self._conditions: dict[str, tuple[str, str, str]] = {}
        self._judgement: Judgement | None = None

    @property
    def record(self) -> RolloutRecord:
        """Return the change under way.

        Raises:
            ValueError: If there is none.
        """
        if self.status.rollout is None:
            raise ValueError("no rollout is under way")
        return self.status.rollout

    def required(self) -> int:
        """Return how many ready endpoints the canary needs before it gets traffic."""
        return self.case.spec.readiness.required(self.case.ready(self.status.stable_version) or 0)

    def update(self, **fields: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def rollout(self, **fields: Any) -> None:
        """Set fields of the change under way."""
        self.update(rollout=self.record.model_copy(update=fields))

    def note(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Record a transition in history and as an Event."""
        record = self.status.rollout
        entry = HistoryEntry(
            time=self.case.now,
            reason=reason,
            version=record.version if record else self.status.stable_version or "",
            weight=record.weight if record else None,
            message=message,
        )
        self.update(history=(*self.status.history, entry)[-HISTORY_LENGTH:])
        self._events.append(Event(reason, message, warning))

    def note_once(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Record a transition once for each weight, however often what it waits for comes and goes."""
        for entry in reversed(self.status.history):
            if entry.reason in ("WeightSet", "RolloutStarted", "Retried"):
                break
            if entry.reason == reason and entry.version == self.record.version:
                return
        self.note(reason, message, warning=warning)

    def subsets(self) -> dict[str, str]:
        """Return the subset of each version: what status remembers, and what the DestinationRule has besides."""
        rule = self.case.traffic.rule
        found = {s.version: s.name for s in reversed(rule.subsets) if s.version} if rule is not None else {}
        return found | self.status.subsets

    def condition(self, kind: str, status: str, reason: str, message: str) -> None:
        """Set a condition beyond the three that follow from the phase."""
        self._conditions[kind] = (status, reason, message)

    def judged(self, judgement: Judgement) -> None:
        """Keep a judgement for verdict and gates in status."""
        self._judgement = judgement

    def move(
        self,
        phase: Phase,
        reason: str,
        message: str,
        *,
        actions: Iterable[Action] = (),
        order: Order = Order.STATUS_FIRST,
        wake_in: timedelta | None = None,
        wake_at: datetime | None = None,
        again: bool = False,
        stalled: bool = False,
        bounded: bool = True,
    ) -> Decision:
        """End the draft: what the actions alter goes on record, and why they failed before into the message.

        Args:
            phase: The phase to be.
            reason: CamelCase reason of the present state or wait.
            message: The same for people.
            actions: What to do.
            order: Whether the status is written before the actions.
            wake_in: When to look again at the latest, from now.
            wake_at: The same as a time.
            again: Whether to look again at once, unless the actions failed before.
            stalled: Whether only a person can bring this forward.
            bounded: Whether the deadline means anything to this wait.

        Returns:
            The decision.
        """
        actions = tuple(actions)
        for action in actions:
            self.remember(changes_of(action, self.subsets()))
        if failures := self._failures(actions):
            message = f"{message}; not yet accepted: {failures}"
            self._tell_failures(actions, failures)
        if phase is Phase.BLOCKED and (self.case.seen.phase, self._reason_seen()) != (phase, reason):
            self.note(reason, message, warning=True)
        self._columns(reason, bounded=bounded)
        verdict = self._verdict()
        unmoved = (phase, reason, verdict) == (self.case.seen.phase, self._reason_seen(), self.case.seen.verdict) and (
            self.status.weight == self.case.seen.weight
        )
        if unmoved and not self._message_is_news(phase, reason, message):
            message = self.case.seen.message
        self.update(phase=phase, message=message, verdict=verdict, observed_generation=self.case.identity.generation)
        self._gates(unmoved)
        self._finish_conditions(phase, reason, message, stalled=stalled or phase in (Phase.BLOCKED, Phase.ROLLED_BACK))
        if wake_in is not None:
            wake_at = self.case.now + wake_in
        return Decision(self.status, actions, order, wake_at, tuple(self._events), again and not failures)

    def remember(self, changes: Iterable[Change]) -> None:
        """Record alterations of mesh objects before they are made; `move` does so for its actions."""
        self.update(changes=merge_changes(self.status.changes, changes))

    def _failures(self, actions: Iterable[Action]) -> str:
        """Return why actions were not accepted the last time they were tried."""
        found = self.case.observation.failures
        return "; ".join(found[action.key].message for action in actions if action.key in found)

    def _tell_failures(self, actions: Iterable[Action], failures: str) -> None:
        """Say that something lastingly cannot be written: once, until something else has happened."""
        found, history = self.case.observation.failures, self.status.history
        lasting = any(found[action.key].count >= LASTING for action in actions if action.key in found)
        if lasting and (not history or history[-1].reason != WRITE_FAILED):
            self.note(WRITE_FAILED, f"not accepted, trying again: {failures}", warning=True)

    def _message_is_news(self, phase: Phase, reason: str, message: str) -> bool:
        """Return whether a new message for the same reason says more than that a counter has moved."""
        if self.case.identity.generation != self.case.seen.observed_generation:
            return True
        if not _same_words(message, self.case.seen.message):
            return True
        return phase in (Phase.PREPARING, Phase.BLOCKED) and reason not in ("MeshUnreadable", "EndpointsUnreadable")

    def _verdict(self) -> str:
        """Return the verdict to show; what took a canary back stays readable afterwards."""
        if self._judgement is not None:
            return self._judgement.verdict.value
        record = self.status.rollout
        return self.case.seen.verdict if record is not None and record.reason else ""

    def _reason_seen(self) -> str:
        return next((c.reason for c in self.case.seen.conditions if c.type == "Ready"), "")

    def _columns(self, reason: str, *, bounded: bool) -> None:
        spec, record = self.case.spec, self.status.rollout
        if record is None or record.ended_at is not None:
            canary = record.version if record else None
            self.update(canary_version=canary, step="", weight=0 if record else None, deadline=None)
        else:
            weight, promoted = record.weight, record.version == self.status.stable_version
            due = steps.deadline(spec, record) if bounded and not record.reason and not promoted else None
            if due is not None and due <= self.case.now and reason != "DeadlineExceeded":
                due = None
            self.update(canary_version=record.version, step=steps.label(spec, weight), weight=weight, deadline=due)
        analysis = effective_analysis(spec.analysis)
        mode = analysis.mode.value if analysis.mode else ""
        gates = [name for name in ("errorRate", "latency") if getattr(analysis, _FIELD[name]) is not None]
        gates += [metric.name for metric in analysis.metrics]
        self.update(analysis=EffectiveAnalysis(mode=mode, provider=analysis.provider, gates=tuple(gates)))

    def _gates(self, unmoved: bool) -> None:
        if self._judgement is None:
            record = self.status.rollout
            kept = record is not None and bool(record.reason)
            self.update(gates=self.case.seen.gates if kept else (), evidence=self.case.seen.evidence if kept else "")
            return
        seen = {gate.name: gate for gate in self.case.seen.gates}
        gates = []
        for result in self._judgement.gates:
            before = seen.get(result.name)
            if unmoved and before is not None and before.verdict == result.verdict:
                gates.append(before)
            else:
                gates.append(gate_status(result))
        self.update(gates=tuple(gates), evidence=in_short(tuple(gates)))

    def _finish_conditions(self, phase: Phase, reason: str, message: str, *, stalled: bool) -> None:
        # Not ready before the wanted version serves, or `kubectl wait` would return right after `kubectl apply`.
        drifting = reason in ("WeightDrift", "WeightReasserted")
        ready = phase is Phase.STABLE and self.status.stable_version == self.case.spec.version and not drifting
        states = {
            "Ready": ("True" if ready else "False", reason, message),
            "Reconciling": ("True" if not ready and not stalled else "False", reason, message),
            "Stalled": ("True" if stalled else "False", reason, message),
            **self._conditions,
        }
        seen = {condition.type: condition for condition in self.case.seen.conditions}
        conditions = [self._condition(kind, state, seen.get(kind)) for kind, state in states.items()]
        if COVERED in seen and COVERED not in states and self._same_rollout():
            conditions.append(seen[COVERED])
        self.update(conditions=tuple(conditions))

    def _same_rollout(self) -> bool:
        """Return whether the rollout that was under way before still is."""
        before, after = self.case.seen.rollout, self.status.rollout
        if before is None or after is None or after.ended_at is not None:
            return False
        return (before.version, before.started_at) == (after.version, after.started_at)

    def _condition(self, kind: str, state: tuple[str, str, str], before: Condition | None) -> Condition:
        status, reason, message = state
        generation = self.case.identity.generation
        since = before.last_transition_time if before and before.status == status else self.case.now
        same = before is not None and (before.status, before.reason) == (status, reason)
        if before and same and kind not in _PHASE_CONDITIONS and _same_words(before.message, message):
            message = before.message
        return Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message,
            last_transition_time=since,
            observed_generation=generation,
        )


def _same_words(one: str, other: str) -> bool:
    """Return whether two messages differ in nothing but their numbers."""
    return _NUMBERS.sub("", one) == _NUMBERS.sub("", other)


_NUMBERS: Final = re.compile(r"[0-9][0-9.,:hms]*")
_PHASE_CONDITIONS: Final = frozenset({"Ready", "Reconciling", "Stalled"})
_FIELD: Final = {"errorRate": "error_rate", "latency": "latency"}
