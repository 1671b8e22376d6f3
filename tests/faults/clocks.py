"""Sets the wall clock of a process and of no other, by a small library that is loaded before all others."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_name("clockshift.c")


def build(directory: Path) -> Path:
    """Compile the library, and return its path; skip the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (gcc or cc), and a clock is set by a library that has to be compiled")
    library = directory / "clockshift.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)],
        check=True,
    )
    return library


class WallClock:
    """The wall clock of the processes that are started with its environment.

    Args:
        library: See `build`.
        file: Where the shift is kept.
    """

    def __init__(self, library: Path, file: Path) -> None:
        self._library = library
        self._file = file
        file.write_bytes(bytes(8))

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the process."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT": str(self._file)}

    def set(self, seconds: float) -> None:
        """Set it to so many seconds ahead of the machine's; behind where negative."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))
