"""Rollouts that others are in the way of: on the same host, or with objects that nobody should have written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

import pytest

from canaryrollout.adapters.istio_patch import without_server_fields
from canaryrollout.adapters.kube import FIELD_MANAGER
from canaryrollout.api.resource import read_rollout
from canaryrollout.api.status import CanaryRolloutStatus, Phase
from tests.faults.cluster import ROLLOUTS, VIRTUAL_SERVICES
from tests.faults.life import ANALYSIS, NAME, STEPS, TIMINGS, Ground, Life, new_life
from tests.faults.obstacles import ASK_AT_20
from tests.faults.phases import edit, events, listed, reason
from tests.faults.phases import objects as objects_of
from tests.faults.rows import Row
from tests.faults.schemas import anything_goes
from tests.hostile import is_json, nested, put, rollout, spoiled, statuses

pytestmark = pytest.mark.cluster

OTHER: Final = "other"
MANY: Final = 50
PATIENT: Final = {"timings": {**TIMINGS, "blockedRetry": "1h"}}
"""Nobody looks again by itself, so that what is counted has the cause that it is counted for."""
SLACK_SECONDS: Final = 5.0
"""What a rollout beside hostile objects may take longer: a block of evidence or two on a busy machine."""


def create(life: Life, name: str, **fields: Any) -> None:
    """Create a CanaryRollout for the host of a life, under another name than the life's own."""
    spec = {
        "version": "v2",
        "host": NAME,
        "istio": {"virtualServices": [{"name": NAME}], "destinationRule": {"name": NAME}},
        "steps": [{"weight": weight} for weight in STEPS],
        "hold": "0s",
        "analysis": ANALYSIS,
        **fields,
    }
    put_object(life, name, spec)


def put_object(life: Life, name: str, spec: Any) -> None:
    """Create a CanaryRollout with whatever spec."""
    document = {"apiVersion": "canaryrollout.io/v1alpha1", "kind": "CanaryRollout", "metadata": {"name": name}}
    life.ground.cluster.create(ROLLOUTS, life.namespace, {**document, "spec": spec})


def status(life: Life, name: str) -> CanaryRolloutStatus:
    """The newest status of a CanaryRollout of this name."""
    return life.status_of(life.ground.witness.latest(ROLLOUTS, life.namespace, name))


def refused(life: Life, name: str, judge: str) -> bool:
    """Whether a CanaryRollout is told that another judges its host."""
    found = status(life, name)
    return found.phase is Phase.BLOCKED and found.message.startswith(f"{life.namespace}/{judge} judges host")


def first_and_second(ground: Ground, first: str, second: str, moving: bool) -> float:
    """Let a second rollout come to a host, at rest or on the move, and inherit it; return how soon it does."""
    with new_life(ground) as life:
        life.start()
        create(life, first, version="v2" if moving else "v1", steps=ASK_AT_20)
        phase, weight = (Phase.PAUSED, STEPS[0]) if moving else (Phase.STABLE, 0)
        life.until(lambda: status(life, first).phase is phase, "first at rest, or waiting for a person")
        time.sleep(1.1)  # creation times are whole seconds; within one, uids decide
        create(life, second)
        life.until(lambda: refused(life, second, first), "second refused")
        life.until_quiet()
        assert (status(life, first).phase, life.weight) == (phase, weight)
        began = time.monotonic()
        ground.cluster.delete(ROLLOUTS, life.namespace, first)
        life.until(lambda: status(life, second).stable_version == "v1", "second in its place", 10)
        took = time.monotonic() - began
        life.until(lambda: status(life, second).stable_version == "v2", "promotion by the second")
        assert life.weights() == [0, *([weight, 0] if moving else []), *STEPS], life.story()
        return took


