"""A world that goes wrong: the one of `tests.world` with faults, other writers, and a ledger of what people wrote.

`World` makes one pass at a time on real documents. Here its surroundings misbehave in ways that can be combined at
will: writes fail, meet conflicts, or kill the operator; the clock is set; the provider answers late, in part, or not;
others edit, re-apply, rename and delete. What people wrote is kept beside the live objects (``authored``), so that it
can be told at every moment what the operator owes them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

from canaryrollout.adapters.istio_patch import build_patch
from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.decide import decide
from canaryrollout.domain.decision import Action, AddSubset, Decision, Order, RemoveSubsets, SetFinalizer
from canaryrollout.domain.evidence import Block, Evidence, EvidenceRequest, MetricReading, MetricValue
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Endpoints, Failure, Observation, Unreadable
from tests.world import HOST, OURS, SETTINGS, Crash, World, apply_patch

ZERO = timedelta()
APART = timedelta(seconds=15)
TICK = timedelta(milliseconds=20)


class Auditor(Protocol):
    """Who is told what the operator decides and writes."""

    def decided(self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision) -> None:
        """Look at a decision before it is carried out."""

    def wrote(self, world: ModelWorld, action: Action, patch: Iterable[dict[str, Any]], before: dict[str, Any]) -> None:
        """Look at a patch that was applied to the live object."""

    def touched(self, world: ModelWorld, name: str, before: dict[str, Any]) -> None:
        """Take note that somebody else has written to a VirtualService."""

    def stored(self, world: ModelWorld) -> None:
        """Look at the world after anything of ours was written."""

    def lost(self, world: ModelWorld, decision: Decision) -> None:
        """Take note that a status was decided and not stored."""


@dataclass
class ModelWorld(World):
    """`World` with faults that can be combined.

    Attributes:
        auditor: Who checks the promises.
        skew: How far the operator's clock is from the true time.
        extra_lag: How much later than usual the provider has its data.
        partial: Whether the provider warns that it answers in part.
        status_refused: Whether status cannot be written.
        races: How many of the next mesh writes meet a change by somebody else in between.
        looping: VirtualServices that a GitOps tool applies again and again.
        deaf: For how many more passes a restarted operator has no evidence.
        aside: Objects that were deleted and may come back.
        offset: The skew when a decision was stored last; ``None`` after a restart.
        unstored: What was decided last, where it could not be stored.
        unseen_jump: Whether the clock was set while nobody could notice.
    """

    auditor: Auditor | None = None
    skew: timedelta = ZERO
    extra_lag: timedelta = ZERO
    partial: bool = False
    status_refused: bool = False
    races: int = 0
    looping: set[str] = field(default_factory=set)
    deaf: int = 0
    aside: set[str] = field(default_factory=set)
    offset: timedelta | None = None
    unstored: CanaryRolloutStatus | None = None
    unseen_jump: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.authored: dict[str, dict[str, Any]] = copy.deepcopy(self.services)
        self.authored_rule: dict[str, Any] | None = copy.deepcopy(self.rule)

    @property
    def real(self) -> datetime:
        """Return the true time, which the provider goes by."""
        return self.now - self.skew

    def _log_weights(self) -> None:
        weight = max(self.shares(self.rollout.version))
        if not self.weights or self.weights[-1][1] != weight:
            self.weights.append((self.real, weight))

    # -- one pass ---------------------------------------------------------------------------------------------------

    def step(self) -> Decision:
        """Make one pass the way a worker does: what fails is remembered, and a status that fails forbids raises."""
        self.passes += 1
        self.restarted = self.deaf > 0
        self.deaf = max(0, self.deaf - 1)
        status = self.state
        observation = self._observe(status)
        decision = decide(self.rollout, status, observation, self.now, SETTINGS)
        if self.auditor is not None:
            self.auditor.decided(self, status, observation, decision)
        try:
            self._carry_out(decision)
        except Crash:
            self.restart()
            if self.auditor is not None and self.status != decision.status.as_object():
                self.auditor.lost(self, decision)
            raise
        return decision

    def _observe(self, status: CanaryRolloutStatus) -> Observation:
        identity = self._identity()
        wanted = needs(self.rollout, status, identity, self.now, SETTINGS)
        return Observation(
            identity=identity,
            mesh=self._mesh(references=wanted.references, scope=wanted.scope) if wanted.mesh else None,
            endpoints=self._endpoints() if wanted.endpoints else None,
            evidence=self._evidence(wanted.evidence),
            opening=self._evidence(wanted.opening),
            baseline=self._evidence(wanted.baseline),
            preflight=self._preflight(wanted.preflight),
            claims=self.claims,
            failures=dict(self.failures),
            clock_step=self._clock_step(),
            unstored=self.unstored,
        )

    def _clock_step(self) -> timedelta:
        if self.offset is None or abs(self.skew - self.offset) < timedelta(seconds=1):
            return ZERO
        return self.skew - self.offset

    def _carry_out(self, decision: Decision) -> None:
        if decision.order is Order.STATUS_FIRST:
            well = self._store(decision)
            if well:
                well = self._attempt_all(decision)
        else:
            well = self._attempt_all(decision)
            well = self._store(decision) and well
        if well and not decision.actions:
            self.failures.clear()

    def _attempt_all(self, decision: Decision) -> bool:
        results = [self._attempt(action) for action in decision.actions]
        return all(results)

    def _store(self, decision: Decision) -> bool:
        after = decision.status.as_object()
        if after == self.status:
            self._stored()
            return True
        if self.status_refused or not self.api:
            self._fail("Status", "status cannot be written")
            self.unstored = decision.status
            if self.auditor is not None:
                self.auditor.lost(self, decision)
            return False
        self.failures.pop("Status", None)
        self.events += [event.reason for event in decision.events]
        self._write("status", lambda: self._keep(after))
        self._stored()
        return True

    def _stored(self) -> None:
        self.offset, self.unseen_jump, self.unstored = self.skew, False, None

    def _keep(self, status: dict[str, Any]) -> None:
        self.status = copy.deepcopy(status)
        if self.auditor is not None:
            self.auditor.stored(self)

    def _attempt(self, action: Action) -> bool:
        if not self.api:
            return self._fail(action.key, "the API server does not answer")
        if isinstance(action, SetFinalizer):
            self._write("finalizer", lambda: setattr(self, "finalizer", action.present))
            return True
        if action.found.name in self.refusing:
            return self._fail(action.key, "refused by a webhook")
        document = self.rule if isinstance(action, AddSubset | RemoveSubsets) else self.services.get(action.found.name)
        if self.races and document is not None:
            self.races -= 1
            self._touch(document, "kubectl-label")
        found = action.found.document["metadata"]["resourceVersion"]
        if document is None or document["metadata"]["resourceVersion"] != found:
            return False
        patch = build_patch(action.found.document, action, HOST)
        if patch:
            self._write(action.key, lambda: self._apply(document, action, patch))
        self.failures.pop(action.key, None)
        return True

    def _apply(self, document: dict[str, Any], action: Action, patch: Any) -> None:
        before = copy.deepcopy(document)
        apply_patch(document, patch)
        self._touch(document, OURS)
        if self.auditor is not None:
            self.auditor.wrote(self, action, patch, before)
            self.auditor.stored(self)

    def _fail(self, key: str, why: str) -> bool:
        count = self.failures[key].count + 1 if key in self.failures else 1
        self.failures[key] = Failure(count, why, self.now)
        return False

    # -- what is read -----------------------------------------------------------------------------------------------

    def _endpoints(self) -> Endpoints | Unreadable:
        return super()._endpoints() if self.api else Unreadable("the API server does not answer")

    def _evidence(self, request: EvidenceRequest | None) -> Evidence | None:
        if request is None or self.restarted:
            return None
        if abs(self.skew) > APART:
            return Evidence(request, (), "its clock is not the operator's", self.now)
        until = min(self.now, self.away_since or self.now) - SETTINGS.lag["default"] - self.extra_lag
        blocks, start = [], request.start
        for end in request.ends(start, min(until, request.until or until)):
            blocks.append(self._counted_once(request, start, end))
            start = end
        metrics = {
            query.name: tuple(self._reading(query.name, block.end) for block in blocks) for query in request.queries
        }
        answer = Evidence(request, tuple(blocks), metrics=metrics)
        if self.away_since is not None and (request.until is None or not blocks):
            return replace(answer, error="connection refused", error_since=self.away_since)
        return replace(answer, warnings=("one store did not answer",)) if self.partial else answer

    def _counted_once(self, request: EvidenceRequest, start: datetime, end: datetime) -> Block:
        if end > self.real:
            return Block(start, end, canary_seen=False, stable_seen=False)
        return super()._counted_once(request, start, end)

    def _reading(self, name: str, at: datetime) -> MetricReading:
        value = self.metric(name, at)
        if value is None:
            return MetricReading(at, MetricValue(None, at, "the query has no data", "NoData"))
        if value < 0:
            return MetricReading(at, MetricValue(None, at, "the query answered NaN", "NotANumber"))
        return MetricReading(at, MetricValue(Fraction(value), at))

    # -- what happens -----------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Kill the operator and start it again: what it remembered of failures, evidence and clock is gone."""
        self.unseen_jump = self.unseen_jump or bool(self._clock_step())
        self.failures = {}
        self.deaf = 2
        self.offset = self.unstored = None

    def jump(self, by: timedelta) -> None:
        """Set the operator's clock."""
        self.now += by
        self.skew += by
        self.unseen_jump = self.unseen_jump or self.offset is None

    def arm(self, writes: int, *, after: bool) -> None:
        """Let the operator die at one of its next writes."""
        self.crash_at, self.crash_after = len(self.writes) + writes, after

    def pass_time(self, passes: int) -> None:
        """Make passes, waking up as asked."""
        for _ in range(passes):
            try:
                decision = self.step()
            except Crash:
                self.now += timedelta(seconds=1)
                continue
            if self.deleting and not self.finalizer:
                return
            self._wait(decision)
            self.reapply()

    def _wait(self, decision: Decision) -> None:
        if self.failures:
            self.now += timedelta(seconds=1)
        elif decision.again:
            self.now += TICK
        else:
            wake = decision.wake_at or self.now + timedelta(minutes=5)
            self.now = max(min(wake, self.now + timedelta(minutes=5)), self.now + TICK)

    def reapply(self) -> None:
        """Let GitOps tools apply again what people wrote."""
        for name in self.looping & self.services.keys():
            wanted = copy.deepcopy(self.authored[name]["spec"])
            if self.services[name]["spec"] != wanted:
                self.edit(name, partial(_replace, wanted))

    def edit(self, name: str, change: Callable[[dict[str, Any]], None], manager: str = "argocd") -> None:
        """Change a VirtualService's spec the way another manager does."""
        before = copy.deepcopy(self.services[name])
        super().edit(name, change, manager)
        if self.auditor is not None:
            self.auditor.touched(self, name, before)

    def edit_both(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Let a person edit what is not ours: in the live object, and in what people wrote."""
        change(self.authored[name]["spec"])
        if name in self.services:
            self.edit(name, change, "kubectl-edit")

    def remove_service(self, name: str) -> None:
        """Delete a VirtualService."""
        if self.services.pop(name, None) is not None:
            self.aside.add(name)

    def bring_back(self, name: str) -> None:
        """Create a VirtualService again as people wrote it, with a higher generation than any seen before."""
        if name in self.aside:
            self.aside.discard(name)
            document = copy.deepcopy(self.authored[name])
            document["metadata"]["generation"] = 1
            document["metadata"]["resourceVersion"] = f"again-{self.passes}"
            self.services[name] = document
            self._log_weights()

    def bring_back_rule(self) -> None:
        """Create the DestinationRule again as people wrote it."""
        if self.rule is None:
            self.rule = copy.deepcopy(self.authored_rule)
            assert self.rule is not None
            self.rule["metadata"]["resourceVersion"] = f"again-{self.passes}"


def _replace(wanted: dict[str, Any], mesh: dict[str, Any]) -> None:
    mesh.clear()
    mesh.update(wanted)
