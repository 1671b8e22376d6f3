"""Whether a step's weight is in effect: what is waited for until traffic shows it, and what is said meanwhile.

A weight that is written is not one that proxies act on. Hold and analysis count from where traffic agrees with it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from canaryrollout.api.quantities import format_duration
from canaryrollout.api.spec import Convergence
from canaryrollout.domain import convergence
from canaryrollout.domain.convergence import Finding, State
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.looks import grid_start
from canaryrollout.domain.outage import AWAY, without_evidence
from canaryrollout.domain.overdue import wait

_STATUS: Final = {State.CONVERGED: "True", State.TOO_LITTLE_TRAFFIC: "Unknown", State.SHARE_CONTRADICTS: "False"}


def converge(draft: Draft) -> Decision | None:
    """Find out since when observed traffic agrees with the weight; until then nothing passes."""
    case, record = draft.case, draft.record
    if record.in_effect_at is not None or record.applied_at is None:
        return None
    evidence = case.observation.evidence
    required = case.spec.analysis.require_convergence is Convergence.REQUIRED
    bound = _look_until(draft, record.applied_at)
    found = _found(draft, record.applied_at, None if required else bound)
    late = evidence is not None and evidence.until >= bound
    if found.state is State.SHARE_CONTRADICTS and late:
        looked = format_duration(bound - grid_start(record.applied_at, case.settings.propagation))
        draft.note_once(found.state, f"{found.message}; looking for {looked} did not change that", warning=True)
    if found.since is not None:
        draft.rollout(in_effect_at=found.since, convergence=found.state.value)
        draft.condition("TrafficConverged", _STATUS[found.state], found.state, found.message)
        return None
    return _wait_for_traffic(draft, found, late=late)


def show_convergence(draft: Draft) -> None:
    """Keep showing what was found when the weight came into effect, with the numbers of then."""
    record = draft.record
    if record.convergence not in _STATUS or record.applied_at is None:
        return
    state = State(record.convergence)
    shown = next((c for c in draft.case.seen.conditions if (c.type, c.reason) == ("TrafficConverged", state)), None)
    found = _found(draft, record.applied_at, _look_until(draft, record.applied_at)) if shown is None else None
    message = shown.message if shown is not None else found.message if found and found.state is state else ""
    draft.condition("TrafficConverged", _STATUS[state], state, message)


def _look_until(draft: Draft, applied_at: datetime) -> datetime:
    """Return up to when traffic may disagree with the weight before that is called a finding."""
    case = draft.case
    bound = max(case.settings.convergence_bound, 3 * case.spec.analysis.interval)
    return grid_start(applied_at, case.settings.propagation) + bound


def _found(draft: Draft, applied_at: datetime, bound: datetime | None) -> Finding:
    evidence = draft.case.observation.evidence
    blocks = evidence.blocks if evidence is not None else ()
    start = grid_start(applied_at, draft.case.settings.propagation)
    record = draft.record
    previous = record.finished[-1].weight if record.finished else 0
    return convergence.look(blocks, record.weight, start=start, bound=bound, previous=previous)


def _wait_for_traffic(draft: Draft, found: Finding, *, late: bool) -> Decision:
    """Return the wait for traffic that agrees with the weight: for a while, or for as long as it is required."""
    weight = draft.record.weight
    status, reason = (_STATUS[found.state], found.state.value) if late else ("Unknown", "Converging")
    message = f"waiting for traffic to show {weight} %: {found.message}"
    if late:
        message = f"{draft.record.version} at {weight} %: {found.message}; analysis.requireConvergence is Required"
    draft.condition("TrafficConverged", status, reason, found.message)
    if outage := without_evidence(draft):
        reason, message = AWAY, f"{message}; {outage}"
    return wait(draft, reason, message)
