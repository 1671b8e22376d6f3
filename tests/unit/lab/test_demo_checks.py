"""Every promise of the demo, kept and broken: a check that cannot fail proves nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.demo.checks import Check, checks
from lab.demo.facts import (
    BreachFacts,
    DemoFacts,
    Failures,
    ObjectFacts,
    Outcome,
    RequestFacts,
    RolloutFacts,
    StepFacts,
    UndoFacts,
)
from lab.demo.report import as_dict, print_summary, write_report

OBJECTS = (ObjectFacts("VirtualService", "reviews", altered=("+ weight: 0",), writes=5),)
PROMOTED = RolloutFacts(
    title="v1 → v2",
    stable="v1",
    canary="v2",
    expected=Outcome.PROMOTED,
    outcome=Outcome.PROMOTED,
    expected_weights=(10, 100),
    explanation="v2 serves",
    began_at=100.0,
    ended_at=140.0,
    interval=2.0,
    steps=(
        StepFacts(10, 101.0, 102.0, 110.0, requests=1600, canary=165),
        StepFacts(100, 110.0, 111.0, 140.0, requests=800, canary=800),
    ),
    requests=RequestFacts(sent=8000),
    objects=OBJECTS,
)
TAKEN_BACK = RolloutFacts(
    title="v2 → v3",
    stable="v2",
    canary="v3",
    expected=Outcome.TAKEN_BACK,
    outcome=Outcome.TAKEN_BACK,
    expected_weights=(),
    explanation="error rate 4 % (4/100): limit 0.25 %, evidence 312 > 40",
    began_at=140.0,
    ended_at=160.0,
    interval=2.0,
    steps=(StepFacts(10, 141.0, 142.0, 150.0, requests=1600, canary=150),),
    breach=BreachFacts(
        visible_at=148.0, message="error rate 4 % (4/100): limit 0.25 %, evidence 312 > 40", zero_at=150.9
    ),
    requests=RequestFacts(sent=4000, injected=6),
    objects=OBJECTS,
)
GOOD = DemoFacts(
    began_at=95.0,
    ended_at=161.0,
    rate=200.0,
    rollouts=(PROMOTED, TAKEN_BACK),
    requests=RequestFacts(sent=13000, injected=6),
    undo=UndoFacts(moments=200),
)


def broken(demo: DemoFacts) -> list[Check]:
    return [check for check in checks(demo) if not check.holds]


def with_rollout(number: int, **changes: Any) -> DemoFacts:
    rollouts = list(GOOD.rollouts)
    rollouts[number] = replace(rollouts[number], **changes)
    return replace(GOOD, rollouts=tuple(rollouts))


def with_step(number: int, index: int, **changes: Any) -> DemoFacts:
    steps = list(GOOD.rollouts[number].steps)
    steps[index] = replace(steps[index], **changes)
    return with_rollout(number, steps=tuple(steps))


def test_a_good_demo_keeps_every_promise() -> None:
    found = checks(GOOD)
    assert [check for check in found if not check.holds] == []
    assert {check.subject for check in found} == {"v1 → v2", "v2 → v3", "all"}


@pytest.mark.parametrize(
    ("demo", "subject", "said"),
    [
        pytest.param(with_rollout(0, outcome=Outcome.TAKEN_BACK), "v1 → v2", "ends promoted", id="not promoted"),
        pytest.param(with_rollout(0, outcome=Outcome.UNFINISHED), "v1 → v2", "ends promoted", id="never finished"),
        pytest.param(with_rollout(1, outcome=Outcome.PROMOTED), "v2 → v3", "ends taken back", id="not taken back"),
        pytest.param(
            with_rollout(0, expected_weights=(10, 30, 100)), "v1 → v2", "steps 10, 30, 100", id="step left out"
        ),
        pytest.param(with_step(0, 0, canary=114), "v1 → v2", "at 10 %", id="share too low"),
        pytest.param(with_step(0, 0, canary=210), "v1 → v2", "at 10 %", id="share too high"),
        pytest.param(with_step(0, 1, canary=799), "v1 → v2", "at 100 %", id="a single request astray at 100 %"),
        pytest.param(with_step(1, 0, canary=0), "v2 → v3", "at 10 %", id="share of a version taken back"),
        pytest.param(with_step(0, 0, in_effect_at=None), "v1 → v2", "never seen in effect", id="never in effect"),
        pytest.param(with_step(0, 0, requests=0, canary=0), "v1 → v2", "no request", id="no requests at a step"),
        pytest.param(with_rollout(1, steps=()), "v2 → v3", "never had any weight", id="no steps at all"),
        pytest.param(
            with_rollout(1, breach=BreachFacts(148.0, "failed", 151.1)), "v2 → v3", "3.10 s", id="taken back too late"
        ),
        pytest.param(with_rollout(1, breach=None), "v2 → v3", "no breach was seen", id="breach not looked for"),
        pytest.param(
            with_rollout(1, breach=BreachFacts(None, "", 150.0)), "v2 → v3", "no breach was seen", id="breach not seen"
        ),
        pytest.param(
            with_rollout(1, breach=BreachFacts(148.0, "failed", None)), "v2 → v3", "never came to 0", id="weight not 0"
        ),
        pytest.param(
            with_rollout(0, objects=(replace(OBJECTS[0], diff=("- timeout: 10s",)),)),
            "v1 → v2",
            "VirtualService reviews: - timeout: 10s",
            id="something else was touched",
        ),
        pytest.param(with_rollout(0, objects=()), "v1 → v2", "no mesh object", id="no objects to compare"),
        pytest.param(
            replace(GOOD, requests=RequestFacts(13000, 6, lost=(Failures(1, None, 503, "no healthy upstream", "UH"),))),
            "all",
            "1 x status 503, from no version, UH, no healthy upstream",
            id="a request lost by the mesh",
        ),
        pytest.param(
            replace(GOOD, requests=RequestFacts(13000, 6, failed=(Failures(2, "v2", 500),))),
            "all",
            "2 x status 500, from v2",
            id="a failure that nobody asked for",
        ),
        pytest.param(replace(GOOD, requests=RequestFacts()), "all", "no request was sent", id="no load"),
        pytest.param(
            replace(GOOD, undo=UndoFacts(200, ("DestinationRule reviews at resourceVersion 9: + name: v3",))),
            "all",
            "+ name: v3",
            id="a change that was not recorded",
        ),
        pytest.param(replace(GOOD, undo=UndoFacts()), "all", "nothing was looked at", id="no moments looked at"),
        pytest.param(replace(GOOD, gaps=("watch broke",)), "all", "watch broke", id="the witness looked away"),
    ],
)
def test_each_promise_can_be_broken(demo: DemoFacts, subject: str, said: str) -> None:
    found = broken(demo)
    assert [check.subject for check in found] == [subject]
    assert said in f"{found[0].promise}: {found[0].found}"


@pytest.mark.parametrize(("canary", "holds"), [(113, False), (114, False), (115, True), (208, True), (209, False)])
def test_the_share_is_held_against_the_binomial_interval(canary: int, holds: bool) -> None:
    # Binomial(1600, 0.1): at most 114 and at least 209 have less than 0.005 % each.
    assert (broken(with_step(0, 0, canary=canary)) == []) is holds


@pytest.mark.parametrize(("seconds", "holds"), [(0.5, True), (3.0, True), (3.01, False)])
def test_an_interval_and_a_second_are_allowed_from_breach_to_weight_zero(seconds: float, holds: bool) -> None:
    demo = with_rollout(1, breach=BreachFacts(0.0, "failed", seconds))
    assert (broken(demo) == []) is holds


def test_the_report_has_every_number(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.json"
    write_report(path, GOOD, checks(GOOD))
    report = json.loads(path.read_text())
    assert report["passed"] is True
    assert [rollout["outcome"] for rollout in report["rollouts"]] == ["promoted", "taken back"]
    assert report["rollouts"][0]["steps"][0] == {
        "weight": 10,
        "requestedShare": 0.1,
        "observedShare": 0.10312,
        "requests": 1600,
        "canaryRequests": 165,
        "canaryRequestsExpected": {"from": 115, "to": 208},
        "writtenAt": "1970-01-01T00:01:41.000Z",
        "inEffectAt": "1970-01-01T00:01:42.000Z",
        "until": "1970-01-01T00:01:50.000Z",
    }
    assert report["rollouts"][1]["breach"]["seconds"] == 2.9
    assert report["rollouts"][1]["requestsLostToTheMesh"] == 0
    assert report["rollouts"][0]["objects"][0]["diffWithoutOurFields"] == []
    assert len(report["checks"]) == len(checks(GOOD))


def test_a_report_with_nothing_in_effect_can_be_written() -> None:
    demo = with_step(0, 0, in_effect_at=None, requests=0, canary=0)
    report = as_dict(demo, checks(demo))
    assert report["passed"] is False
    assert report["rollouts"][0]["steps"][0]["observedShare"] is None


@pytest.mark.parametrize(
    ("demo", "expected"),
    [(GOOD, "ok"), (with_rollout(0, outcome=Outcome.UNFINISHED), "FAIL v1 → v2: ends promoted  (unfinished")],
)
def test_the_summary_names_what_failed(demo: DemoFacts, expected: str) -> None:
    console = Console(file=StringIO(), width=120)
    print_summary(console, demo, checks(demo))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert expected in text
    assert ("FAIL" in text) is (demo is not GOOD)
