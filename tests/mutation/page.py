"""The page that says which faults were tried, and why those that no test notices may stay."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.mutation.ledger import Ledger
from tests.mutation.mutants import Mutant
from tests.mutation.reach import ROOT

PAGE: Final = ROOT / "docs" / "mutation.md"
REASONS: Final = Path(__file__).with_name("reasons.toml")
UNANSWERED: Final = "**not answered yet**"
_HEAD: Final = """\
# Mutants of the core

Written by `make mutate`: one small fault at a time is put into a module of `domain/` (a comparison turned or moved by
one, a condition negated, one side of an `and` or `or` left out, a number changed by one, a sum made a difference, a
call left out), and tests that run its line are run until one fails: those of the module first, then the quickest of
every file of `tests/unit/domain`, then all others that run it. A fault that none of them notices is answered by a new
test, or listed here with the reason why it may stay (`tests/mutation/reasons.toml`); whose reason is known is shown to
ten seconds of tests only.

Modules take turns and their mutants are taken evenly, so where fewer were tried than there are, those are a sample; the
next run goes on from there. `tests/property` is not asked: whole lives notice more. The formulas of the gates
(`evalues`, `intervals`) are proved by exact arithmetic and simulation instead ([analysis.md](analysis.md)).

| module | mutants | tried | noticed | not noticed |
|---|---|---|---|---|
"""


def page(ledger: Ledger, modules: Mapping[str, Sequence[Mutant]]) -> str:
    """Return the page: what was tried, and who survived for which reason."""
    reasons = reasons_given()
    rows, survivors = [], []
    sums = [0, 0, 0]
    for module, mutants in modules.items():
        alive = [mutant for mutant in mutants if ledger.survives(module, mutant)]
        tried = sum(ledger.tried(module, mutant) for mutant in mutants)
        counts = [len(mutants), tried, len(alive)]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        rows.append(_row(module, counts))
        known = reasons.get(module, {})
        survivors += [f"| {module} | `{_cell(m.key)}` | {known.get(m.key, UNANSWERED)} |" for m in alive]
    rows.append(_row("**all**", sums))
    head = "\n## Not noticed\n\n| module | fault | why it may stay |\n|---|---|---|\n"
    return _HEAD + "\n".join(rows) + "\n" + head + "\n".join(survivors) + "\n"


def reasons_given() -> dict[str, dict[str, str]]:
    """Return why mutants may stay: by module, then by mutant."""
    given: dict[str, dict[str, str]] = tomllib.loads(REASONS.read_text())
    return given


def _row(name: str, counts: Sequence[int]) -> str:
    found, tried, alive = counts
    return f"| {name} | {found} | {tried} | {tried - alive} | {alive} |"


def _cell(key: str) -> str:
    return key.replace("|", "\\|")
