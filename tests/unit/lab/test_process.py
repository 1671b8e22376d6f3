from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.errors import LabError, PartFailed
from lab.process import Guard, Processes, Record

ENVIRONMENT = {"PATH": os.environ["PATH"]}
STAT = "4711 (odd (name) x) S 1 4711 4711 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 2490368 217"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.stop_all(grace=0)


def test_record_is_parsed_from_the_line_of_proc_whatever_the_name() -> None:
    assert Record.parse(f"{STAT}\nboot-1\n") == Record(4711, 987654, "boot-1")


@pytest.mark.parametrize("text", ["", STAT, f"{STAT}\n", f"{STAT}\nboot-", "4711 (x) S\nboot\n", "nonsense\nboot\n"])
def test_record_cut_short_is_none(text: str) -> None:
    assert Record.parse(text) is None


def test_record_of_this_process_is_alive() -> None:
    record = Record.of(os.getpid())
    assert record is not None
    assert record.alive()


@pytest.mark.parametrize("changed", [{"start_ticks": 1}, {"boot": "another"}])
def test_recycled_process_id_is_neither_alive_nor_signalled(changed: dict[str, object]) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        record = Record.of(child.pid)
        assert record is not None
        recycled = replace(record, **changed)  # type: ignore[arg-type]
        assert not recycled.alive()
        assert not recycled.signal(signal.SIGKILL)
        assert child.poll() is None
        assert record.signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def test_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Record.of(child.pid) is None
    child.wait()


def test_process_records_itself_and_is_found_by_another_manager(processes: Processes, tmp_path: Path) -> None:
    processes.spawn("sleeper", ["sleep", "60"], ENVIRONMENT)
    pid = processes.pid("sleeper")
    assert pid is not None
    other = Processes(tmp_path)
    assert other.names() == ["sleeper"]
    assert other.pid("sleeper") == pid
    other.stop_all(grace=1)
    assert not processes.alive("sleeper")
    assert other.names() == []


def test_names_are_in_start_order(processes: Processes) -> None:
    for name in ("b", "a"):
        processes.spawn(name, ["sleep", "60"], ENVIRONMENT)
        assert processes.alive(name)
    assert set(processes.names()) == {"a", "b"}
    starts = [record.start_ticks for name in processes.names() if (record := processes.record(name))]
    assert starts == sorted(starts)


def test_stubborn_process_is_killed(processes: Processes) -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    )
    processes.spawn("deaf", [sys.executable, "-c", program], ENVIRONMENT)
    while "deaf" not in processes.tail("deaf"):
        pass
    processes.stop(["deaf"], grace=0.1)
    assert processes.names() == []


def test_same_name_is_not_started_twice(processes: Processes) -> None:
    processes.spawn("one", ["sleep", "60"], ENVIRONMENT)
    with pytest.raises(LabError, match=r"one is running already \(process \d+\)"):
        processes.spawn("one", ["sleep", "60"], ENVIRONMENT)


def test_obituary_names_part_status_and_last_lines(processes: Processes) -> None:
    processes.spawn("oops", ["sh", "-c", "echo first; echo 'bind: address already in use' >&2; exit 3"], ENVIRONMENT)
    while processes.alive("oops"):
        pass
    text = processes.obituary("oops", "died")
    assert text.startswith("oops died (exit status 3); the end of ")
    assert text.endswith("    first\n    bind: address already in use")
    assert processes.address_in_use("oops")


def test_missing_program_is_reported(processes: Processes) -> None:
    try:
        processes.spawn("ghost", ["/nowhere/ghost"], ENVIRONMENT)
    except PartFailed as error:
        assert "/nowhere/ghost" in str(error)  # noqa: PT017 - the record may or may not be written before exec fails
    while processes.alive("ghost"):
        pass
    assert "/nowhere/ghost" in "\n".join(processes.tail("ghost"))


def test_guard_ends_what_is_left_when_its_program_goes_away(tmp_path: Path) -> None:
    program = (
        "import sys, os; from pathlib import Path; from lab.process import Guard, Processes\n"
        f"d = Path({str(tmp_path)!r}); Guard(d); Processes(d).spawn('left', ['sleep', '60'], dict(os.environ))\n"
        "print(Processes(d).pid('left'), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert int(done.stdout) > 0, done.stderr
    while Processes(tmp_path).alive("left"):
        pass


def test_dismissed_guard_leaves_everything_running(processes: Processes, tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    processes.spawn("stays", ["sleep", "60"], ENVIRONMENT)
    guard.dismiss()
    assert processes.alive("stays")
