"""Lives that stand still at a phase until they are let go on, so that something can happen to them right there.

What holds them up is never the spec, which a test may want to change, unless a phase is made of it (a pause, an
approval): requests that dry up, endpoints that are missing, writes that the API server refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from canaryrollout.api.status import Phase
from lab.faultproxy import Armed
from tests.faults.cluster import DESTINATION_RULES, ROLLOUTS, VIRTUAL_SERVICES, WORKLOAD_ENTRIES, Document, Kind
from tests.faults.life import ANALYSIS, NAME, STEPS, Life, host_of, shares

ENOUGH: Final = 100
"""Requests of the canary that a step asks for."""
JUDGED: Final = {**ANALYSIS, "minRequests": ENOUGH}
THRICE: Final = {**ANALYSIS, "minRequests": 3 * ENOUGH}
"""More than come about at the weight before, by an exporter that hears of the new one late on a busy machine."""
MIDDLE: Final = STEPS[1]
EVENTS: Final = "api/v1", "events"


@dataclass(frozen=True)
class Held:
    """A phase at which a life is held.

    Attributes:
        reach: Brings a life there whose operator runs.
        let_go: Takes away what holds it.
        spec: Fields of the rollout's spec that it takes.
        before: What is done before the rollout is created.
    """

    reach: Callable[[Life], None]
    let_go: Callable[[Life], None]
    spec: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Life], None] = lambda _: None

    def __call__(self, life: Life, **spec: Any) -> None:
        """Create the rollout and bring it there; v3 is as ready as v2."""
        entry(life, "v3")
        self.before(life)
        life.begin(**{"analysis": JUDGED, **self.spec, **spec})
        self.reach(life)


def entry(life: Life, version: str) -> None:
    """Give a version a ready endpoint."""
    labels = {"app": NAME, "version": version}
    metadata = {"name": version, "namespace": life.namespace}
    spec = {"address": "127.0.0.1", "labels": labels}
    document = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": metadata, "spec": spec}
    life.ground.cluster.create(WORKLOAD_ENTRIES, life.namespace, document)


def no_entry(life: Life, version: str) -> None:
    """Take the only endpoint of a version away."""
    life.ground.cluster.delete(WORKLOAD_ENTRIES, life.namespace, version)


def reason(life: Life) -> str:
    """Reason of the present state or wait."""
    return next((c.reason for c in life.status.conditions if c.type == "Ready"), "")


def standing(life: Life, phase: Phase, why: str = "") -> bool:
    """Whether the rollout is at a phase, for a reason."""
    return life.status.phase is phase and why in ("", reason(life))


def in_effect(life: Life, weight: int) -> bool:
    """Whether the canary has a weight that traffic shows."""
    record = life.status.rollout
    return record is not None and record.weight == weight and record.in_effect_at is not None


def edit(life: Life, **spec: Any) -> None:
    """Change fields of the rollout's spec."""
    life.ground.cluster.merge(ROLLOUTS, life.namespace, NAME, {"spec": spec})


def listed(life: Life, kind: Kind) -> list[Document]:
    """All objects of a kind in the life's namespace, as they are now."""
    found: list[Document] = life.ground.cluster.list((f"{kind[0]}/namespaces/{life.namespace}", kind[1]))["items"]
    return found


def events(life: Life) -> list[tuple[str, str]]:
    """Reason and message of each Event in the life's namespace."""
    return [(event["reason"], event["message"]) for event in listed(life, EVENTS)]


def weights_in(document: Document) -> dict[str, int]:
    """Weight by version of a VirtualService; it has to sum to 100."""
    found = shares(document)
    assert sum(found.values()) == 100, f"weights {found} do not sum to 100"
    return found


def check_weights(life: Life) -> None:
    """Every version of the VirtualService splits exactly all of the traffic, and rises only as it may.

    A version gets more than it has only if it passed at what it has, a person asked for its promotion, or it is the
    stable one; it begins with a step; and while the spec says that the rollout is paused, nothing but these two
    exceptions gives it more.
    """
    rollouts = [(seen.version, seen.document) for seen in life.seen(ROLLOUTS)]
    routes = life.seen(VIRTUAL_SERVICES)
    for old, new in pairwise(routes):
        before, after = weights_in(old.document), weights_in(new.document)
        earlier = [document for version, document in rollouts if version < new.version]
        for version, weight in after.items():
            had = before.get(version, 0)
            if weight <= had or (had == 0 and not earlier):
                continue
            statuses = [life.status_of(document) for document in earlier]
            record = statuses[-1].rollout
            if statuses[-1].stable_version == version or (record and record.version == version and record.promote):
                continue
            what = f"{version}: {had} -> {weight}"
            assert not earlier[-1]["spec"].get("paused"), f"{what} while it is paused; {life.story()}"
            steps = {step["weight"] for document in earlier for step in document["spec"]["steps"]}
            assert weight in steps, f"{what}, which is no step; {life.story()}"
            passed = {s.weight for status in statuses if (r := status.rollout) for s in r.finished}
            assert had in {0} | passed, f"{what} without a pass of {had}; {life.story()}"


def objects(life: Life) -> dict[str, Any]:
    """VirtualService and DestinationRule as their author wrote them."""
    return {
        kind[1]: life.ground.cluster.get(kind, life.namespace, NAME) for kind in (VIRTUAL_SERVICES, DESTINATION_RULES)
    }


