"""Where the lab keeps things: built tools in the user's cache, running labs beside the code.

Tools are expensive (half an hour of compiling) and the same for every clone, so they live in the user's cache
directory. A running lab is cheap, private to one clone, and thrown away, so it lives in ``lab/.run/<name>/`` where it
is easy to find.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lab.errors import LabError

LAB_DIR = Path(__file__).resolve().parent
REPO_DIR = LAB_DIR.parent
MODULES_DIR = LAB_DIR / "tools"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def cache_dir() -> Path:
    """Directory of everything built or fetched once per user; follows ``XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification asks to ignore relative paths.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "canaryrollout-lab"


def run_dir(name: str) -> Path:
    """State directory of the lab called ``name``.

    Raises:
        LabError: the name is not a lower-case DNS label of at most 40 characters.
    """
    if not _NAME.fullmatch(name):
        raise LabError(
            f"{name!r} is no name for a lab: use up to 40 lower-case letters, digits and dashes, e.g. 'demo-2'"
        )
    return LAB_DIR / ".run" / name
