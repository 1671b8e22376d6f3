"""What was injected and what was seen: rows that tests leave behind, whether they passed or not.

A test appends `Row`s to the fixture ``table``. At its end they are put down under the test's own name in
``lab/out/faults.json``, with day and outcome, so that a run of one file renews its rows and keeps the others; a test
that failed before it had anything to say is put down all the same. `tests.faults.report` makes a page of them.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pytest

from lab.paths import REPO_DIR

RESULTS: Final = REPO_DIR / "lab" / "out" / "faults.json"
_LONGEST_PROBLEM: Final = 200


@dataclass(frozen=True)
class Row:
    """One kind of fault: what was injected, how many times, and what was seen."""

    fault: str
    injected: str
    times: int
    seen: str


class Outcome(StrEnum):
    """What became of a test."""

    PASSED = "passed"
    FAILED = "failed"
    KNOWN = "known not to hold"


@dataclass(frozen=True)
class Record:
    """What one test has to say.

    Attributes:
        day: Day of the run (UTC), as ``YYYY-MM-DD``.
        full: Whether it is a test of `make faults` alone; `make test` runs the others too.
        outcome: What became of it.
        problem: Why it failed, or is known not to hold; one line.
        rows: Its rows.
    """

    day: str
    full: bool
    outcome: Outcome
    problem: str
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Record:
        """Read a record as it is kept."""
        rows = tuple(Row(**row) for row in fields["rows"])
        return cls(fields["day"], fields["full"], Outcome(fields["outcome"]), fields["problem"], rows)


Records = dict[str, Record]
"""Records by test, as pytest names it: ``tests/faults/test_x.py::test_y[case]``."""


def read(path: Path) -> Records:
    """Read records; there are none where there is no such file, or one of another making."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {test: Record.of(fields) for test, fields in found.items()} if isinstance(found, dict) else {}


def write(path: Path, records: Records) -> None:
    """Write records, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({test: asdict(records[test]) for test in sorted(records)}, indent=2) + "\n")
    fresh.replace(path)


def keep(path: Path, records: Records) -> None:
    """Put records in the place of older ones of the same tests; several runs may end at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(path, read(path) | records)


# --- pytest ----------------------------------------------------------------------------------------------------------

_ROWS: Final = pytest.StashKey[list[Row]]()
_RECORD: Final = "record of faults"


class Notes:
    """The records of this run. They come with the reports of tests, from whichever process ran those."""

    def __init__(self) -> None:
        self._records: Records = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test has to say, at once: a run that is broken off leaves what it saw."""
        for name, value in report.user_properties:
            if name == _RECORD and report.when == "call" and isinstance(value, str):
                record = Record.of(json.loads(value))
                self._records[report.nodeid] = record
                keep(RESULTS, {report.nodeid: record})

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show what was injected and seen."""
        if not self._records:
            return
        terminalreporter.section("faults")
        for test, record in self._records.items():
            if record.outcome is not Outcome.PASSED:
                terminalreporter.write_line(f"{record.outcome}: {test}: {record.problem}")
            for row in record.rows:
                terminalreporter.write_line(f"{row.fault}: {row.injected}, {row.times} times: {row.seen}")


def pytest_configure(config: pytest.Config) -> None:
    """Take notes where the run is summed up; workers of pytest-xdist send theirs."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Notes())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run be made of such tests alone."""
    parser.addoption("--rows", action="store_true", help="run only tests that leave rows for docs/reliability.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the others out where that was asked for."""
    if config.getoption("--rows"):
        others = [item for item in items if "table" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[Row]:
    """Rows that are shown at the end of the run, and kept for the page on reliability."""
    rows: list[Row] = request.node.stash.setdefault(_ROWS, [])
    return rows


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report say what a test has to say; one that could not begin says nothing."""
    report = yield
    if call.when == "call" and (rows := item.stash.get(_ROWS, None)) is not None:
        record = _record(report, call, rows, full=item.get_closest_marker("faults") is not None)
        if record is not None:
            report.user_properties.append((_RECORD, json.dumps(asdict(record))))
    return report


def _record(report: pytest.TestReport, call: pytest.CallInfo[None], rows: list[Row], *, full: bool) -> Record | None:
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    if report.passed:
        return Record(day, full, Outcome.PASSED, "", tuple(rows))
    if report.skipped:
        known = getattr(report, "wasxfail", None)
        return None if known is None else Record(day, full, Outcome.KNOWN, str(known), tuple(rows))
    problem = f"{call.excinfo.value}".strip() if call.excinfo is not None else ""
    first = next(iter(problem.splitlines()), call.excinfo.typename if call.excinfo is not None else "failed")
    return Record(day, full, Outcome.FAILED, first[:_LONGEST_PROBLEM], tuple(rows))
