"""Hundreds of objects that nobody should write, past the schema, in front of the running operator."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import pytest

from canaryrollout.api import crd
from canaryrollout.api.resource import read_rollout
from tests.cluster.program import is_slowness
from tests.cluster.town import EVENTS, FORGED, SPEC, Town, create, messages
from tests.corpus import hand_written
from tests.faults.cluster import DESTINATION_RULES, ROLLOUTS, VIRTUAL_SERVICES
from tests.faults.rows import Row
from tests.hostile import is_json, rollout, spoiled, statuses

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PLACE: Final = "hostile"
PATIENCE: Final = 120.0


@dataclass(frozen=True)
class Bad:
    """A spec that cannot be used, or a usable one with a status that cannot be read."""

    name: str
    spec: Any
    status: dict[str, Any] | None = None


def corpus() -> list[Bad]:
    """What was written by hand, and junk in every other place of a good object."""
    good = rollout()["spec"]
    specs = [spec for _, spec in hand_written()]
    specs += [spec for _, _, spec in islice(spoiled(good), None, None, 13) if is_json(spec) and spec != good]
    found = [spec for spec in specs if read_rollout({"metadata": {"namespace": PLACE}, "spec": spec}).problems]
    bad = [Bad(f"bad-{number}", spec) for number, spec in enumerate(found)]
    for number, forged in enumerate(forged_statuses()):
        bad.append(Bad(f"{FORGED}{number}", good, forged))
    return bad


def forged_statuses() -> Iterator[dict[str, Any]]:
    good = rollout()["spec"]
    for status in statuses()[3:5]:
        for _, _, forged in islice(spoiled(status), None, None, 97):
            readable = not read_rollout({"spec": good, "status": forged}).status_problems
            if isinstance(forged, dict) and is_json(forged) and not readable:
                yield forged


def without_schema(town: Town) -> None:
    """Let the API server take whatever is written, as one with an older definition may have done."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    change = [{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": anything}]
    town.lab.kubectl("patch", "crd", f"{crd.PLURAL}.{crd.GROUP}", "--type=json", "-p", json.dumps(change))
    town.furnish("schema")
    deadline = time.monotonic() + 30
    while True:
        try:
            create(town.cluster, ROLLOUTS, "schema", "reviews", "no spec at all")
        except AssertionError:
            assert time.monotonic() < deadline, "the API server does not take the other schema in"
            time.sleep(0.2)
        else:
            return


def write(town: Town, bad: Bad) -> None:
    create(town.cluster, ROLLOUTS, PLACE, bad.name, bad.spec)
    if bad.status is not None:
        town.cluster.replace(ROLLOUTS, PLACE, f"{bad.name}/status", "status", bad.status)


def promotion(town: Town, namespace: str) -> float:
    """Seconds from the creation of a good rollout to its end."""
    create(town.cluster, ROLLOUTS, namespace, "reviews", SPEC)
    return town.wait(lambda: town.status(namespace).get("stableVersion") == "v2", f"{namespace} is done", PATIENCE)


def rollback(town: Town, namespace: str) -> float:
    """Seconds from the first failing request of a canary to a weight of 0."""
    create(town.cluster, ROLLOUTS, namespace, "reviews", SPEC | {"hold": "10m", "progressDeadline": "20m"})
    town.wait(lambda: town.status(namespace).get("weight") == 50, f"{namespace} is under way", PATIENCE)
    town.fail(namespace, "v2", 1.0)
    return town.wait(lambda: town.status(namespace).get("weight") == 0, f"{namespace} is taken back", PATIENCE)


def unanswered(town: Town, bad: list[Bad]) -> list[str]:
    """Those that were not told, in words about the field, why nothing comes of them.

    Where the status is not to be written, an Event says so; one that a slow API server did not take is in the log.
    """
    blocked = {
        item["metadata"]["name"]
        for item in town.cluster.list(ROLLOUTS)["items"]
        if item["metadata"]["namespace"] == PLACE
        and (status := item.get("status") or {}).get("phase") == "Blocked"
        and "spec" in str(status.get("message"))
    }
    told = {
        event["involvedObject"]["name"]
        for event in town.cluster.list(EVENTS)["items"]
        if event["reason"] == "StatusUnreadable" and "status" in event["message"]
    }
    for line in town.operator.log.read_text().splitlines():
        if '"StatusUnreadable"' in line and '"event lost"' in line:
            told.add(json.loads(line)["rollout"].partition("/")[2])
    return [one.name for one in bad if one.name not in (blocked if one.status is None else told)]


def all_answered(town: Town, bad: list[Bad]) -> float:
    """Wait for all answers; seconds that took."""
    started = time.monotonic()
    while missing := unanswered(town, bad):
        town.operator.check_alive()
        assert time.monotonic() - started < PATIENCE, f"no answer to {[o for o in bad if o.name in missing][:5]}"[:3000]
        time.sleep(0.5)
    return time.monotonic() - started


def crashes(town: Town) -> list[str]:
    """Exceptions in the log, but for an API server that is too slow for the moment."""
    lines = town.operator.log.read_text().splitlines()
    return [line for line in lines if "Traceback" in line and not is_slowness(line)]


def resident(town: Town) -> int:
    """Resident memory of the operator, in MiB."""
    record = town.operator.processes.record("operator")
    assert record is not None
    with open(f"/proc/{record.pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1]) >> 10


def test_everything_written_by_hand_is_a_problem_of_its_own() -> None:
    kinds = dict(hand_written())
    assert len(kinds) == sum(1 for _ in hand_written()), "each has a name of its own"
    metadata = {"namespace": PLACE}
    usable = [what for what, spec in kinds.items() if not read_rollout({"metadata": metadata, "spec": spec}).problems]
    assert usable == []
    assert len(kinds) > 250


def test_hostile_objects_stop_nobody_and_move_nothing(town: Town, table: list[Row]) -> None:
    bad = corpus()
    forged = [one for one in bad if one.status is not None]
    assert len(bad) > 400
    assert len(forged) > 40
    for namespace in (PLACE, "alone", "beside", "breached"):
        town.furnish(namespace)
    alone = promotion(town, "alone")
    without_schema(town)
    before = [town.cluster.get(kind, PLACE, "reviews") for kind in (VIRTUAL_SERVICES, DESTINATION_RULES)]
    memory = resident(town)

    for one in bad[::2]:
        write(town, one)
    beside = promotion(town, "beside")
    for one in bad[1::2]:
        write(town, one)
    breached = rollback(town, "breached")
    answered = all_answered(town, bad)

    after = [town.cluster.get(kind, PLACE, "reviews") for kind in (VIRTUAL_SERVICES, DESTINATION_RULES)]
    assert [item["metadata"]["resourceVersion"] for item in after] == [
        item["metadata"]["resourceVersion"] for item in before
    ], "no traffic was moved"
    assert crashes(town) == []
    said = messages(town)
    assert not set(said) & {"\x1b", "\u202e", "\u200b", "\x00"}
    grown = resident(town) - memory
    assert beside < alone + 20, f"alone it took {alone:.0f} s"
    assert breached < 20
    assert grown < 200
    table.append(
        Row(
            "malformed and hostile objects",
            f"{len(bad) - len(forged)} specs and {len(forged)} statuses past the schema",
            len(bad),
            f"each was answered with Blocked and the field or an Event, the last {answered:.0f} s after the last was "
            f"written; no route was written and nothing crashed; a good rollout was promoted in {beside:.0f} s "
            f"({alone:.0f} s without them), a breach was taken back in {breached:.1f} s; {grown} MiB more memory",
        )
    )
