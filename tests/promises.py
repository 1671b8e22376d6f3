"""The promises of the operator, each as a check with a name, kept by somebody who trusts nothing but what he sees.

The ledger follows decisions, writes and the true time beside `decide`. It holds what the canary has earned, what was
noticed since when, and what people wrote, and compares. Where it cannot know better (a clock that was set while the
operator was down), it keeps silent rather than guess.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from canaryrollout.adapters.istio_patch import undo, without_server_fields
from canaryrollout.adapters.istio_read import names_host
from canaryrollout.api.spec import AnalysisMode, CanaryRolloutSpec, OnDeadline, OnNoData
from canaryrollout.api.status import CanaryRolloutStatus, Phase, RolloutRecord
from canaryrollout.domain.decision import Action, CleanRoutes, Decision, RemoveSubsets, SetWeights
from canaryrollout.domain.gates import effective_analysis
from canaryrollout.domain.observation import Endpoints, Observation
from canaryrollout.domain.shares import percentages
from tests.modelworld import ModelWorld
from tests.world import HOST, NAMESPACE, SETTINGS

HISTORY = 20
STATUS_BYTES = 64 * 1024
EVENT_BYTES = 1024
SLACK = timedelta(seconds=1)
BY_THEMSELVES = {"GateFailed", "NoData", "CanaryUnready", "DeadlineExceeded", "CanaryNotReady", "RollbackResumed"}
BY_WISH = {"Aborted", "SpecReverted", "Superseded", "Deleted"}
NOT_THE_CANARYS = {"AwaitingApproval", "Paused", "WeightContested", "StableShrinking"}
REST = (Phase.STABLE, Phase.ROLLED_BACK)
Identity = tuple[str, str, datetime]


class BrokenPromise(AssertionError):  # noqa: N818 - what it is
    """A promise does not hold; the message begins with its name."""


def promise(name: str, held: object, told: object = "") -> None:
    """Raise unless a promise holds."""
    if not held:
        raise BrokenPromise(f"{name}: {told}")


@dataclass
class Ledger:
    """What the rollout under way has earned, and what was seen happening to it.

    Attributes:
        rollout: Which rollout it is about.
        granted: The greatest weight that the canary may have.
        weight_since: True time since when the weight is on record.
        passed_at: True time of the last pass, or of the start.
        approved: Weights that a person approved.
        unready_since: True time since when every look has found the canary without endpoints.
        unready_in_all: The same, less the moments in between in which it had some or nobody could tell.
        ready_again: True time since when such a moment has lasted.
        lowered: Whether traffic was taken back without status knowing why.
        changed_at: True time at which somebody else last lowered the canary, by VirtualService, and for how long that
            is respected.
        jumped: Whether the clock was set during this rollout.
    """

    rollout: Identity | None = None
    granted: int = 0
    weight_since: datetime | None = None
    passed_at: datetime | None = None
    approved: set[int] = field(default_factory=set)
    unready_since: datetime | None = None
    unready_in_all: datetime | None = None
    ready_again: datetime | None = None
    lowered: bool = False
    changed_at: dict[str, tuple[datetime, timedelta]] = field(default_factory=dict)
    jumped: bool = False


@dataclass
class Promises:
    """An auditor for `ModelWorld`.

    Attributes:
        ledger: What is known of the rollout under way.
        reassertions: How often the weights were asserted again in a row.
        reasserted_at: True time of the last one.
        served_until: True time until which a destination had traffic, by VirtualService, route and subset.
        ours: Subsets that the operator added, by VirtualService, and under ``subsets`` in the DestinationRule.
        tainted: Objects of which it cannot be told any more who wrote a weight.
        decision: The last decision.
        saw: What it was made from.
    """

    ledger: Ledger = field(default_factory=Ledger)
    reassertions: int = 0
    reasserted_at: datetime | None = None
    served_until: dict[tuple[str, str, str], datetime] = field(default_factory=dict)
    ours: dict[str, set[str]] = field(default_factory=dict)
    tainted: set[str] = field(default_factory=set)
    decision: Decision | None = None
    saw: Observation | None = None
    _reason_before: str = ""
    _answered: bool = False

    # -- decisions --------------------------------------------------------------------------------------------------

    def decided(self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision) -> None:
        """Check a decision against what was seen."""
        self.decision, self.saw = decision, saw
        self._reason_before = next((c.reason for c in seen.conditions if c.type == "Ready"), "")
        self._follow(world, seen, decision.status)
        self._readable(decision)
        self._every_wait_has_a_name(world, decision)
        self._withheld_only_for_stable(saw, decision)
        self._taken_back_for_a_reason(world, seen, saw, decision)
        self._unready_is_taken_back(world, seen, saw, decision)
        self._raises_are_earned(world, seen, saw, decision)
        self._progress_is_kept(seen, decision)
        self._promotion_is_earned(world, seen, saw, decision)
        self._drift_is_answered_in_bounds(world, seen, saw, decision)

    def lost(self, world: ModelWorld, decision: Decision) -> None:
        """Take note that a status was decided and not stored."""
        self.ledger.unready_since = None
        record = decision.status.rollout
        if record is not None and record.reason:
            self.ledger.lowered = True
        if self._answered and world.status_refused:
            self._answered = False
            self.reassertions -= 1

    def _follow(self, world: ModelWorld, seen: CanaryRolloutStatus, after: CanaryRolloutStatus) -> None:
        """Begin a new page for a new rollout."""
        ledger = self.ledger
        if world.unseen_jump or world._clock_step():
            ledger.jumped = True
        command = after.last_command
        accepted = command is not None and command != seen.last_command and command.result == "accepted"
        if accepted or after.observed_generation != seen.observed_generation:
            ledger.changed_at.clear()
        if accepted:
            self.reassertions = 0
        record = after.rollout
        if record is None:
            return
        which = (record.version, record.token, record.started_at)
        if _goes_on(ledger.rollout, seen.rollout, record):
            ledger.rollout = which
        if ledger.rollout != which:
            adopted = record.weight if seen.stable_version is None else 0
            promise("a new rollout begins at 0", record.weight == adopted, record)
            self.ledger = Ledger(which, adopted, world.real, world.real, jumped=world.unseen_jump)
            return
        before = seen.rollout
        if before is not None and before.weight != record.weight:
            ledger.weight_since = world.real
        if accepted and command is not None and command.command.startswith("approve/"):
            ledger.approved.add(record.weight)

    def _readable(self, decision: Decision) -> None:
        after = decision.status
        spelled = after.as_object()
        promise("the next process reads the same status", CanaryRolloutStatus.model_validate(spelled) == after, spelled)
        promise("history is bounded", len(after.history) <= HISTORY, len(after.history))
        size = len(json.dumps(spelled))
        promise("status is bounded", size <= STATUS_BYTES, f"{size} bytes")
        for event in decision.events:
            promise("an Event is bounded", len(event.message) <= EVENT_BYTES, f"{len(event.message)} characters")
            promise("an Event has no control characters", event.message.isprintable(), repr(event.message))

    def _every_wait_has_a_name(self, world: ModelWorld, decision: Decision) -> None:
        after = decision.status
        ready = {c.type: c for c in after.conditions}.get("Ready")
        if world.deleting and not world.finalizer:
            return
        assert ready is not None
        promise("every wait has a reason", re.fullmatch(r"[A-Z][A-Za-z]+", ready.reason), ready.reason)
        promise("every wait has a message", after.message and ready.message, after)
        if after.phase not in REST:
            wakes = decision.again or (decision.wake_at is not None and decision.wake_at > world.now - SLACK)
            promise("every wait ends by itself or has a look", wakes, (after.phase, ready.reason, decision.wake_at))
        record = after.rollout
        under_way = record is not None and not record.reason and record.ended_at is None
        if under_way and record is not None and record.version != after.stable_version and not world.deleting:
            awaited = record.awaiting_since is not None
            named = {ready.reason, self._reason_before} & NOT_THE_CANARYS or world.rollout.paused or after.contest
            promise("every wait but a person's has a deadline", after.deadline or awaited, ready.reason)
            promise("only what the canary has no part in stops the deadline", not awaited or named, ready.reason)
        promise(
            "ready means that the wanted version serves",
            ready.status != "True" or (after.stable_version == world.rollout.version and after.rollout is None),
            after,
        )

    def _withheld_only_for_stable(self, saw: Observation, decision: Decision) -> None:
        reason = next((c.reason for c in decision.status.conditions if c.type == "Ready"), "")
        if reason == "StableGone" and decision.status.rollout is not None and decision.status.rollout.weight:
            gone = ready(saw, decision.status.stable_version) == 0
            promise("a rollback is withheld only while stable is known to be gone", gone, saw.endpoints)

    def _taken_back_for_a_reason(
        self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision
    ) -> None:
        before, record = seen.rollout, decision.status.rollout
        if record is None or not record.reason or (before is not None and before.reason):
            return
        name, reason = "only declared reasons take traffic back", record.reason
        promise(name, reason in BY_THEMSELVES | BY_WISH, reason)
        promise("nothing is taken back after promotion", seen.stable_version != record.version, record)
        spec = world.rollout
        match reason:
            case "GateFailed":
                promise(name, self._speaks_against(saw), record.explanation)
            case "NoData":
                policies = [spec.analysis.on_no_data, *(m.on_no_data for m in spec.analysis.metrics)]
                promise(name, OnNoData.ROLLBACK in policies, reason)
            case "CanaryUnready":
                since, grace = self.ledger.unready_in_all, spec.readiness.unready_grace
                promise(name, ready(saw, record.version) == 0, saw.endpoints)
                long = since is not None and world.real - since >= grace - SLACK
                promise("an unready canary has its grace", long or not grace or self.ledger.jumped, (since, world.real))
            case "DeadlineExceeded" | "CanaryNotReady":
                hold = spec.on_deadline is OnDeadline.HOLD and record.weight
                promise("onDeadline Hold holds", not hold, record.explanation)
                passed = self.ledger.passed_at or world.real
                late = world.real - passed >= spec.progress_deadline - SLACK
                promise("a step has its time", late or self.ledger.jumped, (passed, world.real, record.explanation))
            case "Aborted":
                promise(name, world.command.startswith(f"abort/{record.version}/"), world.command)
            case "SpecReverted" | "Superseded":
                promise(name, spec.version != record.version, spec.version)
            case "Deleted":
                promise(name, world.deleting, reason)
            case "RollbackResumed":
                promise("a rollback is resumed only where one had begun", self.ledger.lowered, record)

    def _speaks_against(self, saw: Observation) -> bool:
        blocks = [b for e in (saw.evidence, saw.opening) if e is not None for b in e.blocks]
        if any(b.canary.errors or b.canary.slow or b.unreached for b in blocks):
            return True
        readings = saw.evidence.metrics.values() if saw.evidence is not None else ()
        return any(r.value.value is not None and r.value.value > 5 for series in readings for r in series)

    def _unready_is_taken_back(
        self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision
    ) -> None:
        ledger, before, record = self.ledger, seen.rollout, decision.status.rollout
        if before is None or record is None or record.ended_at is not None or not before.weight or before.reason:
            ledger.unready_since = ledger.unready_in_all = ledger.ready_again = None
            return
        count = ready(saw, before.version)
        if count != 0:
            ledger.unready_since = None
            ledger.ready_again = ledger.ready_again or world.real
            if count and world.real - ledger.ready_again > world.rollout.readiness.unready_grace + SLACK:
                ledger.unready_in_all = None
            return
        pause = world.real - ledger.ready_again if ledger.ready_again is not None else timedelta()
        ledger.unready_in_all = (ledger.unready_in_all or world.real - pause) + pause
        ledger.unready_since, ledger.ready_again = ledger.unready_since or world.real, None
        overdue = world.real - ledger.unready_since >= world.rollout.readiness.unready_grace + SLACK
        reason = next((c.reason for c in decision.status.conditions if c.type == "Ready"), "")
        held = record.reason or reason == "StableGone" or decision.status.stable_version == record.version
        name = "a canary without endpoints for the grace is taken back"
        promise(name, held or not overdue, f"since {ledger.unready_since}, now {world.real}: {reason}")

    def _raises_are_earned(
        self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision
    ) -> None:
        record = decision.status.rollout
        if record is None or record.target is None or record.target.weight <= self.ledger.granted:
            return
        before = seen.rollout
        assert before is not None
        self._ready_for_more(world, saw, decision.status)
        if not record.promote:
            promise("a pause stops raises", not world.rollout.paused, record.target)
            promise("one judge per host", not saw.claims, saw.claims)
            self._one_step_up(world.rollout, record)
            if record.weight:
                self._passed(world, saw, record)
            else:
                answer = saw.preflight
                held = answer is not None and not answer.error and not answer.edge_problem and not answer.refused
                promise("no first weight without a provider that can judge it", held, answer)
        self.ledger.granted = record.target.weight
        if record.weight:
            self.ledger.passed_at = world.real

    def _ready_for_more(self, world: ModelWorld, saw: Observation, after: CanaryRolloutStatus) -> None:
        record = after.rollout
        assert record is not None
        count, stable = ready(saw, record.version), ready(saw, after.stable_version)
        needed = world.rollout.readiness.required(stable or 0)
        promise("no raise below minReady", count is not None and count >= needed, (count, needed))
        promise("the finalizer comes before the first weight", world.finalizer, after)

    def _one_step_up(self, spec: CanaryRolloutSpec, record: RolloutRecord) -> None:
        assert record.target is not None
        first = min((s.weight for s in spec.steps if s.weight > record.weight), default=100)
        promise("one step at a time", record.target.weight == first, (record.weight, record.target.weight))

    def _passed(self, world: ModelWorld, saw: Observation, record: RolloutRecord) -> None:
        """Check, from what was counted alone, that the present weight has passed."""
        name, spec, evidence = "weight never rises without a pass of the present weight", world.rollout, saw.evidence
        promise(name, record.weight == self.ledger.granted, f"{record.weight} % was not granted")
        assert evidence is not None, f"{name}: no evidence"
        promise(name, not evidence.error and not evidence.warnings, evidence.error or evidence.warnings)
        since = self.ledger.weight_since
        assert since is not None
        analysis = effective_analysis(spec.analysis)
        step = next((s for s in spec.steps if s.weight == record.weight), None)
        hold = spec.hold if step is None or step.hold is None else step.hold
        counted = [block for block in evidence.blocks if block.end <= world.real]
        promise("a step is held in true time", world.real - since >= hold, (since, hold, world.real))
        if analysis.error_rate is not None:
            requests = sum(block.canary.requests for block in counted)
            promise(name, requests >= analysis.min_requests, f"{requests} requests")
            errors = sum(block.canary.errors for block in counted if block.start >= (record.in_effect_at or block.end))
            limit = analysis.error_rate.max
            if analysis.mode is AnalysisMode.THRESHOLD and limit is not None:
                promise(name, errors <= limit * requests, f"{errors} of {requests} failed")
            promise(name, requests < 400 or 5 * errors < requests, f"{errors} of {requests} failed")
        if step is not None and step.approval == "Required":
            promise("a person approves first", record.weight in self.ledger.approved, record.weight)

    def _progress_is_kept(self, seen: CanaryRolloutStatus, decision: Decision) -> None:
        before, after = seen.rollout, decision.status.rollout
        if before is None or after is None or before.reason or before.ended_at is not None:
            return
        name = "progress is never repeated from the start"
        promise(name, (before.version, before.token) == (after.version, after.token))
        promise(name, after.started_at <= before.started_at, (before.started_at, after.started_at))
        promise(name, after.weight >= before.weight or after.reason, (before.weight, after.weight))
        kept = tuple(step for step in before.finished if step.weight < before.weight)  # else its raise was given up
        promise(name, after.finished[: len(kept)] == kept, after.finished)
        weights = [step.weight for step in after.finished]
        promise("a step is recorded once", weights == sorted(set(weights)), weights)

    def _promotion_is_earned(
        self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision
    ) -> None:
        former, stable = seen.stable_version, decision.status.stable_version
        if former is None or stable == former:
            return
        record = decision.status.rollout
        assert record is not None
        promise("only the canary is promoted", record.version == stable and not record.reason, record)
        promise("only a canary with all traffic is promoted", self.ledger.granted == 100 == record.weight, record)
        assert saw.mesh is not None
        for service in saw.mesh.virtual_services.values():
            promise("nobody is promoted unseen", hasattr(service, "routes"), service)
        if not record.promote:
            self._passed(world, saw, record)

    def _drift_is_answered_in_bounds(
        self, world: ModelWorld, seen: CanaryRolloutStatus, saw: Observation, decision: Decision
    ) -> None:
        after = decision.status
        reason = next((c.reason for c in after.conditions if c.type == "Ready"), "")
        rolled = after.rollout is not None and after.rollout.reason and not (seen.rollout and seen.rollout.reason)
        quiet = self.reasserted_at is not None and world.real - self.reasserted_at >= world.rollout.hold
        passed = after.rollout and seen.rollout and len(after.rollout.finished) > len(seen.rollout.finished)
        edited = after.observed_generation != seen.observed_generation
        began = after.rollout is not None and (
            seen.rollout is None or after.rollout.started_at != seen.rollout.started_at
        )
        ended = after.rollout is None and seen.rollout is not None
        promoted = after.stable_version != seen.stable_version
        if rolled or passed or edited or began or ended or promoted or (quiet and after.contest is None):
            self.reassertions = 0
        self._answered = False
        if reason == "WeightReasserted" and decision.actions:
            self._answered = not any(action.key in saw.failures for action in decision.actions)
            self.reassertions += self._answered
            self.reasserted_at = world.real
            promise("drift is answered three times at most", self.reassertions <= SETTINGS.max_reassertions, after)

    # -- writes -----------------------------------------------------------------------------------------------------

    def wrote(self, world: ModelWorld, action: Action, patch: Iterable[dict[str, Any]], before: dict[str, Any]) -> None:
        """Check a patch of ours after it was applied."""
        after = self.decision.status if self.decision is not None else world.state
        record = after.rollout
        if record is not None and not record.reason and record.version != after.stable_version and not world.deleting:
            promise("the finalizer comes before the first write", world.finalizer, action.key)
        first = next(iter(patch))
        promise("every patch is guarded", first["path"] == "/metadata/resourceVersion", first)
        live = world.rule if before["kind"] == "DestinationRule" else world.services[before["metadata"]["name"]]
        assert live is not None
        if before["kind"] == "DestinationRule":
            self._rule_written(world, action, before, live)
        else:
            self._service_written(world, action, before, live)

    def _rule_written(self, world: ModelWorld, action: Action, before: dict[str, Any], live: dict[str, Any]) -> None:
        kept = [s for s in live["spec"].get("subsets") or [] if s["name"] in subset_names(before)]
        gone = set(subset_names(before)) - set(subset_names(live))
        expected = [s for s in before["spec"].get("subsets") or [] if s["name"] not in gone]
        promise("foreign subsets stay as they are", kept == expected, live["spec"])
        promise("only subsets of ours go", gone <= self.ours.get("subsets", set()), gone)
        for document in world.services.values():
            named = {subset for _, subset, _ in destinations(document)}
            promise("no subset goes that a route names", not gone & named, (gone, document["metadata"]["name"]))
        promise("only a clean-up removes", not gone or isinstance(action, RemoveSubsets), action.key)
        self.ours.setdefault("subsets", set()).update(set(subset_names(live)) - set(subset_names(before)))

    def _service_written(self, world: ModelWorld, action: Action, before: dict[str, Any], live: dict[str, Any]) -> None:
        name = live["metadata"]["name"]
        status = self.decision.status if self.decision is not None else world.state
        assert self.saw is not None
        had = {(route, subset): share for route, subset, share in destinations(before)}
        has = {(route, subset): share for route, subset, share in destinations(live)}
        self.ours.setdefault(name, set()).update(subset for _, subset in has.keys() - had.keys())
        promise("nothing of others is touched", stripped(before, self.ours[name]) == stripped(live, self.ours[name]))
        written = {route for route, _ in has.keys() | had.keys() if _of(route, has) != _of(route, had)}
        for index, route in enumerate(live["spec"]["http"]):
            weights = [d.get("weight") for d in route["route"]]
            whole = len(weights) == 1 or sum(w or 0 for w in weights) == 100
            promise("weights sum to 100", str(index) not in written or whole, weights)
        for place in had.keys() - has.keys():
            promise("only destinations of ours go", place[1] in self.ours[name], place)
            promise("only a clean-up removes", isinstance(action, CleanRoutes), action.key)
            drained = world.real - self.served_until.get((name, *place), world.real - SETTINGS.drain)
            promise("a destination is drained before it goes", not had[place] and drained >= SETTINGS.drain - SLACK)
        for place in had.keys() | has.keys():
            if had.get(place, 0) and not has.get(place, 0):
                self.served_until[(name, *place)] = world.real
        if isinstance(action, CleanRoutes):
            shares = {place: share for place, share in has.items() if share}
            promise("a clean-up moves no traffic", shares == {p: s for p, s in had.items() if s}, (had, has))
            return
        assert isinstance(action, SetWeights)
        for place in has:
            if has[place] > had.get(place, 0):
                self._gains(world, status, place[1], had, has, place[0])
        self._moved(world, status, had, has, live)
        self.ledger.changed_at.pop(name, None)

    def _gains(
        self,
        world: ModelWorld,
        status: CanaryRolloutStatus,
        subset: str,
        had: dict[tuple[str, str], int],
        has: dict[tuple[str, str], int],
        route: str,
    ) -> None:
        """Check that more traffic goes only where it is answered."""
        assert self.saw is not None
        labels = labels_of(world)
        record = status.rollout
        version = labels.get(subset) or next((v for v, s in status.subsets.items() if s == subset), None)
        under_way = record is not None and not record.reason and record.version != status.stable_version
        canary = record is not None and under_way and version == record.version
        if canary:
            promise("make before break", subset in labels, f"{subset} gets traffic and has no subset")
        promise(
            "only stable and canary get traffic", version in (status.stable_version, record and record.version), version
        )
        losers = [
            self._version(labels, status, s)
            for (r, s), share in had.items()
            if r == route and share > has.get((r, s), 0)
        ]
        dead = ready(self.saw, version) == 0
        alive = any(loser is None or ready(self.saw, loser) != 0 for loser in losers)
        leaving = world.deleting and not alive
        promise(
            "no traffic from a version that answers to one that is gone",
            not dead or not alive or leaving,
            (version, losers),
        )

    @staticmethod
    def _version(labels: dict[str, Any], status: CanaryRolloutStatus, subset: str) -> str | None:
        return labels.get(subset) or next((v for v, s in status.subsets.items() if s == subset), None)

    def _moved(
        self,
        world: ModelWorld,
        status: CanaryRolloutStatus,
        had: dict[tuple[str, str], int],
        has: dict[tuple[str, str], int],
        live: dict[str, Any],
    ) -> None:
        """Check that the canary rises to what it has earned, and falls for a reason."""
        record = status.rollout
        if record is None or record.ended_at is not None or record.version == status.stable_version:
            return
        labels = labels_of(world)
        for route in {r for r, _ in has}:
            names = {s for (at, s) in had.keys() | has.keys() if self._version(labels, status, s) == record.version}
            before = sum(share for (at, s), share in had.items() if at == route and s in names)
            after = sum(share for (at, s), share in has.items() if at == route and s in names)
            if after > before:
                self._respected(world, status, live["metadata"]["name"], record)
                told = f"{before} to {after} %, earned {self.ledger.granted} %"
                promise("weight never rises without a pass of the present weight", after <= self.ledger.granted, told)
                promise("nothing rises while it is taken back", not record.reason, record.reason)
                needed = world.rollout.readiness.required(ready(self.saw, status.stable_version) or 0)
                count = ready(self.saw, record.version)
                promise("no raise below minReady", count is None or count >= needed or after <= before, (count, needed))
            if after < before and not record.reason:
                given = status.contest is not None and status.contest.given_up_generation is not None
                promise(
                    "only declared reasons take traffic back",
                    after >= record.weight or given,
                    (before, after, status.message),
                )

    def _respected(self, world: ModelWorld, status: CanaryRolloutStatus, name: str, record: RolloutRecord) -> None:
        """Check that what somebody else lowered is left alone for an interval at least."""
        found = self.ledger.changed_at.get(name)
        asked = record.promote or (status.contest is not None and status.contest.resumed)
        # While a raise is being written, whose weight it is that is found cannot be told.
        asked = asked or record.target is not None
        if found is None or asked or self.ledger.jumped or ready(self.saw, status.stable_version) == 0:
            return
        at, pause = found
        pause = min(pause, world.rollout.analysis.interval)
        promise("a lowering by somebody else is respected at once", world.real - at >= pause - SLACK, (name, at))

    def touched(self, world: ModelWorld, name: str, before: dict[str, Any]) -> None:
        """Take note of who lowered the canary, and when."""
        record = world.state.rollout
        if record is None or record.ended_at is not None or record.reason:
            return
        labels = labels_of(world)
        had, has = (
            sum(w for _, s, w in destinations(document) if self._version(labels, world.state, s) == record.version)
            for document in (before, world.services[name])
        )
        if has < had:
            self.ledger.changed_at[name] = (world.real, world.rollout.analysis.interval)
        elif has > had:
            self.ledger.changed_at.pop(name, None)

    def stored(self, world: ModelWorld) -> None:
        """Check that at this moment, were nothing more to happen, others would have what they wrote."""
        changes = world.state.changes
        for name, live in world.services.items():
            authored = world.authored[name]
            ours = self.ours.get(name, set())
            promise("nothing of others is touched", stripped(live, ours) == stripped(authored, ours), name)
            if name not in self.tainted:
                back = without_server_fields(undo(live, changes, HOST))
                promise("undoing the record gives the original", back == without_server_fields(authored), name)
        if world.rule is not None and world.authored_rule is not None and "rule" not in self.tainted:
            back = without_server_fields(undo(world.rule, changes, HOST))
            promise("undoing the record gives the original", back == without_server_fields(world.authored_rule), back)


def _goes_on(page: Identity | None, before: RolloutRecord | None, after: RolloutRecord) -> bool:
    """Return whether a page is about a rollout that goes on; a start that lies in the future is taken for now."""
    if page is None or before is None or after.started_at > before.started_at:
        return False
    return page[:2] == (before.version, before.token) == (after.version, after.token)


def ready(saw: Observation | None, version: str | None) -> int | None:
    """Return how many ready endpoints were seen of a version; ``None`` where that was not known."""
    return saw.endpoints.of(version) if saw is not None and isinstance(saw.endpoints, Endpoints) else None


def subset_names(rule: dict[str, Any]) -> list[str]:
    """Return the names of a DestinationRule's subsets."""
    return [subset["name"] for subset in rule["spec"].get("subsets") or []]


