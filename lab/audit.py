"""Asks whether a pinned dependency of the operator has a known vulnerability.

A known one fails, whoever asks. That nobody could be asked (no network, or a package index that knows nothing of
vulnerabilities, for which pip-audit has only a note in its report) fails ``make audit`` and is a remark in
``make check``, which has to work offline.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.paths import REPO_DIR

REQUIREMENTS = REPO_DIR / "requirements" / "run.txt"
_SECONDS = 120


def read_report(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return what is vulnerable, one line for each, and the names of packages that nothing is known about."""
    vulnerable, unknown = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
        for flaw in package.get("vulns", ()):
            fixed = ", ".join(flaw.get("fix_versions") or ()) or "no version yet"
            vulnerable.append(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    return vulnerable, unknown


def verdict(report: Mapping[str, Any] | None, *, lenient: bool) -> tuple[int, str]:
    """Return exit status and words.

    Args:
        report: What pip-audit found; ``None`` where it did not get so far.
        lenient: Whether it is enough that nothing bad is known.
    """
    vulnerable, unknown = read_report(report) if report is not None else ([], ["all dependencies"])
    if vulnerable:
        return 1, "audit: known vulnerabilities in requirements/run.txt\n" + "\n".join(vulnerable)
    if unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        return 0 if lenient else 2, f"audit: nothing could be learned about {shown}; is the package index reachable?"
    return 0, "audit: no known vulnerability in requirements/run.txt"


def ask() -> Mapping[str, Any] | None:
    """Run pip-audit; ``None`` where it has no answer."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "report.json"
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", str(REQUIREMENTS), "--require-hashes", "--disable-pip",
            "--progress-spinner", "off", "--timeout", "10", "--format", "json", "--output", str(file),
        ]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
            found: Mapping[str, Any] = json.loads(file.read_text())
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None
        return found


def main(arguments: list[str] | None = None) -> int:
    """Audit, say what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--lenient", action="store_true", help="succeed where nobody can be asked")
    status, words = verdict(ask(), lenient=parser.parse_args(arguments).lenient)
    print(words)
    return status


if __name__ == "__main__":
    sys.exit(main())
