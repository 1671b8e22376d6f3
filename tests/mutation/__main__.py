"""Runs the tests of the core against small faults in it, and writes down those that no test notices.

Usage: ``python -m tests.mutation [--minutes N] [module ...]``. What is tried already is not tried again: a fault that
was noticed while its function and the test that noticed it stay as they are, one that was not while its function and
all tests do.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from tests.mutation.ledger import FOLDER, Ledger
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.page import PAGE, page, reasons_given
from tests.mutation.reach import DOMAIN, ROOT, Reach, leave_marks
from tests.mutation.trial import noticed_by

TESTS: Final = (FOLDER,)
LEFT_OUT: Final = ("__init__", "evalues", "intervals", "evidence", "observation", "decision", "settings")
"""Modules of formulas, which are proved by exact arithmetic and simulation, and of plain data."""
MOST_SECONDS: Final = 10.0
"""How long the tests may take that a mutant is shown to which may stay; any other is shown to all."""
PATIENCE: Final = 20.0


def main() -> None:
    """Try mutants until time is up, then write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("modules", nargs="*")
    arguments.add_argument("--minutes", type=float, default=60)
    chosen = arguments.parse_args()
    os.chdir(ROOT)
    everything = [path.stem for path in sorted(DOMAIN.glob("*.py")) if path.stem not in LEFT_OUT]
    plugin = _Trials(chosen.modules or everything, time.monotonic() + 60 * chosen.minutes)
    leave_marks()
    options = ["-q", "-s", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=0"]
    if pytest.main([*options, *TESTS], plugins=[plugin]):
        sys.exit("mutate: the tests cannot be run")
    PAGE.write_text(page(plugin.ledger, {module: _mutants_of(module) for module in everything}))
    print(f"mutate: {PAGE.relative_to(ROOT)} is written")


def _mutants_of(module: str) -> list[Mutant]:
    return list(mutants((DOMAIN / f"{module}.py").read_text()))


class _Trials:
    """A plugin of pytest that tries mutants on the collected tests instead of running them."""

    def __init__(self, modules: Sequence[str], end: float) -> None:
        self.ledger = Ledger()
        self._modules, self._end = modules, end
        self._noticed: Counter[str] = Counter()
        self._reasons = reasons_given()

    def pytest_configure(self) -> None:
        """Let hypothesis find the same every time, keep nothing, and stop at the first failure."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "mutation",
            hypothesis.settings(),
            derandomize=True,
            database=None,
            phases=phases,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try the mutants of all modules."""
        gc.freeze()
        self._reach = Reach(session.items)
        found = {module: _mutants_of(module) for module in self._modules}
        turns = {module: iter(_spread(len(mutants_))) for module, mutants_ in found.items()}
        while turns and time.monotonic() < self._end:
            for module in list(turns):
                self._take_turn(module, found[module], turns)
        for module, all_ in found.items():
            tried = sum(self.ledger.tried(module, mutant) for mutant in all_)
            alive = sum(self.ledger.survives(module, mutant) for mutant in all_)
            print(f"mutate: {module}: {tried} of {len(all_)} tried, {alive} not noticed", flush=True)
        return True

    def _take_turn(self, module: str, found: Sequence[Mutant], turns: dict[str, Iterator[int]]) -> None:
        """Try the next mutants of a module, so that time that runs out leaves an even sample of each."""
        for index in turns[module]:
            if time.monotonic() > self._end:
                return
            if not self.ledger.knows(module, found[index]):
                self._try(module, found[index])
                self.ledger.save(module, found)
                return
        del turns[module]

    def _try(self, module: str, mutant: Mutant) -> None:
        asked = 0
        left = MOST_SECONDS if mutant.key in self._reasons.get(module, {}) else float("inf")
        own = [path for path in self._reach.files if path.name == f"test_{module}.py"]
        others = [path for path in self._reach.files if path not in own]
        for files in (own, others):
            chosen = self._chosen(module, mutant, files, left)
            asked, needed = asked + len(chosen), sum(seconds for _, seconds in chosen)
            left -= needed
            noticed = noticed_by(module, mutant, [item for item, _ in chosen], PATIENCE + 2 * needed)
            if noticed is not None:
                self._noticed[noticed] += 1
                break
        else:
            print(f"mutate: {module}.py:{mutant.line}: {mutant.key}: not noticed by {asked} tests", flush=True)
        self.ledger.note(module, mutant, noticed)

    def _chosen(
        self, module: str, mutant: Mutant, files: Sequence[Path], left: float
    ) -> list[tuple[pytest.Item, float]]:
        """Return tests that run the changed statement: what noticed most so far, then the quickest of every file."""
        runs: list[tuple[int, float, pytest.Item]] = []
        for path in files:
            reaching = [
                (run.seconds, item)
                for item, run in self._reach.of(path)
                if (seen := run.lines.get(module)) and (not mutant.function or mutant.statement in seen)
            ]
            reaching.sort(key=itemgetter(0))
            runs += [(rank, seconds, item) for rank, (seconds, item) in enumerate(reaching)]
        runs.sort(key=lambda run: (-self._noticed[run[2].nodeid], *run[:2]))
        sums = accumulate(seconds for _, seconds, _ in runs)
        return [(item, seconds) for (_, seconds, item), sum_ in zip(runs, sums, strict=True) if sum_ < left]


def _spread(length: int) -> list[int]:
    """Return all indices, such that every beginning of the list is spread evenly."""
    order, step = [], 1 << max(0, length.bit_length())
    seen: set[int] = set()
    while step:
        for index in range(0, length, step):
            if index not in seen:
                seen.add(index)
                order.append(index)
        step //= 2
    return order


if __name__ == "__main__":
    main()
