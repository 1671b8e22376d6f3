"""The state file and lock of a lab: who has it, where it listens, and whether it came up."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from lab.controlplane import write_private
from lab.errors import LabError


@dataclass
class State:
    """What is known about a lab between commands.

    Attributes:
        parts: names of its parts, in start order.
        ports: port by ``part.listener``.
        tools: path by tool name.
        tokens: bearer token by user.
        options: see `lab.site.Options`.
        standing: whether it outlives the program that started it.
        kind: see `lab.kinds.Kind`.
        complete: whether everything became ready.
    """

    parts: list[str]
    ports: dict[str, int]
    tools: dict[str, str]
    tokens: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    standing: bool = False
    kind: str = "none"
    complete: bool = False

    def write(self, directory: Path) -> None:
        """Write the state file; it holds tokens, so only its owner may read it."""
        directory.mkdir(parents=True, exist_ok=True)
        write_private(directory / "state.json", json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, directory: Path) -> State | None:
        """Read the state file; None when there is none or it is from another version of the lab."""
        try:
            return cls(**json.loads((directory / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


class Lock:
    """Exclusive hold on a lab's name; the kernel lets go of it when its holder dies.

    Args:
        directory: state directory of the lab; the lock file lies beside it, because the directory is replaced.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory.with_name(f"{directory.name}.lock")
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LabError: another living process holds it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            name = self._path.stem
            raise LabError(
                f"the lab {name!r} is being used by {holder}: wait for it, "
                "end it, or choose another name (--name, LAB_NAME)"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} ({_command_line()})")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the lock file of a lab whose name will not be used again."""
        self._path.unlink(missing_ok=True)


def _command_line() -> str:
    raw = Path(f"/proc/{os.getpid()}/cmdline").read_bytes()
    return " ".join(raw.decode(errors="replace").split("\0")).strip()[:120]
