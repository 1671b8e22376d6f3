"""Processes that are found again, and ended, whatever happened to the one who started them.

Each process records itself before it becomes the tool: a two-line shell writes its own line of ``/proc`` to a file and
then *becomes* the tool (``exec``), so there is no moment at which a part runs unrecorded. A record holds the start time
beside the process id. A recycled id has another start time, so it is never mistaken for ours and never signalled.

Records are plain files, one per process, so ``down`` needs nothing but the directory. For labs that must not outlive
the program that opened them, `Guard` keeps a helper process on the other end of a pipe: when the program goes away,
in whatever manner, the pipe closes and the helper ends what is recorded. (The kernel's own "signal on parent's death"
fires when the starting *thread* ends, which a test runner's threads do all the time.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError, PartFailed
from lab.paths import REPO_DIR

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RECORD_SELF = """\
read -r stat < /proc/$$/stat
read -r boot < "$1"
printf '%s\\n%s\\n' "$stat" "$boot" > "$2"
shift 2
exec "$@"
"""
_TAIL_BYTES = 65_536
_DISMISSED = b"dismissed"
_LAST_THREAD = 2.0
_ADDRESS_IN_USE = ("address already in use", "address in use", "errno 98", "failed to bind")


@dataclass(frozen=True)
class Record:
    """Identity of one process: its id means nothing without start time and boot.

    Attributes:
        pid: process id.
        start_ticks: field 22 of ``/proc/PID/stat``: clock ticks from boot to the start of the process (proc(5)).
        boot: the kernel's id of the boot that both belong to.
    """

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def parse(cls, text: str) -> Record | None:
        """Read a record back; None when it is cut short (its writer was killed while writing)."""
        lines = text.splitlines()
        if len(lines) < 2 or not text.endswith("\n"):
            return None
        stat = _parse_stat(lines[0])
        return None if stat is None else cls(stat.pid, stat.start_ticks, lines[1].strip())

    @classmethod
    def of(cls, pid: int) -> Record | None:
        """The record of a running process; None when there is none or it is a zombie."""
        try:
            stat = _parse_stat(Path(f"/proc/{pid}/stat").read_text())
        except OSError:
            return None
        if stat is None or stat.state in "ZX":
            return None
        return cls(pid, stat.start_ticks, _BOOT_ID.read_text().strip())

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Record.of(self.pid) == self

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; say whether it was still there."""
        try:
            # The descriptor pins the process: between check and signal the id cannot pass to another one.
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


@dataclass(frozen=True)
class _Stat:
    pid: int
    state: str
    start_ticks: int


def _parse_stat(line: str) -> _Stat | None:
    # The command name in parentheses may itself hold spaces and parentheses: count from the last one.
    head, _, tail = line.rpartition(")")
    fields = tail.split()
    try:
        return _Stat(int(head.split(" ", 1)[0]), fields[0], int(fields[19]))
    except (ValueError, IndexError):
        return None


