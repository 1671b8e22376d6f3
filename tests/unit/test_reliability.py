"""The page on reliability tells what the last runs saw, failures first of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import SECTIONS, existing, merged, page, section_of
from tests.faults.rows import Outcome, Record, Row, keep, read

KILL = "tests/faults/test_kill_at_every_write.py::test_killed_at_every_write[rollback]"
DRIFT = "tests/faults/test_drift.py::test_a_weight_is_edited"
OPTIONS = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
pytest_plugins = ["pytester"]


def record(*rows: Row, day: str = "2026-11-23", full: bool = True, problem: str = "", known: bool = False) -> Record:
    outcome = Outcome.KNOWN if known else Outcome.FAILED if problem else Outcome.PASSED
    return Record(day, full, outcome, problem, rows)


def row(seen: str = "same end") -> Row:
    return Row("kill -9 at a write", "before it arrives", 74, seen)


def test_a_row_tells_fault_injection_times_sight_and_run() -> None:
    text = page({KILL: record(row())})
    assert "## Kill at every write\n" in text
    assert "| kill -9 at a write | before it arrives | 74 | same end | full, 2026-11-23 |\n" in text
    assert "1 rows of 1 tests, 74 injections, last run 2026-11-23; of the tests all of them passed." in text


def test_a_failed_test_is_shown_with_what_was_seen_and_why() -> None:
    text = page({KILL: record(row("3 ended otherwise"), problem="weights were [0, 20]")})
    assert "| 3 ended otherwise; **failed**: weights were [0, 20] | full, 2026-11-23 |" in text
    assert "**1 of them failed**" in text


def test_why_a_test_failed_is_said_at_its_first_row() -> None:
    text = page({KILL: record(row("one"), row("two"), row("three"), problem="no end")})
    assert "| one; **failed**: no end |" in text
    assert text.count("; **failed**: see above |") == 2


def test_a_test_that_failed_without_a_row_is_shown_by_its_name() -> None:
    text = page({KILL: record(problem="no end within 60 s")})
    assert "| killed at every write (rollback) |  |  | **failed**: no end within 60 s | full, 2026-11-23 |" in text


def test_what_is_known_not_to_hold_is_neither_a_pass_nor_a_failure() -> None:
    text = page({KILL: record(row(), problem="as yet", known=True)})
    assert "| same end; **known not to hold**: as yet |" in text
    assert "none of them failed, 1 are known not to hold." in text


def test_quick_and_full_rows_have_the_day_of_their_own_run() -> None:
    text = page({KILL: record(row(), day="2026-11-20"), DRIFT: record(row(), full=False)})
    assert "| full, 2026-11-20 |" in text
    assert "| quick, 2026-11-23 |" in text
    assert "last run 2026-11-20 to 2026-11-23" in text


def test_what_would_break_the_table_is_written_out() -> None:
    text = page({KILL: record(row("a|b\nc <script>"))})
    assert "| a\\|b c &lt;script> |" in text


def test_a_page_without_rows_says_so() -> None:
    assert "Nothing has run yet." in page({})


def test_sections_come_in_the_order_of_the_page_and_unknown_files_last() -> None:
    text = page({DRIFT: record(row()), KILL: record(row()), "tests/faults/test_quotas.py::test_x": record(row())})
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Kill at every write", "## Drift", "## Quotas"]


@pytest.mark.parametrize(
    ("file", "section"),
    [
        ("test_prometheus_outages", "Prometheus"),
        ("test_api_server_outages", "API server"),
        ("test_kill_at_every_write", "Kill at every write"),
        ("test_change_of_mind", "Change of mind"),
        ("test_deletion_at_every_phase", "Deletion"),
        ("test_leader_election", "High availability"),
        ("test_clock_steps", "Time"),
        ("test_mesh_writes", "Mesh writes"),
        ("test_hostile", "Security"),
        ("test_security", "Security"),
    ],
)
def test_the_name_of_a_file_tells_the_section(file: str, section: str) -> None:
    assert section in SECTIONS
    assert section_of(f"tests/faults/{file}.py::test_x") == section


def test_a_run_of_one_test_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "out" / "faults.json"
    keep(path, {KILL: record(row("old")), DRIFT: record(row())})
    keep(path, {KILL: record(row("new"))})
    assert {test: found.rows[0].seen for test, found in read(path).items()} == {KILL: "new", DRIFT: "same end"}
    assert list(path.parent.glob("*.new")) == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", '[{"fault": "by an older version"}]'])
def test_results_that_cannot_be_read_are_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "faults.json"
    if text is not None:
        path.write_text(text)
    assert read(path) == {}


def test_older_results_and_empty_ones_replace_nothing() -> None:
    kept = {KILL: record(row("new"), day="2026-11-23")}
    assert merged(kept, {KILL: record(row("old"), day="2026-11-22")}) == kept
    assert merged(kept, {KILL: record()}) == kept
    failed = {KILL: record(problem="broken")}
    assert merged(kept, failed) == failed


def test_tests_and_cases_that_are_gone_lose_their_rows(tmp_path: Path) -> None:
    cases = "@pytest.mark.parametrize('x', ['old'])\ndef test_cases(x): ...\n"
    (tmp_path / "test_a.py").write_text(f"import pytest\ndef test_here(): ...\n{cases}")
    names = ["a.py::test_here", "a.py::test_her", "a.py::test_cases[old]", "a.py::test_cases[older]", "b.py::test_here"]
    found = existing({f"test_{name}": record(row()) for name in names}, tmp_path)
    assert list(found) == ["test_a.py::test_here", "test_a.py::test_cases[old]"]


def test_rows_stay_while_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def")
    assert list(existing({"test_a.py::test_x": record(row())}, tmp_path)) == ["test_a.py::test_x"]


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")], ids=["one process", "two workers"])
def test_tests_leave_their_rows_whatever_becomes_of_them(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    results = pytester.path / "faults.json"
    pytester.makeconftest(
        f"""
        import pathlib
        from tests.faults import rows
        from tests.faults.rows import *
        from tests.faults.rows import table, pytest_runtest_makereport

        rows.RESULTS = pathlib.Path({str(results)!r})

        def pytest_configure(config):
            rows.pytest_configure(config)
            config.addinivalue_line("markers", "faults: all of them")
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from tests.faults.rows import Row

        def test_passes(table):
            table.append(Row("a", "b", 1, "c"))

        @pytest.mark.faults
        def test_fails_after_a_row(table):
            table.append(Row("d", "e", 2, "f"))
            raise AssertionError("too late\\nby far")

        def test_fails_before_any(table):
            raise TimeoutError

        @pytest.mark.xfail(reason="as yet", strict=True)
        def test_known(table):
            table.append(Row("g", "h", 3, "i"))
            raise AssertionError("no")

        def test_skipped(table):
            pytest.skip("not here")

        def test_without_table():
            pass

        @pytest.fixture
        def broken():
            raise RuntimeError("no lab")

        def test_that_could_not_begin(table, broken):
            pass
        """
    )
    ran = pytester.runpytest_inprocess(*OPTIONS, *workers)
    ran.stdout.fnmatch_lines_random(["a: b, 1 times: c", "d: e, 2 times: f", "failed: *fails_before_any: TimeoutError"])
    found = {test.rpartition("::")[2]: record for test, record in read(results).items()}
    assert {test: (record.outcome.value, record.full, record.problem) for test, record in found.items()} == {
        "test_passes": ("passed", False, ""),
        "test_fails_after_a_row": ("failed", True, "too late"),
        "test_fails_before_any": ("failed", False, "TimeoutError"),
        "test_known": ("known not to hold", False, "as yet"),
    }
    assert found["test_fails_after_a_row"].rows == (Row("d", "e", 2, "f"),)
    chosen = pytester.runpytest_inprocess(*OPTIONS, "--rows", "--collect-only", "-q")
    names = [line.rpartition("::")[2] for line in chosen.outlines if "::" in line]
    assert sorted(names) == sorted([*found, "test_skipped", "test_that_could_not_begin"])
