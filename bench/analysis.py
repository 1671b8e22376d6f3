"""How often each rule is wrong, and how soon it is right: the table of docs/analysis.md.

Every cell simulates thousands of rollouts with the shipped rule, see `bench.rollouts`. ``make bench-analysis`` runs all
cells on all cores, writes the table and fails where a bound is broken. It takes about half an hour on two cores and
keeps what is done, so that it can be interrupted; ``--rollouts 200 --print`` gives a first impression in a minute.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import bench.rollouts as rollouts_module
from bench.rollouts import CHECKS, Cell, Outcome, simulate
from canaryrollout.domain import evalues, rates, sequential

DOCUMENT: Final = Path("docs/analysis.md")
KEPT: Final = Path("bench/.analysis")
BEGIN: Final = "<!-- table: written by make bench-analysis -->"
END: Final = "<!-- end of table -->"
CANARY: Final = (20, 100, 500, 2000)
BURSTS: Final = (0.0, 0.25, 1.0)
RATIOS: Final = (1, 2, 4, 10)
LIMITS: Final = (100, 150)
CHUNK: Final = 250
"""Rollouts that one process simulates before it reports."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of the rollouts of a cell under one rule: how many were rolled back, and the median check of those.

    Attributes:
        rolled_back: Share of rollouts.
        check: Median over all rollouts, those never rolled back counting as later than the last; ``None`` if that is
            the median.
    """

    rolled_back: float
    check: float | None

    @classmethod
    def of(cls, checks: list[int]) -> Figures:
        """Sum up in which check each rollout was rolled back, 0 for never."""
        middle = median(check or CHECKS + 1 for check in checks)
        return cls(sum(check > 0 for check in checks) / len(checks), middle if middle <= CHECKS else None)

    def __str__(self) -> str:
        """Return ``99.8 % [4]``."""
        share = f"{100 * self.rolled_back:.1f}" if self.rolled_back < 0.9995 else "100"
        return share + (f" [{self.check:g}]" if self.check is not None else "")


@dataclass(frozen=True, slots=True)
class Bound:
    """A promise on a cell, and whether it is kept."""

    words: str
    kept: bool
    seen: str


def cells() -> Iterator[Cell]:
    """Yield all cells, the slow ones first."""
    for canary, ladder, bursts, ratio, limit in product(reversed(CANARY), (True, False), BURSTS, RATIOS, LIMITS):
        yield Cell(ladder, canary, ratio, bursts, limit)


def bounds(results: dict[Cell, Outcome]) -> Iterator[Bound]:
    """Yield what is promised, and what was seen."""
    for cell, outcome in results.items():
        figures = Figures.of(outcome.sequential)
        where = f"{'ladder' if cell.ladder else 'weight 10'}, {cell.canary}/check, cv2 {cell.bursts:g}"
        where += f", limit {cell.max_relative} %"
        if cell.ratio == 1:
            most = 0.10 if cell.bursts == 1 else 0.05
            words = f"good release rolled back in at most {100 * most:.0f} % ({where})"
            yield Bound(words, figures.rolled_back <= most, str(figures))
        latest = _latest(cell)
        if latest is not None:
            words = f"{cell.ratio}x found by check {latest} in the median ({where})"
            yield Bound(words, figures.check is not None and figures.check <= latest, str(figures))
        if (cell.ratio, cell.bursts, cell.canary, cell.max_relative) == (4, 0.25, 500, 100):
            yield Bound(f"4x found in at least 99 % ({where})", figures.rolled_back >= 0.99, str(figures))


def _latest(cell: Cell) -> int | None:
    """Return the check by which half of such canaries have to be found, where that is promised."""
    if (cell.bursts, cell.canary) == (0.0, 100):
        return {(4, 100): 6, (10, 100): 3, (4, 150): 11, (10, 150): 3}.get((cell.ratio, cell.max_relative))
    return 4 if (cell.ratio, cell.bursts, cell.canary, cell.max_relative) == (4, 0.25, 500, 100) else None


def run(wanted: Iterable[Cell], rollouts: int, seed: int, jobs: int, *, keep: Path | None) -> dict[Cell, Outcome]:
    """Simulate cells on several processes.

    Args:
        wanted: The cells.
        rollouts: How many rollouts each.
        seed: Seed of all random numbers.
        jobs: Number of processes.
        keep: Folder for what is done already; ``None`` to keep nothing.
    """
    results = {cell: Outcome() for cell in wanted}
    chunks = [(cell, part) for cell in results for part in range(-(-rollouts // CHUNK))]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(jobs, initializer=_prepare) as pool, Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{len(results)} cells, {rollouts} rollouts each", total=len(chunks))
        size = min(CHUNK, rollouts)
        pending = {pool.submit(_chunk, cell, size, seed * 1000 + part, keep): cell for cell, part in chunks}
        for future in as_completed(pending):
            found, into = future.result(), results[pending[future]]
            into.sequential += found.sequential
            into.window += found.window
            into.five += found.five
            progress.advance(task)
    return results


def _fingerprint() -> str:
    """Return a name for what decides the results, so that nothing is kept from before it was changed."""
    modules = (evalues, sequential, rates, rollouts_module)
    text = "".join(Path(str(module.__file__)).read_text() for module in modules)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _prepare() -> None:
    """Remember likelihoods for as long as the process lives: counts recur in simulations, in real traffic hardly."""
    evalues._share_table = lru_cache(maxsize=60_000)(evalues._share_table.__wrapped__)
    evalues._rate_table = lru_cache(maxsize=60_000)(evalues._rate_table.__wrapped__)


def _chunk(cell: Cell, rollouts: int, seed: int, keep: Path | None) -> Outcome:
    name = f"{'ladder' if cell.ladder else 'ten'}-{cell.canary}-{cell.ratio}-{cell.bursts:g}-{cell.max_relative}"
    file = keep / f"{name}-{rollouts}-{seed}.json" if keep is not None else None
    if file is not None and file.exists():
        return Outcome(**json.loads(file.read_text()))
    outcome = simulate(cell, rollouts, seed)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(outcome)))
    return outcome


def table(results: dict[Cell, Outcome]) -> str:
    """Return the table as Markdown: for each kind of rollout, what the rules do to a good and to a bad release."""
    lines = [
        "| weights | canary requests per check | bursts (cv²) | rule | 1x | 2x | 4x | 10x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ladder, canary, bursts in product((False, True), CANARY, BURSTS):
        where = f"| {'10→30→50→100' if ladder else '10'} | {canary:,} | {bursts:g} "
        rows: list[tuple[str, Any]] = [(f"Sequential, {limit} %", limit) for limit in LIMITS]
        rows += [("one window above 1 %", "window"), ("5 failed checks", "five")]
        for name, key in rows:
            found = [_figures(results, Cell(ladder, canary, ratio, bursts, 100), key) for ratio in RATIOS]
            lines.append(f"{where}| {name} | {' | '.join(found)} |")
    return "\n".join(lines)


def _figures(results: dict[Cell, Outcome], cell: Cell, key: Any) -> str:
    if isinstance(key, int):
        cell = Cell(cell.ladder, cell.canary, cell.ratio, cell.bursts, key)
    outcome = results.get(cell)
    if outcome is None:
        return "-"
    return str(Figures.of(outcome.sequential if isinstance(key, int) else getattr(outcome, key)))


def main(
    rollouts: Annotated[int, typer.Option(help="Rollouts per cell.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 1,
    jobs: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
    show: Annotated[bool, typer.Option("--print", help="Print the table instead of writing it.")] = False,
) -> None:
    """Simulate rollouts with the shipped analysis, check the bounds, and write the table of docs/analysis.md."""
    results = run(cells(), rollouts, seed, jobs, keep=KEPT / _fingerprint())
    checked = list(bounds(results))
    broken = [bound for bound in checked if not bound.kept]
    text = table(results)
    if show:
        typer.echo(text)
    else:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
        typer.echo(f"wrote {DOCUMENT}: {len(results)} cells, {rollouts} rollouts each")
    for bound in broken:
        typer.echo(f"broken: {bound.words}: {bound.seen}")
    typer.echo(f"{len(checked) - len(broken)} of {len(checked)} bounds hold")
    raise typer.Exit(1 if broken else 0)


if __name__ == "__main__":
    typer.run(main)
