"""Somebody else writes to the routes: edits of weights, syncs that come back, objects that go and change their shape.

The operator's own writes and those of others are told apart by the field manager of each version of the VirtualService,
as the API server keeps it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import pytest

from canaryrollout.adapters.istio_patch import without_server_fields
from canaryrollout.adapters.istio_read import last_writer
from canaryrollout.adapters.kube import FIELD_MANAGER
from canaryrollout.api.status import Phase
from tests.faults.cluster import DESTINATION_RULES, ROLLOUTS, VIRTUAL_SERVICES, Kind
from tests.faults.conftest import Row
from tests.faults.life import NAME, STEPS, Ground, Life, new_life, shares
from tests.faults.workloads import Entries

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

AT_ONCE: Final = 3
INTERVAL_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.5
"""How often the operator of a life looks at its routes: every 5 s by default."""
SLACK_SECONDS: Final = 2.0
"""For a machine that is busy with several operators at once."""
PATIENCE_SECONDS: Final = 20.0
"""With what only has to come."""
SYNC_SECONDS: Final = 2.5
RESYNC_SECONDS: Final = 2.0
"""How often a rollout at rest is looked at here: every 5 minutes by default."""
GITOPS: Final = "gitops-controller"
PERSON: Final = "kubectl-edit"
ASK: Final = [{"weight": 20, "approval": "Required"}, {"weight": 60, "approval": "Required"}, {"weight": 100}]
Http = list[dict[str, Any]]


def http(**weights: int) -> Http:
    """Routes as an author writes them: one, with so much for each version."""
    entries = [{"destination": {"host": NAME, "subset": v}, "weight": weight} for v, weight in weights.items()]
    return [{"route": entries}]


AS_IN_GIT: Final[Http] = [{"route": [{"destination": {"host": NAME, "subset": "v1"}}]}]


def write(life: Life, routes: Http, manager: str) -> float:
    """Write routes in somebody's name, and return when that was done and seen."""
    cluster = life.ground.cluster
    cluster.merge(VIRTUAL_SERVICES, life.namespace, NAME, {"spec": {"http": routes}}, manager)
    at = time.time()
    version = int(cluster.get(VIRTUAL_SERVICES, life.namespace, NAME)["metadata"]["resourceVersion"])
    life.until(lambda: life.seen(VIRTUAL_SERVICES)[-1].version >= version, "sight of what was written")
    return at