_refused: dict[str, Armed] = {}
"""Rule by namespace of the life."""


def _refuse(life: Life, writes: str) -> None:
    _refused[life.namespace] = life.rule(f"{writes} answer=503")


def _accept(life: Life) -> None:
    life.proxy.retire(_refused.pop(life.namespace))


def _preparing(life: Life) -> None:
    life.until(lambda: standing(life, Phase.PREPARING, "WaitingForCanary"), "wait for the canary")


def _not_in_effect(life: Life) -> None:
    life.until(lambda: (r := life.status.rollout) and r.weight == STEPS[0], "first step")
    life.until(lambda: standing(life, Phase.PROGRESSING, "Converging") or reason(life) == "TooLittleTraffic", "wait")
    assert not in_effect(life, STEPS[0])


def _holding(weight: int) -> Callable[[Life], None]:
    def reach(life: Life) -> None:
        life.until(lambda: in_effect(life, weight), f"{weight} % in effect")

    return reach


def _awaiting(life: Life) -> None:
    life.until(lambda: reason(life) == "AwaitingApproval", "question for approval")


def _paused(life: Life) -> None:
    life.until(lambda: life.weight == STEPS[0], "first step")
    edit(life, paused=True)
    life.until(lambda: standing(life, Phase.PAUSED, "Paused"), "pause")


def _promoting(life: Life) -> None:
    life.until(lambda: life.weight == 100, "last step")
    _refuse(life, "patch canaryrollouts")
    life.until(lambda: standing(life, Phase.PROMOTING), "promotion that is not cleaned up")


def _rolling_back(life: Life) -> None:
    life.until(lambda: in_effect(life, STEPS[0]), "first step")
    _refuse(life, "patch virtualservices")
    life.fail("v2")
    life.until(lambda: standing(life, Phase.ROLLING_BACK), "rollback that does not come through")


def _rolled_back(life: Life) -> None:
    life.until(lambda: life.weight == STEPS[0], "first step")
    life.fail("v2")
    life.until(lambda: standing(life, Phase.ROLLED_BACK), "rollback")
    life.fail("v2", 0.0)


def _stable_gone(life: Life) -> None:
    life.until(lambda: life.weight == STEPS[0], "first step")
    no_entry(life, "v1")
    life.fail("v2")
    life.until(lambda: standing(life, Phase.BLOCKED, "StableGone"), "rollback that is withheld")


def contested(life: Life) -> None:
    """Somebody else takes the first weight away again and again, until the operator gives way."""
    life.until(lambda: life.weight == STEPS[0], "first step")
    while reason(life) != "WeightContested":
        http = [{"route": [{"destination": {"host": NAME, "subset": "v1"}}]}]
        life.ground.cluster.merge(VIRTUAL_SERVICES, life.namespace, NAME, {"spec": {"http": http}}, "gitops-controller")
        life.until(lambda: life.weight == 0, "sight of what was written")
        life.until(lambda: life.weight or reason(life) == "WeightContested", "answer")


def _nothing_known(life: Life) -> None:
    life.until(lambda: standing(life, Phase.BLOCKED, "VirtualServiceNotFound"), "VirtualService that is missed")


def _dry(weight: int, after: int) -> Callable[[Life], None]:
    return lambda life: life.ground.traffic.dry_up(host_of(life.namespace), "v2", weight, after)


def _flow(life: Life) -> None:
    life.ground.traffic.flow_again(host_of(life.namespace))


def _healthy(life: Life) -> None:
    life.fail("v2", 0.0)
    _accept(life)


def _no_routes(life: Life) -> None:
    life.ground.cluster.delete(VIRTUAL_SERVICES, life.namespace, NAME)


def _routes(life: Life) -> None:
    route = {"destination": {"host": NAME, "subset": "v1"}}
    spec = {"hosts": [NAME], "http": [{"route": [route]}]}
    metadata = {"name": NAME, "namespace": life.namespace}
    document = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata, "spec": spec}
    with suppress(AssertionError):  # it is there already
        life.ground.cluster.create(VIRTUAL_SERVICES, life.namespace, document)


ASKING: Final = [{"weight": STEPS[0]}, {"weight": MIDDLE, "approval": "Required"}, {"weight": 100}]
LATER: Final = {**JUDGED, "requireConvergence": "Required"}

PHASES: Final[Mapping[str, Held]] = {
    "blocked, nothing known": Held(_nothing_known, _routes, before=_no_routes),
    "preparing": Held(_preparing, lambda life: entry(life, "v2"), before=lambda life: no_entry(life, "v2")),
    "not in effect": Held(_not_in_effect, _flow, {"analysis": LATER}, _dry(STEPS[0], 0)),
    "holding": Held(_holding(MIDDLE), _flow, before=_dry(MIDDLE, 50)),
    "awaiting approval": Held(_awaiting, lambda _: None, {"steps": ASKING}),
    "paused": Held(_paused, lambda life: edit(life, paused=False)),
    "last step": Held(_holding(100), _flow, {"analysis": THRICE}, _dry(100, 25)),
    "promoting": Held(_promoting, _accept),
    "rolling back": Held(_rolling_back, _healthy),
    "rolled back": Held(_rolled_back, lambda _: None),
    "blocked, stable gone": Held(_stable_gone, lambda life: entry(life, "v1")),
}
