"""Somebody changes their mind, at any phase: each time the rollout ends where it should, and nothing is left over.

The table says where, as the rules of the resource have it and not as the code happens to do it:

- `spec.version` is intent. Another version takes the canary back and then starts from the first step; the stable one
  takes it back. Once the canary was promoted it is the stable version, and going back is a rollout of its own.
- Status holds a weight, not an index: other steps go on from the first one above it.
- What was taken back stays so whatever is edited, until there is a new version or a `retry`.
- A pause stops raises, never a rollback, and has nothing to stop at 100 %.
- A command that means nothing where it is given is refused, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Final

import pytest

from canaryrollout.adapters.istio_patch import without_server_fields
from canaryrollout.api.status import Phase
from tests.faults.cluster import DESTINATION_RULES, ROLLOUTS, VIRTUAL_SERVICES
from tests.faults.life import NAME, STEPS, Ground, Life, new_life, shares
from tests.faults.phases import JUDGED, PHASES, check_weights, edit, objects, reason
from tests.faults.rows import Row

pytestmark = pytest.mark.cluster

AT_ONCE: Final = 3
OTHER_STEPS: Final = [{"weight": 40}, {"weight": 100}]
LAXER: Final = {**JUDGED, "minRequests": 20, "errorRate": {"max": "2%"}}
_tokens = count(1)


def commands(verb: str) -> Callable[[Life], None]:
    return lambda life: life.command(f"{verb}/v2/{next(_tokens)}")


CHANGES: Final[Mapping[str, Callable[[Life], None]]] = {
    "third version": lambda life: edit(life, version="v3"),
    "back to stable": lambda life: edit(life, version="v1"),
    "other steps": lambda life: edit(life, steps=OTHER_STEPS),
    "other gates": lambda life: edit(life, analysis=LAXER),
    "paused": lambda life: edit(life, paused=True),
    "abort": commands("abort"),
    "promote": commands("promote"),
    "retry": commands("retry"),
}
# fmt: off
# Which version serves in the end, or `back`: v2 was taken back and v1 serves. `!`: the command is refused.
#                              third  to v1  steps  gates  paused abort  promote retry
TABLE: Final = {
    "blocked, nothing known": "v3     v1     v2     v2     v2     v2!    v2!    v2!",
    "preparing":              "v3     v1     v2     v2     v2     back   v2     v2!",
    "not in effect":          "v3     v1     v2     v2     v2     back   v2     v2!",
    "holding":                "v3     v1     v2     v2     v2     back   v2     v2!",
    "awaiting approval":      "v3     v1     v2     v2     v2     back   v2     v2!",
    "paused":                 "v3     v1     v2     v2     v2     back   v2     v2!",
    "last step":              "v3     v1     v2     v2     v2     back   v2     v2!",
    "promoting":              "v3     v1     v2     v2     v2     v2!    v2!    v2!",
    "rolling back":           "v3     v1     back   back   back   back!  back!  back!",
    "rolled back":            "v3     v1     back   back   back   back!  back!  v2",
    "blocked, stable gone":   "v3     v1     back   back   back   back   back   back!",
}
# fmt: on
CELLS: Final = {
    (phase, change): end for phase, row in TABLE.items() for change, end in zip(CHANGES, row.split(), strict=True)
}
QUICK: Final = (
    ("preparing", "third version"),
    ("not in effect", "back to stable"),
    ("holding", "other steps"),
    ("awaiting approval", "paused"),
    ("last step", "abort"),
    ("promoting", "back to stable"),
    ("rolling back", "third version"),
    ("rolled back", "other gates"),
    ("blocked, stable gone", "promote"),
)
"""Every phase once, and nearly every change."""


def changed(ground: Ground, phase: str, change: str) -> None:
    """Change something about a rollout at a phase, and see to it that it ends as the table says."""
    expected = CELLS[phase, change]
    with new_life(ground) as life:
        original = objects(life)
        life.start()
        PHASES[phase](life)
        CHANGES[change](life)
        life.until(lambda: heard(life), "answer to the change")
        if change in ("abort", "promote", "retry"):
            told = life.status_of(ground.cluster.get(ROLLOUTS, life.namespace, NAME)).last_command
            assert told is not None
            assert told.result.partition(":")[0] == ("refused" if "!" in expected else "accepted"), life.story()
        if not (phase == "paused" and change == "paused"):
            PHASES[phase].let_go(life)
        if change == "paused":
            life.until(lambda: rests(life) or reason(life) in ("Paused", "AwaitingApproval"), "stop")
            edit(life, paused=False)
        see_through(life, expected.rstrip("!"))
        life.until_quiet()
        check_weights(life)
        check_remains(life, expected.rstrip("!"), original)
        assert life.program is not None
        assert [line for line in life.program.log if line.get("level") in ("error", "critical")] == [], life.story()


def heard(life: Life) -> bool:
    """Whether status answers the newest spec and the newest command."""
    rollout = life.ground.cluster.get(ROLLOUTS, life.namespace, NAME)
    status, metadata = life.status_of(rollout), rollout["metadata"]
    given = metadata.get("annotations", {}).get("canaryrollout.io/command")
    answered = status.last_command.command if status.last_command else None
    return bool(status.observed_generation == metadata["generation"] and answered == given)


def rests(life: Life) -> bool:
    """Whether the rollout has come to an end, cleaned up, and is what the spec wants or was taken back."""
    rollout = life.ground.cluster.get(ROLLOUTS, life.namespace, NAME)
    status = life.status_of(rollout)
    if rollout["metadata"].get("finalizers") or status.observed_generation != rollout["metadata"]["generation"]:
        return False
    return status.phase is Phase.ROLLED_BACK or (
        status.phase is Phase.STABLE and status.stable_version == rollout["spec"]["version"]
    )


def see_through(life: Life, expected: str) -> None:
    """Approve what is asked for, until the rollout rests; it has to rest as expected."""
    asked: set[tuple[str | None, int | None]] = set()

    def done() -> bool:
        status = life.status
        question = (status.canary_version, status.weight)
        if reason(life) == "AwaitingApproval" and question not in asked and heard(life):
            asked.add(question)
            life.command(f"approve/{status.canary_version}/{next(_tokens)}")
        return rests(life)

    life.until(done, "end")
    status = life.status_of(life.ground.cluster.get(ROLLOUTS, life.namespace, NAME))
    serves = "v1" if expected == "back" else expected
    assert status.phase is (Phase.ROLLED_BACK if expected == "back" else Phase.STABLE), life.story()
    assert status.stable_version == serves, life.story()


def check_remains(life: Life, expected: str, original: Mapping[str, object]) -> None:
    """All traffic is where it should be; of ours there is what serves, and nothing else."""
    found = objects(life)
    if expected in ("back", "v1"):
        for kind, document in found.items():
            assert without_server_fields(document) == without_server_fields(original[kind]), life.story()  # type: ignore[arg-type]
        assert life.status.changes == (), life.story()
        return
    assert shares(found[VIRTUAL_SERVICES[1]]) == {"v1": 0, expected: 100}, life.story()
    subsets = [subset["name"] for subset in found[DESTINATION_RULES[1]]["spec"]["subsets"]]
    assert subsets == ["v1", expected], life.story()


def run(ground: Ground, table: list[Row], cells: Sequence[tuple[str, str]]) -> None:
    def tried(cell: tuple[str, str]) -> str:
        try:
            changed(ground, *cell)
        except Exception as error:  # noqa: BLE001 - the rest is tried all the same
            return f"{cell[1]} while {cell[0]}: {str(error) or repr(error)}"
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = dict(zip(cells, pool.map(tried, cells), strict=True))
    for change in CHANGES:
        mine = {phase: outcome for (phase, other), outcome in outcomes.items() if other == change}
        if mine:
            wrong = sum(bool(outcome) for outcome in mine.values())
            seen = f"{wrong} ended otherwise" if wrong else "the right end, weights sum to 100, no raise without a pass"
            table.append(Row(f"change of mind: {change}", f"while {', '.join(mine)}", len(mine), seen))
    failures = [outcome for outcome in outcomes.values() if outcome]
    assert not failures, "\n\n".join(failures)


def test_a_change_of_mind_is_followed(ground: Ground, table: list[Row]) -> None:
    run(ground, table, QUICK)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_every_change_of_mind_at_every_phase_is_followed(ground: Ground, table: list[Row]) -> None:
    run(ground, table, list(CELLS))


def test_the_quick_choice_visits_nearly_everything() -> None:
    assert {phase for phase, _ in QUICK} >= PHASES.keys() - {"paused", "blocked, nothing known"}
    assert len({change for _, change in QUICK}) >= len(CHANGES) - 1
    assert TABLE.keys() == PHASES.keys()
    assert STEPS[0] < OTHER_STEPS[0]["weight"] < STEPS[1]