@contextmanager
def syncing(life: Life, routes: Http) -> Iterator[None]:
    """Write the same routes every few seconds, whatever is there."""
    over = threading.Event()

    def sync() -> None:
        while True:
            write(life, routes, GITOPS)
            if over.wait(SYNC_SECONDS):
                return

    thread = threading.Thread(target=sync, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Written:
    """Weights as somebody left them."""

    at: float
    version: Mapping[str, int]
    ours: bool


def written(life: Life) -> list[Written]:
    """All versions of the routes."""
    found = life.seen(VIRTUAL_SERVICES)
    return [Written(s.at, shares(s.document), last_writer(s.document) == FIELD_MANAGER) for s in found]


def respected(life: Life) -> list[float]:
    """For how long each change by others stood until the operator wrote, in seconds."""
    return [ours.at - theirs.at for theirs, ours in pairwise(written(life)[1:]) if ours.ours and not theirs.ours]


def stood(life: Life) -> list[float]:
    """For how long the operator let each change stand by its own record, in seconds: until it set the weights again.

    What others see of a change may come late, so that a wait looks shorter than it was. Zero where it did not wait.
    """
    statuses = [life.status_of(seen.document) for seen in life.seen(ROLLOUTS)]
    changed = {contest.changed_at for status in statuses if (contest := status.contest) is not None} - {None}
    answers = {entry.time for status in statuses for entry in status.history if entry.reason == "WeightReasserted"}
    found, since = [], datetime.min.replace(tzinfo=UTC)
    for answer in sorted(answers):
        noticed = max((at for at in changed if at is not None and since < at <= answer), default=answer)
        found.append((answer - noticed).total_seconds())
        since = answer
    return found


def reason(life: Life) -> str:
    """Why the rollout waits, or what it came to."""
    return next((c.reason for c in life.status.conditions if c.type == "Ready"), "")


def awaits_approval(life: Life, weight: int) -> None:
    """The step has passed, and a person is asked."""
    life.until(lambda: (reason(life), life.weight) == ("AwaitingApproval", weight), f"pass at {weight} %")


def goes_on(life: Life) -> None:
    """The rollout goes on from where it is to its end, and no step is begun anew."""
    for weight in STEPS[:2]:
        if (life.status.weight or 0) <= weight:
            awaits_approval(life, weight)
            life.command(f"approve/v2/on-{weight}")
            life.until(lambda: (life.status.weight or 0) > weight, "next step")  # noqa: B023
    life.until(lambda: life.ended, "end")
    assert life.status.stable_version == "v2", life.story()
    kept(life)


def kept(life: Life) -> None:
    """Progress was kept: one rollout, and every step passed once."""
    records = [r for seen in life.seen(ROLLOUTS) if (r := life.status_of(seen.document).rollout) is not None]
    assert len({record.started_at for record in records}) == 1, life.story()
    passed = [entry.weight for entry in life.status.history if entry.reason == "StepPassed"]
    assert len(passed) == len(set(passed)), life.story()
    for before, after in pairwise(life.seen(VIRTUAL_SERVICES)):
        weight = shares(after.document).get("v2", 0)
        if last_writer(after.document) != FIELD_MANAGER or weight <= shares(before.document).get("v2", 0):
            continue
        statuses = [life.status_of(s.document).rollout for s in life.seen(ROLLOUTS) if s.version < after.version]
        done = {step.weight for record in statuses if record is not None for step in record.finished}
        assert done >= {step for step in STEPS if step < weight}, f"{weight} % without a pass; {life.story()}"


def undisturbed(neighbor: Life) -> None:
    """Another rollout of the same operator runs to its end meanwhile."""
    neighbor.begin()
    neighbor.until(lambda: neighbor.ended, "end of another rollout")
    assert neighbor.weights() == [0, *STEPS], neighbor.story()
    neighbor.check_raises()
    neighbor.check_not_repeated()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_weight_edited_by_hand_is_lowered_at_once_or_raised_after_an_interval(
    ground: Ground, table: list[Row]
) -> None:
    with new_life(ground) as life:
        life.start()
        life.begin(steps=ASK)
        awaits_approval(life, 20)
        write(life, http(v1=10, v2=90), PERSON)
        life.until(lambda: life.weight == 20, "weight of before", PATIENCE_SECONDS)
        (up,) = respected(life)
        awaits_approval(life, 20)
        life.command("approve/v2/1")
        awaits_approval(life, 60)
        write(life, http(v1=70, v2=30), PERSON)
        life.until(lambda: life.weight == 60, "weight of before", PATIENCE_SECONDS)
        (_, down) = respected(life)
        drift = [entry.message for entry in life.status.history if entry.reason == "DriftDetected"]
        assert drift == [
            f"weights were changed by {PERSON}: {NAME} is at {found}" for found in ("v1 10 / v2 90", "v1 70 / v2 30")
        ]
        goes_on(life)
        assert life.weights() == [0, 20, 90, 20, 60, 30, 60, 100], life.story()
        lowered, raised = stood(life)
    table.append(Row("a weight is edited by hand", "20 % become 90 %", 1, f"back at 20 % after {up:.1f} s"))
    table.append(Row("a weight is edited by hand", "60 % become 30 %", 1, f"kept for {down:.1f} s, then 60 % again"))
    assert lowered < INTERVAL_SECONDS <= raised
    assert up < POLL_SECONDS + SLACK_SECONDS
    assert down < INTERVAL_SECONDS + POLL_SECONDS + SLACK_SECONDS


@dataclass(frozen=True)
class Waits:
    """For how long each change stood, in seconds: by what was there to see, see `respected`, and as `stood` tells."""

    seen: list[float]
    own: list[float]


def contested(ground: Ground, routes: Http) -> Waits:
    """Let a sync write its routes again and again at 60 %; return for how long each of them was respected."""
    with new_life(ground) as life:
        neighbor = life.neighbor()
        life.start()
        life.begin(steps=ASK)
        awaits_approval(life, 20)
        life.command("approve/v2/1")
        awaits_approval(life, 60)
        with syncing(life, routes):
            undisturbed(neighbor)
            life.until(lambda: reason(life) == "WeightContested", "giving way", 40)
            status = life.status
            assert (status.phase, status.weight) == (Phase.BLOCKED, 60), life.story()
            assert status.message.startswith(f"{GITOPS} keeps changing the weights that should be v1 40 / v2 60")
            assert status.rollout is not None
            assert [step.weight for step in status.rollout.finished] == [20], life.story()
            waits = Waits(respected(life), stood(life))
            life.until(lambda: life.weight == 0, "canary without traffic", PATIENCE_SECONDS)
            given_way = len(written(life))
            time.sleep(SYNC_SECONDS)
            assert not any(w.ours and w.version.get("v2") for w in written(life)[given_way:]), life.story()
        life.command("retry/v2/1")
        life.until(lambda: life.weight == 60, "weight of before", PATIENCE_SECONDS)
        goes_on(life)
        return waits


def assert_doubled(waits: Waits, late: float = POLL_SECONDS) -> None:
    """Three answers: after an interval, after twice that, and after four times that."""
    assert len(waits.own) == 3, waits
    assert len(waits.seen) >= 3, waits
    for count, (own, seen) in enumerate(zip(waits.own, waits.seen, strict=False)):
        least = INTERVAL_SECONDS * 2**count
        assert own >= least, waits
        assert seen < least + late + SLACK_SECONDS, waits


def told(waits: Waits) -> str:
    """Waits in words."""
    return ", ".join(f"{wait:.1f}" for wait in waits.seen[:3])


@pytest.mark.parametrize(
    ("injected", "routes"),
    [
        pytest.param("all to v1, as in git", AS_IN_GIT, id="v1 100"),
        pytest.param("weights of the step before", http(v1=80, v2=20), id="v1 80, v2 20", marks=pytest.mark.faults),
    ],
)
def test_a_sync_that_comes_back_is_answered_three_times_and_then_given_way_to(
    ground: Ground, table: list[Row], injected: str, routes: Http
) -> None:
    waits = contested(ground, routes)
    seen = f"set again after {told(waits)} s, then Blocked/WeightContested at 0; at its step after retry"
    table.append(Row(f"a sync every {SYNC_SECONDS:g} s", injected, 1, seen))
    assert_doubled(waits)


# --- objects that go, and change their shape --------------------------------------------------------------------------


def again(life: Life, kind: Kind) -> dict[str, Any]:
    """An object as its author wrote it at first."""
    life.until(lambda: life.seen(kind), "sight of what was created")
    return without_server_fields(life.seen(kind)[0].document)


@dataclass(frozen=True)
class Injury:
    """Something that makes the mesh objects of a rollout unusable.

    Attributes:
        injected: In plain words.
        reason: What the rollout is blocked with.
        words: What its message says.
        harm: Does it.
        heal: Puts it right.
    """

    injected: str
    reason: str
    words: str
    harm: Callable[[Life], object]
    heal: Callable[[Life], object]


def deleted(kind: Kind, of: str) -> Injury:
    """An object is deleted, and comes back as it was at first."""
    return Injury(
        f"{of} deleted, and back as at first",
        f"{of}NotFound",
        f"{of} {NAME} does not exist",
        lambda life: life.ground.cluster.delete(kind, life.namespace, NAME),
        lambda life: life.ground.cluster.create(kind, life.namespace, again(life, kind)),
    )


def rerouted(injected: str, reason: str, words: str, routes: Http) -> Injury:
    """Routes are written that cannot be moved, and those of before again."""
    before = [{"name": "primary", **http(v1=80, v2=20)[0]}]
    harm, heal = (lambda life, routes=r: write(life, routes, PERSON) for r in (routes, before))
    return Injury(injected, reason, words, harm, heal)


def rehosted(kind: Kind, **hosts: Any) -> Callable[[Life], object]:
    """Give a VirtualService or the DestinationRule another host."""
    return lambda life: life.ground.cluster.merge(kind, life.namespace, NAME, {"spec": hosts}, PERSON)


def primary(*entries: tuple[str, str, int]) -> Http:
    """The route by its name, with so much for each host and subset."""
    return [
        {
            "name": "primary",
            "route": [{"destination": {"host": host, "subset": subset}, "weight": w} for host, subset, w in entries],
        }
    ]


V1: Final = (NAME, "v1", 80)
V2: Final = (NAME, "v2", 20)
INJURIES: Final = (
    deleted(VIRTUAL_SERVICES, "VirtualService"),
    deleted(DESTINATION_RULES, "DestinationRule"),
    rerouted(
        "the route renamed",
        "RouteNotFound",
        "lists 'primary', but spec.http has 'main'",
        [{**primary(V1, V2)[0], "name": "main"}],
    ),
    rerouted(
        "a destination added, 10 % of the traffic",
        "TooManyDestinations",
        "splits its traffic 3 ways",
        primary((NAME, "v1", 70), V2, (NAME, "v3", 10)),
    ),
    rerouted(
        "a destination of another host added",
        "ForeignDestination",
        "route 'primary' sends 10 % of its requests to 'ratings'",
        primary((NAME, "v1", 70), V2, ("ratings", "v1", 10)),
    ),
    rerouted(
        "the host of the destinations changed",
        "HostNotRouted",
        "routes to ratings, not to reviews.",
        primary(("ratings", "v1", 80), ("ratings", "v2", 20)),
    ),
    Injury(
        "the host of the DestinationRule changed",
        "HostMismatch",
        "spec.host is 'ratings', but the rollout is about reviews.",
        rehosted(DESTINATION_RULES, host="ratings"),
        rehosted(DESTINATION_RULES, host=NAME),
    ),
    Injury(
        "the host taken from spec.hosts of the VirtualService",
        "HostsChanged",
        f"spec.hosts of VirtualService {NAME} is without {NAME} now",
        rehosted(VIRTUAL_SERVICES, hosts=["ratings"]),
        rehosted(VIRTUAL_SERVICES, hosts=[NAME]),
    ),
)
QUICK: Final = 3


def injured(ground: Ground, injury: Injury) -> float:
    """Let a rollout at 20 % be injured and healed; return after how many seconds it was blocked."""
    with new_life(ground) as life:
        neighbor = life.neighbor()
        named = [{"name": "primary", **AS_IN_GIT[0]}]
        write(life, named, PERSON)
        life.start()
        listed = {"virtualServices": [{"name": NAME, "routes": ["primary"]}], "destinationRule": {"name": NAME}}
        life.begin(steps=ASK, istio=listed)
        awaits_approval(life, 20)
        before = life.applied()["patch virtualservices"]
        injury.harm(life)
        took = life.until(lambda: life.status.phase is Phase.BLOCKED, "block", PATIENCE_SECONDS)
        assert reason(life) == injury.reason, life.story()
        assert injury.words in life.status.message, life.status.message
        undisturbed(neighbor)
        assert life.status.phase is Phase.BLOCKED
        assert life.applied()["patch virtualservices"] == before, life.story()
        injury.heal(life)
        if injury.reason == "VirtualServiceNotFound":
            write(life, named, PERSON)
        goes_on(life)
        return took


@pytest.mark.parametrize(
    "injuries",
    [
        pytest.param(INJURIES[:QUICK], id="short"),
        pytest.param(INJURIES[QUICK:], id="rest", marks=pytest.mark.faults),
    ],
)
def test_objects_that_cannot_be_used_block_their_rollout_alone_until_they_are_put_right(
    ground: Ground, table: list[Row], injuries: Sequence[Injury]
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        took = list(pool.map(lambda injury: injured(ground, injury), injuries))
    for injury, seconds in zip(injuries, took, strict=True):
        seen = f"Blocked/{injury.reason} after {seconds:.1f} s, another rollout as ever; went on at its step"
        table.append(Row("mesh objects changed in a rollout", injury.injected, 1, seen))
    assert max(took) < POLL_SECONDS + SLACK_SECONDS + 1.0


# --- at rest ----------------------------------------------------------------------------------------------------------


def at_rest(life: Life) -> None:
    """v2 is promoted, and the operator has nothing to do but to look now and then."""
    life.start(resync=f"{RESYNC_SECONDS:g}s")
    life.begin()
    life.until(lambda: life.ended, "end")
    life.until_quiet()


@pytest.mark.faults
def test_a_sync_at_rest_is_answered_three_times_and_then_given_way_to(ground: Ground, table: list[Row]) -> None:
    with new_life(ground) as life:
        at_rest(life)
        with syncing(life, AS_IN_GIT):
            life.until(lambda: reason(life) == "WeightContested", "giving way", 60)
            assert life.status.message.startswith(f"{GITOPS} keeps changing the weights that should be v2 100")
            assert life.status.phase is Phase.BLOCKED
        waits = Waits(respected(life), stood(life))
        life.command("retry/v2/1")
        life.until(
            lambda: life.weight == 100 and life.status.phase is Phase.STABLE, "v2 with all traffic", PATIENCE_SECONDS
        )
        assert life.status.stable_version == "v2"
    seen = f"set again after {told(waits)} s, then Blocked/WeightContested; v2 again after retry"
    table.append(Row(f"at rest on v2, a sync every {SYNC_SECONDS:g} s", "all to v1, as in git", 1, seen))
    assert_doubled(waits, late=RESYNC_SECONDS)


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.faults)])
def test_a_sync_at_rest_to_a_version_that_is_gone_is_answered_at_once(
    ground: Ground, table: list[Row], times: int
) -> None:
    with new_life(ground) as life:
        at_rest(life)
        Entries(life).scale("v1", 0)
        for _ in range(times):
            write(life, AS_IN_GIT, GITOPS)
            life.until(lambda: life.weight == 100, "v2 with all traffic", PATIENCE_SECONDS)
        waits = respected(life)
        life.until(lambda: len(stood(life)) == times, "record of each answer", PATIENCE_SECONDS)
        assert max(stood(life)) < INTERVAL_SECONDS, life.story()
    seen = f"v2 again after {max(waits):.1f} s at most; a rollout at rest is looked at every {RESYNC_SECONDS:g} s"
    table.append(Row("at rest on v2, a sync to v1 that is gone", "all to v1, as in git", times, seen))
    assert len(waits) == times
    assert max(waits) < RESYNC_SECONDS + SLACK_SECONDS


