"""What a watcher sees: everything that matters on a terminal, and plain lines without color elsewhere."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from canaryrollout.api.status import CanaryRolloutStatus
from lab.demo.picture import Line, Past, Picture, Sample, traffic_of
from lab.demo.view import LiveView, PlainView, render, sparkline, view
from lab.loadreport import Record

STATUS = CanaryRolloutStatus.model_validate(
    {
        "phase": "Progressing",
        "stableVersion": "v1",
        "canaryVersion": "v2",
        "step": "2/4",
        "weight": 30,
        "message": "v2 at 30 %: error rate 0 % (0/236): limit 0.25 %, evidence 0.25 of 40",
        "rollout": {"version": "v2", "startedAt": "2026-01-01T00:00:00Z", "weight": 30},
        "gates": [
            {
                "name": "errorRate",
                "verdict": "Pass",
                "message": "error rate 0 % (0/236): limit 0.25 %, evidence 0.25 of 40",
            }
        ],
    }
)
RECORDS = [
    *(Record(98.0 + n / 100, 98.01 + n / 100, "v1", 200, "", "") for n in range(70)),
    *(Record(99.0 + n / 100, 99.02 + n / 100, "v2", 500 if n < 3 else 200, "", "") for n in range(30)),
]
PICTURE = Picture(
    elapsed=42.0,
    expected=80.0,
    number=1,
    of=3,
    title="v1 → v2",
    tells="healthy: promoted step by step",
    status=STATUS,
    traffic=traffic_of(RECORDS, STATUS, ("v1", "v2", "v3"), 100.0),
    history=(Sample(10, 0.1, 0.0, 20.0), Sample(30, 0.29, 0.1, 900.0)),
    lines=(Line(3.0, "kubectl apply: spec.version is v2", "told"), Line(5.5, "WeightSet: v2 has 10 %", "event")),
    sent=8000,
    lost=0,
)


def shown(picture: Picture, width: int, height: int = 50) -> str:
    console = Console(file=StringIO(), width=width, height=height, force_terminal=False)
    console.print(render(picture, console.size))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_traffic_is_that_of_the_last_seconds() -> None:
    stable, canary = traffic_of(RECORDS, STATUS, ("v1", "v2", "v3"), 100.0)
    assert (stable.version, stable.role, stable.weight, stable.share) == ("v1", "stable", 70, 0.7)
    assert (canary.version, canary.role, canary.weight, canary.share) == ("v2", "canary", 30, 0.3)
    assert canary.errors == pytest.approx(0.1)
    assert traffic_of(RECORDS, STATUS, ("v1", "v2"), 200.0)[1].p99 is None


def test_a_canary_that_is_taken_back_is_to_have_nothing() -> None:
    record = STATUS.rollout
    assert record is not None
    status = STATUS.model_copy(update={"rollout": record.model_copy(update={"reason": "GateFailed"})})
    assert [each.weight for each in traffic_of(RECORDS, status, ("v1", "v2"), 100.0)] == [100, 0]


def test_the_picture_shows_versions_weight_share_errors_latency_gates_and_phase() -> None:
    text = shown(PICTURE, 110)
    for expected in (
        "v1 → v2", "Progressing", "step 2/4", "30 %", "30.0%", "10.0%", "errorRate", "Pass", "WeightSet: v2 has 10 %",
        "0:42 of about 1:20", "8000 requests sent, 0 lost",
    ):  # fmt: skip
        assert expected in text, f"{expected!r} is not in\n{text}"


@pytest.mark.parametrize("width", [80, 110, 200])
def test_the_picture_fits_its_width_without_cutting_numbers(width: int) -> None:
    text = shown(PICTURE, width)
    assert {len(line) for line in text.splitlines()} == {width}
    assert "…" not in text


def test_the_picture_fits_a_small_terminal() -> None:
    lines = tuple(Line(float(n), f"something {n}") for n in range(50))
    assert len(shown(replace(PICTURE, lines=lines), 110, height=30).splitlines()) <= 30


def test_plain_lines_say_what_is_new_once_and_have_no_color() -> None:
    console = Console(file=StringIO(), width=120)
    clock = iter([0.0, 0.1, 2.5])
    plain = PlainView(console, lambda: next(clock))
    plain.show(PICTURE)
    plain.show(PICTURE)
    plain.show(replace(PICTURE, lines=(*PICTURE.lines, Line(4.0, "late news"))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    assert text.count("== 1/3  v1 → v2") == 1
    assert text.count("WeightSet: v2 has 10 %") == 1
    assert text.count("late news") == 1
    assert text.count("Progressing | step 2/4, v2 weight 30 %, share 30.0%") == 2


@pytest.mark.parametrize(
    ("terminal", "plain", "kind"),
    [(True, False, LiveView), (True, True, PlainView), (False, False, PlainView), (False, True, PlainView)],
)
def test_without_a_terminal_lines_are_plain(terminal: bool, plain: bool, kind: type) -> None:
    assert isinstance(view(Console(file=StringIO(), force_terminal=terminal), plain=plain), kind)


def test_sparklines_show_whatever_is_not_zero() -> None:
    assert sparkline([0.0, 0.001, 0.5, 1.0]) == " ▁▄█"


def test_the_past_has_a_sample_a_second() -> None:
    past = Past()
    for now in (0.0, 0.5, 1.0, 1.9, 2.1):
        samples = past.note(PICTURE.traffic, now)
    assert len(samples) == 3
