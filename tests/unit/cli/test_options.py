"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from canaryrollout.cli.options import moment

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2026-01-31T09:30:00Z", datetime(2026, 1, 31, 9, 30, tzinfo=UTC)),
        ("2026-01-31T09:30:00.250+01:00", datetime(2026, 1, 31, 8, 30, 0, 250_000, tzinfo=UTC)),
        ("2026-01-31 09:30:00Z", datetime(2026, 1, 31, 9, 30, tzinfo=UTC)),
        ("now", NOW),
        ("-2h", NOW - timedelta(hours=2)),
        ("90m ago", NOW - timedelta(minutes=90)),
        ("1h30m ago", NOW - timedelta(minutes=90)),
    ],
)
def test_times(text: str, found: datetime) -> None:
    assert moment(text, NOW) == found


@pytest.mark.parametrize("text", ["yesterday", "2026-01-31T09:30:00", "2026-01-31", "", "2h", "12:00"])
def test_what_is_no_time_is_told_what_would_be(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="2026-01-31T12:00:00Z, or '2h ago', or -2h"):
        moment(text, NOW)


def test_what_is_no_duration() -> None:
    with pytest.raises(typer.BadParameter, match="'two-hours' must be a duration"):
        moment("two-hours ago", NOW)