def test_of_two_on_one_host_the_second_waits_and_inherits(ground: Ground, table: list[Row]) -> None:
    cases = [(*order, moving) for order in ((NAME, OTHER), (OTHER, NAME)) for moving in (False, True)]
    with ThreadPoolExecutor(len(cases)) as pool:
        times = list(pool.map(lambda case: first_and_second(ground, *case), cases))
    seen = f"the second is Blocked and names the first; {max(times):.1f} s after its deletion at most it takes over"
    table.append(Row("two CanaryRollouts on one host", "in either order, at rest and at a step", len(cases), seen))


def test_another_rollout_that_writes_the_same_virtual_service_ends_no_raise(ground: Ground, table: list[Row]) -> None:
    """It has a route of its own there; all that this one sees of it is that the operator wrote the object last."""
    with new_life(ground) as life:
        life.start()
        for number, weight in enumerate(STEPS):
            late = life.rule("patch virtualservices n=1 hang")
            if number == 0:
                life.begin(
                    steps=[*({"weight": weight, "approval": "Required"} for weight in STEPS[:2]), {"weight": 100}]
                )
            else:
                life.until(lambda: reason(life) == "AwaitingApproval", "question for approval")
                life.command(f"approve/v2/{number}")
            life.until(lambda: late.hits, "raise on its way")  # noqa: B023
            life.until(lambda: (r := life.status.rollout) and r.target and r.target.weight == weight, "raise")  # noqa: B023
            found = ground.cluster.get(VIRTUAL_SERVICES, life.namespace, NAME)
            http = [{**route, "timeout": f"{number + 1}s"} for route in found["spec"]["http"]]
            ground.cluster.merge(VIRTUAL_SERVICES, life.namespace, NAME, {"spec": {"http": http}}, FIELD_MANAGER)
            life.proxy.retire(late)  # what was held goes on
            life.until(lambda: life.weight == weight, "weight")  # noqa: B023
        life.until(lambda: life.ended, "end")
        assert life.status.stable_version == "v2", life.story()
        assert life.weights() == [0, *STEPS], life.story()
        conflicts = [e for e in life.proxy.entries("patch virtualservices") if not e.applied]
        assert len(conflicts) == len(STEPS), life.story()
    seen = f"{len(conflicts)} conflicts, promoted"
    table.append(Row("another CanaryRollout writes the same VirtualService", "at each raise", len(STEPS), seen))


def test_who_may_not_judge_a_host_keeps_it_from_nobody(ground: Ground, table: list[Row]) -> None:
    """A tenant names another's Service, which is refused, and was there first; one even writes a status of its own."""
    with new_life(ground) as life:
        tenant = life.neighbor()
        before = ground.cluster.get(VIRTUAL_SERVICES, tenant.namespace, NAME)
        for name in ("squatter", "forger"):
            create(tenant, name, host=f"{NAME}.{life.namespace}.svc.cluster.local")
        begun = {"version": "v2", "startedAt": "2026-01-01T00:00:00Z", "weight": 50}
        forged = {"phase": "Progressing", "stableVersion": "v1", "weight": 50, "rollout": begun}
        ground.cluster.merge(ROLLOUTS, tenant.namespace, "forger/status", {"status": forged})
        time.sleep(1.1)  # creation times are whole seconds; within one, uids decide
        life.start()
        took = seconds_to_promotion(life)
        for name in ("squatter", "forger"):
            life.until(lambda name=name: status(tenant, name).phase is Phase.BLOCKED, f"{name} refused")  # type: ignore[misc]
        after = ground.cluster.get(VIRTUAL_SERVICES, tenant.namespace, NAME)
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    seen = f"both are Blocked, nothing of theirs is written; the Service's own rollout is promoted in {took:.1f} s"
    table.append(Row("older CanaryRollouts elsewhere name the host", "one with a forged status", 1, seen))


def passes(life: Life) -> int:
    """How often the operator has looked at any rollout."""
    assert life.program is not None
    figures = life.program.metrics()
    return round(sum(value for (name, *_), value in figures.items() if name == "canaryrollout_passes_total"))


