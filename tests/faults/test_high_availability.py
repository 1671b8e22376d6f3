"""Two and three replicas, and what becomes of the one that leads: nobody writes after its time, nothing begins anew.

Who wrote what is read from the API server's audit log; times are those of the election by default, 15, 10 and 2 s.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import pytest

from lab.faultproxy import Entry
from lab.mesh import CLUSTER, Lab
from lab.site import Options
from tests.faults.audit import LEASES, Audit, Write, after_their_time, out_of_term, terms
from tests.faults.cluster import VIRTUAL_SERVICES, Cluster, Document, Kind, Witness
from tests.faults.conftest import Row
from tests.faults.life import NAME, STEPS, Ground, host_of, shares
from tests.faults.replicas import Replica, Team, in_effect, new_team
from tests.operatorprocess import definition

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(600)]

GRACEFUL_SECONDS: Final = 3.0
CRASH_SECONDS: Final = 20.0
HELD_SECONDS: Final = 24
"""Until a request of a stopped leader goes on: another one leads by then, and has written."""
SHORT: Final = ("7s", "3s", "500ms")
RENEW_SECONDS: Final = 3.0
AT_ONCE: Final = 6


@pytest.fixture(scope="module")
def audited(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ground, Audit]]:
    """An API server with its audit log on."""
    directory = tmp_path_factory.mktemp("replicas")
    audit = Audit(directory)
    options = Options(apiserver_flags=("--endpoint-reconciler-type=none", *audit.flags))
    with Lab(f"replicas-{uuid4().hex[:8]}", CLUSTER, options=options) as lab:
        definition(lab)

        def follow(kind: Kind, document: Document) -> None:
            if kind == VIRTUAL_SERVICES:
                ground.traffic.weigh(host_of(document["metadata"]["namespace"]), shares(document))

        cluster = Cluster(lab)
        witness = Witness(cluster, follow)
        yield Ground(lab, cluster, witness, ground.traffic, directory), audit
        witness.stop()


@dataclass(frozen=True)
class Blow:
    """Something that happens to a leader.

    Attributes:
        what: In words.
        strike: Does it, and returns when.
        heal: Undoes it once another one leads, where it can be undone.
        within: How soon another one has to lead, in seconds.
    """

    what: str
    strike: Callable[[Replica], float]
    heal: Callable[[Replica], None] | None = None
    within: float = CRASH_SECONDS


def resume(replica: Replica) -> None:
    """Let a stopped process go on, and wait until it has looked at the Lease."""
    looks = len(replica.proxy.entries("get leases"))
    replica.signal(signal.SIGCONT)
    _until(lambda: len(replica.proxy.entries("get leases")) > looks, "a look at the Lease")


def cut_off(effect: str) -> Callable[[Replica], float]:
    """Return a blow: the API server fails for this replica alone."""

    def strike(replica: Replica) -> float:
        replica.proxy.rule(f"* {effect}")
        return time.time()

    return strike


def reconnect(replica: Replica) -> None:
    """End what `cut_off` began, and wait until the replica has heard of the Lease."""
    replica.proxy.calm()
    answered = len([entry for entry in replica.proxy.entries("get leases") if entry.code == 200])
    _until(
        lambda: len([e for e in replica.proxy.entries("get leases") if e.code == 200]) > answered, "a look at the Lease"
    )


def stop_at(kind: str) -> Callable[[Replica], float]:
    """Return a blow: the process is stopped at its next write of a kind, which arrives much later."""

    def strike(replica: Replica) -> float:
        replica.proxy.wait(replica.proxy.rule(f"{kind} n=1 stop={HELD_SECONDS}s", lambda: replica.pid), within=30)
        return time.time()

    return strike


def resume_after_its_write(replica: Replica) -> None:
    """Wait until the write that was held has been answered by the API server, then let the process go on."""
    held = next(entry.number for entry in replica.proxy.entries() if " stop=" in entry.rule)

    def answered() -> bool:
        return replica.proxy.entries(since=held - 1)[0].upstream is not None

    _until(answered, "an answer to the write that was held", HELD_SECONDS + 5.0)
    assert replica.proxy.entries(since=held - 1)[0].upstream in (409, 422), "it should be refused"
    resume(replica)


def _until(holds: Callable[[], object], what: str, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"no {what} within {within:g} s"
        time.sleep(0.02)


BLOWS: Final[Mapping[str, Blow]] = {
    "killed": Blow("kill -9", lambda replica: replica.signal(signal.SIGKILL)),
    "terminated": Blow("SIGTERM", lambda replica: replica.signal(signal.SIGTERM), within=GRACEFUL_SECONDS),
    "stopped": Blow("SIGSTOP, resumed under its successor", lambda replica: replica.signal(signal.SIGSTOP), resume),
    "hanging": Blow("its connections to the API server hang", cut_off("hang"), reconnect),
    "dropped": Blow("its connections to the API server are dropped", cut_off("drop"), reconnect),
    "weights on the way": Blow(
        "SIGSTOP while its write of weights is on the way", stop_at("patch virtualservices"), resume_after_its_write
    ),
    "status on the way": Blow(
        "SIGSTOP while its write of a status is on the way",
        stop_at("patch canaryrollouts/status"),
        resume_after_its_write,
    ),
}
CASES: Final = [
    pytest.param(2, ("killed", "terminated", "hanging", "weights on the way"), id="two replicas"),
    pytest.param(3, tuple(BLOWS), id="three replicas", marks=[pytest.mark.faults, pytest.mark.timeout(900)]),
]


@dataclass(frozen=True)
class Handover:
    """How one leader was followed by another: seconds until the next one led, and until it first moved weights."""

    led: float
    moved: float
    refused: int


def handed_over(ground: Ground, audit: Audit, size: int, blow: Blow) -> Handover:
    """Strike the leader in the middle of a rollout, and let another one bring it to its end."""
    with new_team(ground, audit, size) as team:
        life = team.life
        leader = team.leader()
        life.begin()
        for other in team.others(leader):
            # A standby knows already what there is: it takes over although it can list nothing.
            life.until(lambda other=other: other.proxy.entries("watch canaryrollouts"), "watch")  # type: ignore[misc]
            other.proxy.rule("list canaryrollouts hang")
        life.until(in_effect(life, STEPS[0]), "first step")
        struck = blow.strike(leader)
        successor = team.successor(leader)
        lists = len(successor.proxy.entries("list canaryrollouts"))
        if blow.heal is not None:
            blow.heal(leader)
        life.until(lambda: life.ended, "end")
        assert life.weights() == [0, *STEPS], life.story()
        life.check_raises()
        life.check_not_repeated()
        writes = team.writes()
        assert after_their_time(writes) == [], life.story()
        assert out_of_term(writes) == [], life.story()
        assert len(successor.proxy.entries("list canaryrollouts")) - lists <= 1, "the leader's own check, and no more"
        if blow.heal is not None:
            assert not leader.program.leads
            assert leader.program.probe("/readyz")[0] == 200
        refused = sum(entry.upstream in (409, 422) for entry in leader.writes())
        moved = next(w.done for w in writes if w.replica == successor.name and w.object[0] == VIRTUAL_SERVICES[1])
        return Handover(team.took_over(struck), moved - struck, refused)


@pytest.mark.parametrize(("size", "kinds"), CASES)
def test_a_rollout_goes_on_under_the_next_leader(
    audited: tuple[Ground, Audit], table: list[Row], size: int, kinds: Sequence[str]
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda kind: handed_over(*audited, size, BLOWS[kind]), kinds)
        handovers = dict(zip(kinds, found, strict=True))
    for kind, handover in handovers.items():
        seen = f"the next one led after {handover.led:.1f} s, moved weights after {handover.moved:.1f} s"
        if handover.refused:
            seen += f"; the late write was refused ({handover.refused})"
        table.append(Row(f"leader of {size} replicas: {BLOWS[kind].what}", "in the middle of a step", 1, seen))
    late = {kind: round(h.led, 1) for kind, h in handovers.items() if h.led >= BLOWS[kind].within}
    assert not late, "the next one led too late"


def last_renewal(team: Team, leader: Replica) -> Write:
    """The last write of the Lease that got through to the API server: one may have been on its way."""

    def sent() -> list[Entry]:
        return [entry for entry in leader.proxy.entries("create leases", "update leases") if not entry.rule]

    _until(lambda: all(entry.seconds is not None for entry in sent()), "end of a renewal")
    version = max(int(entry.version) for entry in sent() if entry.applied)
    _until(lambda: any(write.version == version for write in team.writes()), "renewal in the audit log")
    return next(write for write in team.writes() if write.version == version)


def test_a_write_is_not_sent_when_too_little_is_left_of_the_lease(
    audited: tuple[Ground, Audit], table: list[Row]
) -> None:
    """A leader reaches everything but its Lease, and has every reason to write: v2 fails."""
    with new_team(*audited, lease=SHORT) as team:
        life, leader = team.life, team.leader()
        life.begin(steps=[{"weight": 20}, {"weight": 60, "approval": "Required"}, {"weight": 100}])
        life.until(in_effect(life, STEPS[1]), "second step")
        life.until(lambda: life.status.verdict == "Pass", "pass")
        leader.proxy.rule("* leases hang")
        fenced = last_renewal(team, leader).asked + RENEW_SECONDS
        time.sleep(max(0.0, fenced - time.time()))
        life.fail("v2")
        successor = team.successor(leader)
        took = life.until(lambda: life.weight == 0, "rollback", 10)
        life.until(lambda: life.ended, "end")
        writes = team.writes()
    assert [w for w in writes if w.replica == leader.name and not w.on_lease and w.asked > fenced] == []
    assert not [entry for entry in leader.writes() if entry.at > fenced + 0.1], "they were not even sent"
    assert {w.replica for w in writes if w.object[0] == VIRTUAL_SERVICES[1] and w.asked > fenced} == {successor.name}
    assert out_of_term(writes) == []
    seen = f"it sent nothing more; the next one took the canary back {took:.1f} s after it led"
    table.append(Row("leader that cannot renew", "a breach when too little is left of its lease", 1, seen))


@pytest.mark.faults
def test_three_replicas_lead_one_after_the_other(audited: tuple[Ground, Audit], table: list[Row]) -> None:
    steps = [*({"weight": weight, "approval": "Required"} for weight in STEPS[:2]), {"weight": STEPS[2]}]
    with new_team(*audited, 3) as team:
        life = team.life
        first = team.leader()
        life.begin(steps=steps)
        life.until(in_effect(life, STEPS[0]), "first step")
        first.signal(signal.SIGKILL)
        second = team.successor(first)
        team.approve("first")
        life.until(in_effect(life, STEPS[1]), "second step")
        second.signal(signal.SIGSTOP)
        third = team.successor(second)
        team.approve("second")
        life.until(lambda: life.weight == STEPS[2], "third step")
        resume(second)
        third.signal(signal.SIGTERM)
        assert team.successor(third) is second, "it leads again, with all that happened meanwhile"
        life.until(lambda: life.ended, "end")
        assert life.weights() == [0, *STEPS], life.story()
        life.check_raises()
        life.check_not_repeated()
        writes = team.writes()
    assert [term.holder for term in terms(writes)] == [first.name, second.name, third.name, second.name]
    assert after_their_time(writes) == []
    assert out_of_term(writes) == []
    table.append(Row("three replicas", "kill -9, SIGSTOP and SIGTERM, one leader after the other", 1, "as ever"))


def test_the_check_of_the_audit_log_sees_a_write_after_its_time() -> None:
    lease, route = (LEASES, "shop", "canaryrollout"), ("virtualservices", "shop", NAME)

    def wrote(replica: str, version: int, holder: str = "") -> Write:
        return Write(replica, lease if holder else route, version, 0, 0, holder)

    fair = [wrote("a", 1, "a"), wrote("a", 2), wrote("b", 3, "b"), wrote("a", 4), wrote("b", 5), wrote("a", 6, "a")]
    assert after_their_time([*fair, wrote("a", 7)]) == []
    assert out_of_term([*fair, wrote("a", 7)]) == [wrote("a", 4)]
    late = wrote("a", 6)
    assert after_their_time([*fair[:5], late]) == [late]
    assert after_their_time([*fair, wrote("a", 7), wrote("b", 8)]) == [wrote("b", 8)]
