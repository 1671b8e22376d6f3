"""Runs the tests of each module of the core against its mutants, and writes down those that nobody noticed.

Each mutant lives in a forked process whose import system hands out the faulty module; nothing on disk is touched. The
first failing test ends it. Usage: ``python -m tests.mutation [--minutes N] [module ...]``; mutants that are tried
already are not tried again while module and tests stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

import hypothesis.stateful
import numpy
import pydantic
import pytest
import structlog

from tests.mutation.mutants import Mutant, mutants

ROOT: Final = Path(__file__).parents[2]
DOMAIN: Final = ROOT / "operator" / "canaryrollout" / "domain"
UNIT: Final = Path("tests/unit/domain")
PAGE: Final = ROOT / "docs" / "mutation.md"
REASONS: Final = Path(__file__).with_name("reasons.toml")
CACHE: Final = ROOT / ".mutation.json"
LIVES: Final = (
    "tests/property/test_decide.py",
    "-k",
    "life or crash or deletion or abort or undoing or pinned or list",
)
PATIENCE: Final = 120
WARM: Final = (hypothesis.stateful, numpy, pydantic, structlog)
"""Imported before any fork, so that no mutant pays for them."""

MODULES: Final = (
    *("gates", "threshold", "convergence", "progress", "drift", "rollback", "cleanup"),
    *("prepare", "raising", "steps", "subsets", "routes", "changes"),
)
OWN: Final = {"gates", "threshold", "convergence", "changes", "steps"}
"""Modules whose own tests say all; the others are what whole lives are made of."""


class _Loader(importlib.abc.Loader):
    def __init__(self, code: CodeType) -> None:
        self._code = code

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, code: CodeType) -> None:
        self._name, self._code = name, code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, _Loader(self._code))


def tests_of(module: str) -> list[list[str]]:
    """Return the arguments of pytest, one list for each run: a module's own tests first."""
    own = [str(path) for name in (module, "decide") if (path := UNIT / f"test_{name}.py").exists() or name == "decide"]
    if module in OWN:
        return [[own[0]]]
    return [[*dict.fromkeys(own)], [*LIVES]]


def survives(name: str, mutant: Mutant | None, runs: list[list[str]]) -> bool:
    """Run tests in a process of its own and return whether they all passed."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.alarm(PATIENCE)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if mutant is not None:
            code = compile(mutant.tree, f"<mutant of {name}>", "exec")
            sys.meta_path.insert(0, _Finder(f"canaryrollout.domain.{name}", code))
        passed = all(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *run]) == 0 for run in runs)
        os._exit(0 if passed else 1)
    _, status = os.waitpid(child, 0)
    return status == 0


def fingerprint(module: str) -> str:
    """Return what a result depends on."""
    files = [
        DOMAIN / f"{module}.py",
        *sorted((ROOT / UNIT).glob("*.py")),
        *sorted((ROOT / "tests/property").glob("*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def main() -> None:
    """Try mutants until time is up, then write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("modules", nargs="*", default=MODULES)
    arguments.add_argument("--minutes", type=float, default=60)
    chosen = arguments.parse_args()
    end = time.monotonic() + 60 * chosen.minutes
    os.chdir(ROOT)
    known: dict[str, Any] = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    for module in chosen.modules:
        entry = known.get(module, {})
        if entry.get("of") != fingerprint(module):
            entry = known[module] = {"of": fingerprint(module), "tried": {}}
        _try_module(module, entry, end)
        CACHE.write_text(json.dumps(known))
    PAGE.write_text(page(known))
    print(f"mutate: {PAGE.relative_to(ROOT)} is written")


def _try_module(module: str, entry: dict[str, Any], end: float) -> None:
    found = list(mutants((DOMAIN / f"{module}.py").read_text()))
    entry["all"] = len(found)
    runs = tests_of(module)
    if time.monotonic() > end or not survives(module, None, runs):
        print(f"{module}: no time left, or its tests fail without any mutant")
        return
    for mutant in found:
        name = f"{mutant.line}: {mutant.key}"
        if name not in entry["tried"] and time.monotonic() < end:
            entry["tried"][name] = survives(module, mutant, runs)
            if entry["tried"][name]:
                print(f"{module}.py:{name} survives")
    print(f"{module}: {len(entry['tried'])} of {len(found)} tried, {sum(entry['tried'].values())} survive")


def page(known: dict[str, Any]) -> str:
    """Return the page: what was tried, and who survived for which reason."""
    reasons: dict[str, dict[str, str]] = tomllib.loads(REASONS.read_text()) if REASONS.exists() else {}
    lines = [
        "# Mutants of the core",
        "",
        "Written by `make mutate`: the tests of each module of `domain/` are run against it with one small fault at a",
        "time (a comparison turned, a number changed by one, a condition negated, a call left out). A fault that no",
        "test notices is listed here with the reason why it may stay, or is to be answered by a test. The formulas of",
        "the gates are proved by exact arithmetic and simulation instead (`docs/analysis.md`).",
        "",
        "| module | mutants | tried | noticed | survive |",
        "|---|---|---|---|---|",
    ]
    for module, entry in known.items():
        tried = entry["tried"]
        alive = sum(tried.values())
        lines.append(f"| {module} | {entry['all']} | {len(tried)} | {len(tried) - alive} | {alive} |")
    lines += ["", "## Survivors", ""]
    for module, entry in known.items():
        for name in (name for name, alive in entry["tried"].items() if alive):
            line, key = name.split(": ", 1)
            reason = reasons.get(module, {}).get(key, "not answered yet")
            lines.append(f"- `{module}.py`, line {line}: `{key}`: {reason}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