def labels_of(world: ModelWorld) -> dict[str, Any]:
    """Return the version behind each subset of the live DestinationRule."""
    subsets = (world.rule or {"spec": {}})["spec"].get("subsets") or []
    return {subset["name"]: subset["labels"].get("version") for subset in subsets}


def destinations(document: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return position of the route, subset and share of every destination of the host."""
    found = []
    for index, route in enumerate(document["spec"]["http"]):
        entries = route.get("route") or []
        shares = percentages([e.get("weight") for e in entries]) or [0] * len(entries)
        for entry, share in zip(entries, shares, strict=True):
            if names_host(entry["destination"], HOST, NAMESPACE):
                found.append((str(index), entry["destination"].get("subset") or "", share))
    return found


def stripped(document: dict[str, Any], ours: set[str]) -> dict[str, Any]:
    """Return what is none of the operator's business: all but its destinations, and weights of the host's."""
    bare = without_server_fields(copy.deepcopy(document))
    for route in bare["spec"]["http"]:
        kept = []
        for entry in route.get("route") or []:
            own = names_host(entry["destination"], HOST, NAMESPACE)
            if own and entry["destination"].get("subset", "") in ours:
                continue
            kept.append({k: v for k, v in entry.items() if k != "weight"} if own else entry)
        route["route"] = kept
    return bare


def _of(route: str, shares: dict[tuple[str, str], int]) -> dict[str, int]:
    return {subset: share for (at, subset), share in shares.items() if at == route}
