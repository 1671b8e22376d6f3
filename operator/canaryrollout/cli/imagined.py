"""A rollout on a mesh that is only imagined: the shipped `needs` and `decide`, with a clock that jumps.

The offline tools differ in where evidence comes from (drawn at random, or counted by a real Prometheus some time ago)
and share the rest: routes that take a weight the moment it is written, endpoints that are ready, a person who approves
at once, and a look whenever the operator would look. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, HistoryEntry, Phase, RolloutRecord
from canaryrollout.domain.decide import decide
from canaryrollout.domain.decision import Decision, Needs, SetFinalizer, SetWeights
from canaryrollout.domain.evidence import Evidence, Preflight
from canaryrollout.domain.gates import judge
from canaryrollout.domain.looks import grid_start
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import (
    Destination,
    DestinationRuleState,
    Endpoints,
    Identity,
    Mesh,
    Observation,
    Subset,
    VirtualServiceState,
    Weights,
)
from canaryrollout.domain.results import Judgement
from canaryrollout.domain.settings import DomainSettings

WRITE: Final = timedelta(milliseconds=20)
"""What a write to the API server takes."""
NEVER: Final = timedelta(days=3650)
MOST_PASSES: Final = 200_000


class Outcome(StrEnum):
    """How a rollout ended."""

    PROMOTED = "Promoted"
    TAKEN_BACK = "TakenBack"
    OUT_OF_TIME = "OutOfTime"
    UNFINISHED = "Unfinished"


@dataclass(frozen=True, slots=True)
class Readings:
    """What a provider says at one time."""

    evidence: Evidence | None = None
    opening: Evidence | None = None
    baseline: Evidence | None = None
    preflight: Preflight | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """One pass of the operator.

    Attributes:
        time: When it was.
        phase: The phase it came to.
        reason: Why, as one word.
        message: The same for people.
        weight: The canary's weight from then on, in percent.
        judgement: What the gates said; ``None`` without traffic, or where they were not asked for.
    """

    time: datetime
    phase: Phase | None
    reason: str
    message: str
    weight: int
    judgement: Judgement | None = None


class ImaginedRollout:
    """One rollout from its first sight to its end; pass by pass, so that whoever drives it can wait for evidence.

    Args:
        spec: What the user wants. It is taken not to be paused.
        stable: The version that serves.
        namespace: Namespace of the rollout.
        start: When it starts.
        settings: Timing; how often to look at a mesh where nothing happens is no matter here.
        in_effect_at_once: Whether weights are taken to be in effect when they are written, where the traffic of the
            evidence followed other weights.
        judged: Whether moments hold what the gates said, which costs another look at the evidence.
    """

    def __init__(
        self,
        spec: CanaryRolloutSpec,
        stable: str,
        namespace: str,
        start: datetime,
        settings: DomainSettings,
        *,
        in_effect_at_once: bool = False,
        judged: bool = False,
    ) -> None:
        self.spec = spec.model_copy(update={"paused": False})
        self.now = start
        self.status = CanaryRolloutStatus()
        self.moments: list[Moment] = []
        self.history: list[HistoryEntry] = []
        self.settings = replace(settings, poll=NEVER)
        self._in_effect_at_once = in_effect_at_once
        self._judged = judged
        self._identity = Identity(namespace, spec.host, "imagined", 1, start)
        self._services = {
            ref.name: VirtualServiceState(
                ref.name, 1, "", False, {name: _serving(stable) for name in ref.routes or ("",)}
            )
            for ref in spec.istio.virtual_services
        }
        subsets = tuple(Subset(version, version) for version in (stable, spec.version))
        self._rule = DestinationRuleState(spec.istio.destination_rule.name, 1, subsets)
        ready = spec.readiness.min_ready if isinstance(spec.readiness.min_ready, int) else 1
        self._endpoints = Endpoints({stable: ready, spec.version: ready})

    @property
    def record(self) -> RolloutRecord | None:
        """Return the change under way."""
        return self.status.rollout

    @property
    def weight(self) -> int:
        """Return the canary's share in the mesh, in percent."""
        services = self._services.values()
        states = [state for service in services for state in service.routes.values() if isinstance(state, Weights)]
        shares = [sum(d.weight for d in state.destinations if d.subset == self.spec.version) for state in states]
        return max(shares)

    @property
    def reason(self) -> str:
        """Return why it is in its state."""
        return next((c.reason for c in self.status.conditions if c.type == "Ready"), "")

    @property
    def ended(self) -> HistoryEntry | None:
        """Return the transition that ended it; ``None`` while it is under way."""
        endings = ("Promoted", "DeadlineExceeded", self.record.reason if self.record else "Promoted")
        return next((entry for entry in reversed(self.history) if entry.reason in endings), None)

    @property
    def outcome(self) -> Outcome:
        """Return how it ended, or that it did not."""
        ended = self.ended
        if ended is None:
            return Outcome.UNFINISHED
        named = {"Promoted": Outcome.PROMOTED, "DeadlineExceeded": Outcome.OUT_OF_TIME}
        return named.get(ended.reason, Outcome.TAKEN_BACK)

    def needs(self) -> Needs:
        """Return what the next pass has to know."""
        return needs(self.spec, self.status, self._identity, self.now, self.settings)

    def look(self, readings: Readings) -> Moment:
        """Make one pass, and let time go on to the next.

        Args:
            readings: What the provider says now.

        Raises:
            RuntimeError: If the rollout would never end.
        """
        if len(self.moments) > MOST_PASSES:
            raise RuntimeError(f"no end after {MOST_PASSES} passes; the last: {self.moments[-1].message}")
        judgement = self._judgement(readings) if self._judged else None
        decision = decide(self.spec, self.status, self._observation(readings), self.now, self.settings)
        self.history += [entry for entry in decision.status.history if entry not in self.status.history]
        self.status = decision.status
        for action in decision.actions:
            match action:
                case SetFinalizer(present=present):
                    self._identity = replace(self._identity, finalizer=present)
                case SetWeights():
                    self._set(action)
        moment = Moment(self.now, self.status.phase, self.reason, self.status.message, self.weight, judgement)
        self.moments.append(moment)
        self._go_on(decision)
        return moment

    def _observation(self, readings: Readings) -> Observation:
        return Observation(
            identity=self._identity,
            mesh=Mesh(self._services, self._rule),
            endpoints=self._endpoints,
            evidence=readings.evidence,
            opening=readings.opening,
            baseline=readings.baseline,
            preflight=readings.preflight,
        )

    def _set(self, action: SetWeights) -> None:
        found = self._services[action.found.name]
        routes = dict(found.routes)
        for target in action.routes:
            weights = target.weights
            routes[target.route] = Weights(tuple(Destination(name, weights[name], weights[name]) for name in weights))
        self._services[found.name] = replace(
            found, generation=found.generation + 1, writer="canaryrollout", written_by_us=True, routes=routes
        )

    def _go_on(self, decision: Decision) -> None:
        record = self.record
        if self.reason == "AwaitingApproval":
            command = f"approve/{self.spec.version}/{len(self.moments)}"
            self._identity = replace(self._identity, command=command)
            self.now += WRITE
            return
        if self._in_effect_at_once and record is not None and record.applied_at is not None:
            since = record.in_effect_at or grid_start(record.applied_at, self.settings.propagation)
            update = {"in_effect_at": since, "convergence": record.convergence or "Converged"}
            self.status = self.status.model_copy(update={"rollout": record.model_copy(update=update)})
        if decision.again:
            self.now += WRITE
        elif decision.wake_at is not None:
            self.now = max(decision.wake_at, self.now + timedelta(milliseconds=1))
        else:
            self.now += self.settings.retry

    def _judgement(self, readings: Readings) -> Judgement | None:
        """Return what the gates say on the same evidence: status keeps it only where a verdict changes."""
        record = self.record
        if record is None or not record.weight or record.target is not None:
            return None
        return judge(
            self.spec.analysis,
            readings.evidence,
            weight=record.weight,
            finished=record.finished,
            baseline=record.baseline,
            since=record.in_effect_at,
            opening=readings.opening.blocks if readings.opening is not None else (),
        )


def _serving(version: str) -> Weights:
    return Weights((Destination(version, 100, 100),))


def gate_values(judgement: Judgement) -> Mapping[str, tuple[float, float]]:
    """Return logarithms of e-value and threshold by gate and limit, where the rule has them."""
    return {
        f"{gate.name} {limit.limit}": (limit.log_evidence, limit.log_threshold)
        for gate in judgement.gates
        for limit in gate.limits
        if limit.log_evidence is not None and limit.log_threshold is not None
    }