@pytest.mark.faults
def test_a_version_that_was_taken_back_gets_nothing_from_a_sync(ground: Ground, table: list[Row]) -> None:
    with new_life(ground) as life:
        rule = {"host": NAME, "subsets": [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]}
        life.ground.cluster.merge(DESTINATION_RULES, life.namespace, NAME, {"spec": rule})
        life.start(resync=f"{RESYNC_SECONDS:g}s")
        life.fail_from(60)
        life.begin()
        life.until(lambda: life.ended, "end")
        life.until_quiet()
        write(life, http(v1=80, v2=20), GITOPS)
        took = life.until(lambda: life.weight == 0, "canary without traffic", PATIENCE_SECONDS)
        life.until(lambda: life.status.phase is Phase.ROLLED_BACK, "rest", PATIENCE_SECONDS)
    seen = f"at 0 again after {took:.1f} s; a rollout at rest is looked at every {RESYNC_SECONDS:g} s"
    table.append(Row("taken back, and a sync gives it traffic again", "20 %", 1, seen))
    assert took < RESYNC_SECONDS + SLACK_SECONDS


# --- a rollback is no drift -------------------------------------------------------------------------------------------


def test_a_rollback_of_two_virtual_services_that_is_cut_short_is_finished(ground: Ground, table: list[Row]) -> None:
    """The operator dies when one is at 0; the reason is gone by then, and nobody but the dead operator knew it."""
    second = "edge"
    with new_life(ground) as life:
        copy = again(life, VIRTUAL_SERVICES)
        copy["metadata"] = {"name": second, "namespace": life.namespace}
        life.ground.cluster.create(VIRTUAL_SERVICES, life.namespace, copy)
        workloads = Entries(life)
        life.start()
        both = {"virtualServices": [{"name": NAME}, {"name": second}], "destinationRule": {"name": NAME}}
        life.begin(steps=ASK, istio=both, readiness={"unreadyGrace": "0s"})
        awaits_approval(life, 20)
        life.until_quiet()
        life.rule(f"patch virtualservices name={second} drop")
        life.rule(f"patch virtualservices name={NAME} kill-after")
        workloads.scale("v2", 0)
        life.until_dead()
        found = {
            name: shares(life.ground.cluster.get(VIRTUAL_SERVICES, life.namespace, name)).get("v2")
            for name in (NAME, second)
        }
        assert found == {NAME: 0, second: 20}
        assert life.gave_no_reason
        workloads.scale("v2", 1)
        life.proxy.calm()
        life.start()
        started = time.time()
        life.until(lambda: life.ended, "end")
        status = life.status
        assert (status.phase, status.contest) == (Phase.ROLLED_BACK, None)
        assert status.rollout is not None
        assert status.rollout.reason == "RollbackResumed", life.story()
        assert not [e for e in status.history if e.reason in ("DriftDetected", "WeightReasserted")], life.story()
        assert life.weights() == [0, 20, 0], life.story()
        edge = life.ground.witness.seen(VIRTUAL_SERVICES, life.namespace, second)
        back = next(s.at for s in edge if s.at > started and not shares(s.document).get("v2")) - started
    seen = f"the other at 0 {back:.1f} s after the restart, never called drift"
    table.append(Row("a rollback cut short by a kill", "one of two VirtualServices is at 0", 1, seen))