def spent(life: Life, doing: Callable[[], object], until: Callable[[], object]) -> tuple[int, int]:
    """Passes and requests that something costs until the operator is quiet again."""
    life.until(lambda: idle(life), "rest")
    looked, asked = passes(life), len(life.proxy.entries())
    doing()
    life.until(until, "what was waited for")
    life.until(lambda: idle(life), "rest")
    return passes(life) - looked, len(life.proxy.entries()) - asked


def idle(life: Life) -> bool:
    """Whether the operator looks at nothing any more."""
    before = passes(life)
    time.sleep(0.7)
    return passes(life) == before and life.quiet()


def crowd(ground: Ground, size: int) -> dict[str, tuple[int, int]]:
    """Let so many rollouts be on one host, and return passes and requests by what happens to one of them."""
    with new_life(ground) as life:
        life.start(**PATIENT)
        create(life, "r-000", version="v1")
        life.until(lambda: status(life, "r-000").phase is Phase.STABLE, "first at rest")
        time.sleep(1.1)
        names = [f"r-{number:03}" for number in range(1, size)]
        found = {}

        def come() -> None:
            for name in names:
                create(life, name, version="v1")

        found["all come"] = spent(life, come, lambda: all(refused(life, name, "r-000") for name in names))
        longer = {"spec": {"hold": "1s"}}
        found["one that waits is edited"] = spent(
            life,
            lambda: ground.cluster.merge(ROLLOUTS, life.namespace, names[-1], longer),
            lambda: status(life, names[-1]).observed_generation == 2,
        )
        found["the judge is edited"] = spent(
            life,
            lambda: ground.cluster.merge(ROLLOUTS, life.namespace, "r-000", longer),
            lambda: status(life, "r-000").observed_generation == 2,
        )
        found["the judge goes"] = spent(
            life,
            lambda: ground.cluster.delete(ROLLOUTS, life.namespace, "r-000"),
            lambda: sum(status(life, name).phase is Phase.STABLE for name in names) == 1,
        )
        return found