class Processes:
    """The processes recorded in one directory.

    Args:
        directory: holds ``pids/``, made when needed.
        logs: where each process' log goes; ``logs/`` beside ``pids/`` by default.
    """

    def __init__(self, directory: Path, logs: Path | None = None) -> None:
        self.directory = directory
        self.logs = logs or directory / "logs"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        """Path of the log file of a process."""
        return self.logs / f"{name}.log"

    def _record_path(self, name: str) -> Path:
        return self.directory / "pids" / name

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
        """Start a process in a session of its own, recorded and logged under its name.

        Raises:
            LabError: a process of that name is still running, or the program cannot be executed.
        """
        if self.alive(name):
            raise LabError(f"{name} is running already (process {self.pid(name)})")
        record = self._record_path(name)
        for path in (record, self.log(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        with self.log(name).open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(argv)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                ["/bin/sh", "-c", _RECORD_SELF, "record", str(_BOOT_ID), str(record), *argv],
                env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._children[name] = child
        deadline = time.monotonic() + 10
        while self.record(name) is None:
            if child.poll() is not None or time.monotonic() > deadline:
                raise PartFailed(name, self.obituary(name, "did not start"))
            time.sleep(0.005)

    def record(self, name: str) -> Record | None:
        """The record of a process; None when it never started or was stopped."""
        try:
            return Record.parse(self._record_path(name).read_text())
        except OSError:
            return None

    def pid(self, name: str) -> int | None:
        """Process id of a running process."""
        record = self.record(name)
        return record.pid if record is not None and record.alive() else None

    def names(self) -> list[str]:
        """Names of all recorded processes, oldest first, dead ones among them."""
        directory = self.directory / "pids"
        if not directory.is_dir():
            return []
        records = {path.name: self.record(path.name) for path in directory.iterdir()}
        return sorted(records, key=lambda name: (record.start_ticks if (record := records[name]) else 0, name))

    def alive(self, name: str) -> bool:
        """Whether the process runs."""
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            return False
        return self.pid(name) is not None

    def stop(self, names: Iterable[str], grace: float = 5.0) -> None:
        """End processes together: SIGTERM, and SIGKILL for those still there after ``grace`` seconds.

        Raises:
            LabError: one survives even that (stuck in the kernel); its record is kept.
        """
        records = {name: record for name in names if (record := self.record(name)) is not None}
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            waiting = [name for name, record in records.items() if record.signal(number)]
            deadline = time.monotonic() + patience
            while (waiting := [name for name in waiting if self._running(name, records[name])]) and (
                time.monotonic() < deadline
            ):
                time.sleep(0.01)
            if not waiting:
                break
        else:
            pids = ", ".join(f"{name} ({records[name].pid})" for name in waiting)
            raise LabError(f"these processes do not end even on SIGKILL: {pids}")
        for name, record in records.items():
            # Another program may have started a process under this name in the meantime.
            if self.record(name) == record:
                self._record_path(name).unlink(missing_ok=True)
            self._children.pop(name, None)

    def _running(self, name: str, record: Record) -> bool:
        child = self._children.get(name)
        if child is not None:
            child.poll()  # reaps it
        return record.alive()

    def stop_all(self, grace: float = 5.0) -> None:
        """End everything recorded here, dead records included."""
        self.stop(self.names(), grace)

    def tail(self, name: str, lines: int = 15) -> list[str]:
        """Last lines of a log."""
        try:
            with self.log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    def exit_status(self, name: str) -> str:
        """How a process of ours ended, for people; empty when unknown or still running."""
        child = self._children.get(name)
        if child is None:
            return ""
        try:
            # One with many threads is dead before its last thread has gone, and only then has it a status.
            code = child.wait(0 if self.pid(name) is not None else _LAST_THREAD)
        except subprocess.TimeoutExpired:
            return ""
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"

    def obituary(self, name: str, what: str) -> str:
        """An error message that names the process, says what happened, and shows the end of its log."""
        status = self.exit_status(name)
        tail = "\n".join(f"    {line}" for line in self.tail(name)) or "    (its log is empty)"
        return f"{name} {what}{f' ({status})' if status else ''}; the end of {self.log(name)}:\n{tail}"

    def address_in_use(self, name: str) -> bool:
        """Whether the end of a log says that a port was taken."""
        text = "\n".join(self.tail(name, 60)).lower()
        return any(sign in text for sign in _ADDRESS_IN_USE)


class Guard:
    """Ends the processes recorded in a directory when this program goes away without having done so.

    Args:
        directory: as given to `Processes`.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "guard.log").open("ab") as log:
            self._helper = subprocess.Popen(
                [sys.executable, "-m", "lab.process", str(directory)],
                cwd=REPO_DIR, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def dismiss(self) -> None:
        """Send the helper away: nothing is left to end, or what is left shall stay."""
        if self._helper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._helper.stdin.write(_DISMISSED)
                self._helper.stdin.close()
        self._helper.wait(timeout=60)


def _guard(directory: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.stdin.buffer.read() != _DISMISSED:
        Processes(directory).stop_all(grace=2.0)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
