"""A CanaryRollout is deleted, alone or with its whole namespace, at any phase, while the operator runs or is away.

Before promotion the traffic ends on the stable version and the mesh is as its authors wrote it; after it, what serves
stays, and an Event names it. Nothing waits for ever on the finalizer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import pytest
import requests

from canaryrollout.adapters.istio_patch import without_server_fields
from lab import Lab, probe
from lab.ports import LOOPBACK
from lab.site import Command, Part, Site
from tests.faults.cluster import DESTINATION_RULES, ROLLOUTS, VIRTUAL_SERVICES
from tests.faults.life import NAME, TIMINGS, Ground, Life, new_life, shares
from tests.faults.phases import MIDDLE, PHASES, Held, check_weights, contested, events, listed, objects
from tests.faults.rows import Row
from tests.faults.schemas import anything_goes

pytestmark = pytest.mark.cluster

AT_ONCE: Final = 3
GONE_WITHIN: Final = 30.0
"""Seconds, on a machine with other things to do; a rollback, two short waits and a clean-up take one or two."""
NAMESPACE_WITHIN: Final = 60.0
"""The namespace controller looks again after 8 s at the soonest where something was left."""
RELEASE_SECONDS: Final = float(TIMINGS["release"].removesuffix("s"))
PROMOTED: Final = ("promoting", "promoted")
WHERE: Final = {
    **PHASES,
    "blocked, weights contested": Held(contested, lambda _: None),
    "promoted": Held(lambda life: _until_promoted(life), lambda _: None),
}


@dataclass(frozen=True)
class Case:
    """A deletion: at which phase, and whether the operator is killed before it and started again after it."""

    phase: str
    away: bool

    def __str__(self) -> str:
        return f"{self.phase}, operator {'away' if self.away else 'running'}"


CASES: Final = [Case(phase, away) for phase in WHERE for away in (False, True)]
QUICK: Final = [
    Case("preparing", away=False),
    Case("holding", away=True),
    Case("promoting", away=False),
    Case("rolling back", away=True),
    Case("blocked, stable gone", away=False),
]


def _until_promoted(life: Life) -> None:
    life.until(lambda: life.ended, "promotion")


def kill(life: Life) -> None:
    """End the operator without a warning."""
    assert life.program is not None
    os.kill(life.program.process.pid, signal.SIGKILL)
    life.until_dead()


def gone(life: Life) -> bool:
    """Whether the CanaryRollout does not exist any more."""
    return listed(life, ROLLOUTS) == []


def delete_alone(ground: Ground, case: Case) -> float:
    """Delete a CanaryRollout, see to it that everything is as it should be, and return how long it took to go."""
    with new_life(ground) as life:
        original = objects(life)
        life.start()
        WHERE[case.phase](life)
        if case.away:
            kill(life)
        ground.cluster.delete(ROLLOUTS, life.namespace, NAME)
        WHERE[case.phase].let_go(life)
        if case.away:
            life.start()
        took = life.until(lambda: gone(life), "end of the object", GONE_WITHIN)
        life.until_quiet()
        check_weights(life)
        if case.phase in PROMOTED:
            check_what_serves_stays(life, told=not (case.phase == "promoted" and case.away))
        else:
            routes = original[VIRTUAL_SERVICES[1]]
            if case.phase == "blocked, nothing known":  # its author has written it anew
                routes = ground.cluster.get(VIRTUAL_SERVICES, life.namespace, NAME)
            wanted = {**original, VIRTUAL_SERVICES[1]: routes}
            found = objects(life)
            assert {k: without_server_fields(v) for k, v in found.items()} == {
                k: without_server_fields(v) for k, v in wanted.items()
            }, life.story()
            assert shares(found[VIRTUAL_SERVICES[1]]) == {"v1": 100}
        return took


def check_what_serves_stays(life: Life, *, told: bool) -> None:
    """The promoted version keeps its route and its subset, and who deleted the object is told.

    Nobody is there to tell who deletes an object that holds nothing while the operator is away.
    """
    found = objects(life)
    assert shares(found[VIRTUAL_SERVICES[1]]) == {"v1": 0, "v2": 100}
    assert [s["name"] for s in found[DESTINATION_RULES[1]]["spec"]["subsets"]] == ["v1", "v2"]
    if told:
        life.until(lambda: [m for r, m in events(life) if r == "LeftInPlace"], "Event", 10)
        (message,) = (m for r, m in events(life) if r == "LeftInPlace")
        assert "subset v2 in reviews" in message
        assert "destination v2 in reviews" in message


def run(cases: Sequence[Case], deleted: Callable[[Case], float]) -> list[float]:
    """Try all, and fail afterwards for those that failed."""

    def tried(case: Case) -> float | str:
        try:
            return deleted(case)
        except Exception as error:  # noqa: BLE001 - the rest is tried all the same
            return f"{case}: {error or repr(error)}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(tried, cases))
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert not failures, "\n\n".join(failures)
    return [outcome for outcome in outcomes if not isinstance(outcome, str)]


def note(table: list[Row], fault: str, cases: Sequence[Case], seconds: Sequence[float], seen: str) -> None:
    for away in (False, True):
        took = [s for case, s in zip(cases, seconds, strict=True) if case.away is away]
        if took:
            phases = ", ".join(case.phase for case in cases if case.away is away)
            where = "before it, and started after it" if away else "running"
            how = f"{seen}; gone after {max(took):.1f} s at most"
            table.append(
                Row(f"{fault}, operator {'killed ' if away else ''}{where}", f"while {phases}", len(took), how)
            )


RESTORED: Final = "all traffic on the stable version, the mesh as it was"


def test_a_deleted_rollout_gives_everything_back(ground: Ground, table: list[Row]) -> None:
    note(table, "deletion", QUICK, run(QUICK, lambda case: delete_alone(ground, case)), RESTORED)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_rollout_deleted_at_every_phase_gives_everything_back(ground: Ground, table: list[Row]) -> None:
    note(table, "deletion", CASES, run(CASES, lambda case: delete_alone(ground, case)), RESTORED)


def test_an_object_that_cannot_give_its_traffic_back_is_let_go_in_time(ground: Ground, table: list[Row]) -> None:
    """The stable version never comes back: the canary keeps the requests that it answers."""
    with new_life(ground) as life:
        life.start()
        PHASES["blocked, stable gone"](life)
        before = objects(life)
        ground.cluster.delete(ROLLOUTS, life.namespace, NAME)
        life.until(lambda: gone(life) or life.status.release_at is not None, "limit that can be read", 10)
        took = life.until(lambda: gone(life), "end of the object", RELEASE_SECONDS + GONE_WITHIN)
        assert objects(life) == before
        life.until(lambda: {"ReleasedUnfinished", "LeftInPlace"} <= dict(events(life)).keys(), "Events", 10)
        told = dict(events(life))
        assert "v1 has no ready endpoint" in told["ReleasedUnfinished"]
        assert "is at v1 80 / v2 20" in told["ReleasedUnfinished"], told
        assert "subset v2 in reviews" in told["LeftInPlace"]
    assert took > RELEASE_SECONDS / 2
    seen = f"released after {took:.1f} s (limit {RELEASE_SECONDS:g} s); Events name what stays, and why"
    table.append(Row("deletion, stable version gone for good", "at the first step", 1, seen))


def test_an_object_whose_status_cannot_be_read_is_let_go_in_time(ground: Ground, table: list[Row]) -> None:
    with new_life(ground) as life:
        life.start()
        PHASES["holding"](life)
        life.until_quiet()
        with anything_goes(ground, life):
            ground.cluster.merge(ROLLOUTS, life.namespace, f"{NAME}/status", {"status": {"phase": "Baking"}})
        life.until(lambda: "StatusUnreadable" in dict(events(life)), "Event", 20)
        before = objects(life)
        ground.cluster.delete(ROLLOUTS, life.namespace, NAME)
        took = life.until(lambda: gone(life), "end of the object", RELEASE_SECONDS + GONE_WITHIN)
        assert objects(life) == before
        assert shares(before[VIRTUAL_SERVICES[1]])["v2"] == MIDDLE
        life.until(lambda: "ReleasedUnfinished" in dict(events(life)), "Event", 10)
        told = dict(events(life))["ReleasedUnfinished"]
        assert "in VirtualService reviews and DestinationRule reviews, which stay as they are" in told
        assert "Baking" in told
    assert took > RELEASE_SECONDS / 2
    seen = f"released after {took:.1f} s (limit {RELEASE_SECONDS:g} s); an Event names where to look"
    table.append(Row("deletion, status that cannot be read", f"at {MIDDLE} %", 1, seen))


@contextmanager
def namespace_controller(lab: Lab) -> Iterator[None]:
    """Kubernetes' own namespace controller, and none of the others."""

    def command(site: Site) -> Command:
        config = str(lab.kubeconfig)
        return Command(
            (
                str(site.tools["kube-controller-manager"]), f"--kubeconfig={config}",
                f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
                "--controllers=namespace-controller", "--leader-elect=false", f"--bind-address={LOOPBACK}",
                f"--cert-dir={site.data('namespaces-certs')}", f"--secure-port={site.ports['namespaces.https']}",
            )
        )  # fmt: skip

    def waiting_for(site: Site) -> str:
        ca = site.directory / "namespaces-certs" / "kube-controller-manager.crt"
        return probe.waiting_for(f"https://{site.address('namespaces.https')}/healthz", contains="ok", ca=ca)

    part = Part("namespaces", "kube-controller-manager", command, waiting_for, ("https",), grace=2.0)
    with Lab(f"namespaces-{uuid4().hex[:8]}", (), extra=(part,)) as controller:
        yield
    controller.forget()


