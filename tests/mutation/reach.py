"""Which test runs which statements of the core: a mutant is shown only to tests that could notice it.

The core is imported with a mark before every statement. Each test is run once, in a process of its own for its file,
and the marks it left are kept until the file or the core changes.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

ROOT: Final = Path(__file__).parents[2]
DOMAIN: Final = ROOT / "operator" / "canaryrollout" / "domain"
PACKAGE: Final = "canaryrollout.domain"
SEEN: Final = ROOT / ".mutation-reach.json"
_MARKS: Final = "_marks"
_passed: Final[dict[str, dict[int, bool]]] = {}


@dataclass(frozen=True, slots=True)
class Run:
    """What a test needs and touches: seconds of the processor, and lines of statements by module."""

    seconds: float
    lines: dict[str, list[int]]


class Reach:
    """What every test touches, found out file by file when it is asked for."""

    def __init__(self, items: Sequence[pytest.Item]) -> None:
        self._known: dict[str, Any] = json.loads(SEEN.read_text()) if SEEN.exists() else {}
        self._core = _hash(*sorted(DOMAIN.glob("*.py")), ROOT / "tests/world.py")
        self._runs: dict[Path, dict[str, Run]] = {}
        self._items: dict[Path, list[pytest.Item]] = {}
        for item in items:
            self._items.setdefault(item.path, []).append(item)

    @property
    def files(self) -> list[Path]:
        """Return all files of tests."""
        return sorted(self._items)

    def of(self, path: Path) -> list[tuple[pytest.Item, Run]]:
        """Return the tests of a file; those that fail without any mutant are left out, and named."""
        if path not in self._runs:
            name = f"{path.relative_to(ROOT)} {self._core} {_hash(path)}"
            if name not in self._known:
                self._known[name] = _in_a_fork(self._items[path])
                SEEN.write_text(json.dumps(self._known))
            self._runs[path] = {test: Run(**run) for test, run in self._known[name].items()}
        runs = self._runs[path]
        return [(item, runs[item.nodeid]) for item in self._items[path] if item.nodeid in runs]


def leave_marks() -> None:
    """Have modules of the core imported with marks from now on."""
    sys.meta_path.insert(0, _Finder())


def _hash(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def _in_a_fork(items: Sequence[pytest.Item]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as answer:
            json.dump({item.nodeid: _marks_of(item) for item in items}, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found: dict[str, Any] = json.loads(answer.read() or "{}")
    os.waitpid(child, 0)
    for item in items:
        if not found.get(item.nodeid):
            print(f"mutate: left out, because it fails without any mutant: {item.nodeid}", flush=True)
    return {test: run for test, run in found.items() if run}


def _marks_of(item: pytest.Item) -> dict[str, Any] | None:
    for marks in _passed.values():
        marks.clear()
    begun = time.process_time()
    if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
        return None
    lines = {module: sorted(marks) for module, marks in _passed.items() if marks}
    return {"seconds": round(time.process_time() - begun, 3), "lines": lines}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != PACKAGE:
            return None
        return importlib.util.spec_from_loader(fullname, _Loader(fullname, str(DOMAIN / f"{name}.py")))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(Path(self.path).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                for body in _bodies(node):
                    body[:] = [part for statement in body for part in (*_mark(statement), statement)]
        return compile(ast.fix_missing_locations(tree), self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_MARKS] = _passed.setdefault(module.__name__.rpartition(".")[2], {})
        super().exec_module(module)


def _bodies(function: ast.AST) -> list[list[ast.stmt]]:
    return list(_bodies_in(function))


def _bodies_in(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for _, value in ast.iter_fields(node):
        if not isinstance(value, list):
            continue
        if value and isinstance(value[0], ast.stmt):
            yield value
        for entry in value:
            if isinstance(entry, ast.stmt | ast.match_case | ast.ExceptHandler) and not _is_function(entry):
                yield from _bodies_in(entry)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)


def _mark(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return []
    return ast.parse(f"{_MARKS}[{statement.lineno}] = True").body