def test_many_on_one_host_cost_no_more_than_their_number(ground: Ground, table: list[Row]) -> None:
    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(lambda size: crowd(ground, size), (MANY // 2, MANY))
    for what, (looks, asked) in many.items():
        half = f"with {MANY // 2} of them {few[what][0]} and {few[what][1]}"
        seen = f"{looks} passes and {asked} requests to the API server; {half}"
        table.append(Row(f"{MANY} CanaryRollouts on one host", what, 1, seen))
    for what in ("one that waits is edited", "the judge is edited"):
        assert many[what][0] <= 5, f"{what}: {many[what]}"
    assert many["all come"][0] <= 4 * MANY, many
    assert many["the judge goes"][0] <= 3 * MANY, many


def hostile_objects() -> Iterator[tuple[Any, dict[str, Any] | None]]:
    """Specs that cannot be used, and usable ones with a status that cannot, all for the host of the healthy one."""
    good = rollout()["spec"]
    for _, _, spec in islice(spoiled(good), None, None, 41):
        if isinstance(spec, dict) and is_json(spec) and read_rollout({"spec": spec}).problems:
            yield spec, None
    yield put(good, ("steps",), nested(50)), None
    yield good | {"padding": "x" * 500_000}, None
    for found in statuses()[3:5]:
        for _, _, forged in islice(spoiled(found), None, None, 301):
            if isinstance(forged, dict) and is_json(forged) and read_rollout({"status": forged}).status_problems:
                yield good, forged


def seconds_to_promotion(life: Life) -> float:
    """Let a healthy rollout live."""
    life.begin()
    took = life.until(lambda: life.ended, "promotion")
    assert life.weights() == [0, *STEPS], life.story()
    life.check_raises()
    life.check_not_repeated()
    return took


def test_stored_objects_past_the_schema_disturb_nobody(ground: Ground, table: list[Row]) -> None:
    """An older definition let them in; the present one is in force again when the healthy rollout begins."""
    with new_life(ground) as alone, new_life(ground) as life, ThreadPoolExecutor(1) as pool:
        bad = life.neighbor()
        objects = list(hostile_objects())
        with anything_goes(ground, bad):
            for number, (spec, forged) in enumerate(objects):
                put_object(bad, f"bad-{number}", spec)
                if forged is not None:
                    ground.cluster.merge(ROLLOUTS, bad.namespace, f"bad-{number}/status", {"status": forged})
        for item in listed(bad, ROLLOUTS):
            served = read_rollout(item)
            if not (served.problems or served.status_problems):  # what was bad about it is pruned
                ground.cluster.delete(ROLLOUTS, bad.namespace, item["metadata"]["name"])
        stored = len(listed(bad, ROLLOUTS))
        before = ground.cluster.get(VIRTUAL_SERVICES, bad.namespace, NAME)
        alone.start()
        life.start()
        other = pool.submit(seconds_to_promotion, alone)  # at the same time, as busy as the machine may be
        took = seconds_to_promotion(life)
        usual = other.result()
        unanswered: list[str] = []

        def answered() -> bool:
            told = {event["involvedObject"]["name"] for event in listed(bad, ("api/v1", "events"))}
            unanswered[:] = [
                item["metadata"]["name"]
                for item in listed(bad, ROLLOUTS)
                if item["metadata"]["name"] not in told and (item.get("status") or {}).get("phase") != "Blocked"
            ]
            return not unanswered

        life.until(answered, "answer to each")
        after = ground.cluster.get(VIRTUAL_SERVICES, bad.namespace, NAME)
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "no traffic was moved"
        assert life.program is not None
        assert not [line for line in life.program.log if line.get("event") == "pass crashed"]
        goes = [item["metadata"]["name"] for item in listed(bad, ROLLOUTS)]
        for name in goes:
            ground.cluster.delete(ROLLOUTS, bad.namespace, name)
        life.until(lambda: listed(bad, ROLLOUTS) == [], "end of all of them", 30)
    assert stored > 20
    assert took < usual + SLACK_SECONDS
    seen = f"each is told; a rollout beside them took {took:.1f} s, alone {usual:.1f} s; all can be deleted"
    table.append(Row("objects past the schema", "stored under an older definition", stored, seen))


def test_an_object_that_becomes_invalid_under_way_goes_once_it_is_corrected(ground: Ground, table: list[Row]) -> None:
    """The API server refuses every write of an object past its schema, that of its finalizers too, whoever sends it."""
    with new_life(ground) as life:
        original = objects_of(life)
        life.start()
        life.begin(steps=[{"weight": STEPS[0]}, {"weight": STEPS[1], "approval": "Required"}, {"weight": 100}])
        life.until(lambda: reason(life) == "AwaitingApproval", "question for approval")
        with anything_goes(ground, life):
            ground.cluster.merge(ROLLOUTS, life.namespace, NAME, {"spec": {"hold": "soon", "steps": "many"}})
        life.until(lambda: "InvalidSpec" in dict(events(life)), "answer", 20)
        ground.cluster.delete(ROLLOUTS, life.namespace, NAME)
        refusals = ("patch canaryrollouts", "patch canaryrollouts/status")
        life.until(
            lambda: [e for e in life.proxy.entries(*refusals) if e.call.name == NAME and not e.applied], "refusal"
        )
        edit(life, hold="0s", steps=[{"weight": STEPS[0]}, {"weight": 100}])
        took = life.until(lambda: listed(life, ROLLOUTS) == [], "end of the object", 30)
        life.until_quiet()
        found = objects_of(life)
        assert {k: without_server_fields(v) for k, v in found.items()} == {
            k: without_server_fields(v) for k, v in original.items()
        }
    seen = f"an Event names the fields; gone {took:.1f} s after they were corrected, the mesh as it was"
    table.append(Row("an object that becomes invalid under way", "and is deleted", 1, seen))
