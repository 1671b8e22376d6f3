"""One mutant in a process of its own: a fork of a pytest that has collected everything already.

A fault inside a function is put in by exchanging the code of the function that everybody holds; a fault in what runs at
import needs all modules anew. Nothing on disk is touched. The first failing test ends the process.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.mutants import Mutant
from tests.mutation.reach import PACKAGE

ENDLESS: Final = "no end"
"""What is said to have noticed a mutant that keeps a test from ending."""
UNNAMED: Final = "a test"


def noticed_by(module: str, mutant: Mutant, items: Sequence[pytest.Item], patience: float) -> str | None:
    """Return the first test that fails with a mutant, or ``None`` where all of them pass."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_quiet(patience)
        failed = _first_failure(module, mutant, items)
        os.write(writing, (failed or "").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    return ENDLESS if status else said or None


def _be_quiet(patience: float) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, patience)  # of the processor: a busy machine is no endless loop
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _first_failure(module: str, mutant: Mutant, items: Sequence[pytest.Item]) -> str | None:
    code = compile(mutant.tree(), f"<mutant of {module}>", "exec")
    if not mutant.function or not _exchange(sys.modules[f"{PACKAGE}.{module}"], mutant.function, code):
        return _anew(module, code, items)
    for item in items:
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
            return item.nodeid
    return None


def _exchange(module: ModuleType, name: str, code: CodeType) -> bool:
    """Give a function of a module the code of its mutant."""
    new = next((found for found in _codes(code) if found.co_qualname == name), None)
    here: Any = module
    for part in name.split("."):
        here = vars(here)[part]
    here = getattr(here, "fget", None) or getattr(here, "func", None) or here
    while hasattr(here, "__wrapped__"):
        here = here.__wrapped__
    here = getattr(here, "__func__", here)
    if new is None or not isinstance(here, FunctionType) or here.__code__.co_freevars != new.co_freevars:
        return False
    here.__code__ = new
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _anew(module: str, code: CodeType, items: Sequence[pytest.Item]) -> str | None:
    """Import everything again, with the mutant in the place of its module, and run tests."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("canaryrollout", "tests", "lab")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder(f"{PACKAGE}.{module}", code))
    chosen = [item.nodeid for item in items]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=0"]
    return UNNAMED if chosen and pytest.main([*options, *chosen]) else None


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