def delete_with_namespace(ground: Ground, case: Case) -> float:
    """Delete the whole namespace, and return how long it took to go."""
    with new_life(ground) as life:
        life.start()
        WHERE[case.phase](life)
        if case.away:
            kill(life)
        ground.lab.kubectl("delete", "namespace", life.namespace, "--wait=false")
        WHERE[case.phase].let_go(life) if case.phase in ("promoting", "rolling back") else None
        if case.away:
            time.sleep(1)
            life.start()
        return life.until(lambda: namespace_gone(ground, life.namespace), "end of the namespace", NAMESPACE_WITHIN)


def namespace_gone(ground: Ground, name: str) -> bool:
    """Whether a namespace does not exist any more."""
    site = ground.lab.site
    headers = {"Authorization": f"Bearer {site.tokens['admin']}"}
    url = f"{site.apiserver_url}/api/v1/namespaces/{name}"
    return requests.get(url, headers=headers, verify=str(site.apiserver_ca), timeout=10).status_code == 404


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_whole_namespace_goes_at_every_phase(ground: Ground, table: list[Row]) -> None:
    with namespace_controller(ground.lab):
        seconds = run(CASES, lambda case: delete_with_namespace(ground, case))
    note(table, "deletion of the whole namespace", CASES, seconds, "nothing of it is left")
