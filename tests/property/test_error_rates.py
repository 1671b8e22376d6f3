"""How often the shipped gates are wrong, on fewer rollouts than the bench has: seeds are fixed, tolerances honest.

A promise counts as broken when what is seen would come of a promise that is kept with odds of one in a thousand only.
"""

from __future__ import annotations

import pytest

from bench.rollouts import CHECKS, Cell, simulate
from canaryrollout.domain import evalues
from canaryrollout.domain.convergence import tail

SURPRISE = 0.001


def rolled_back(cell: Cell, rollouts: int, by: int = CHECKS) -> int:
    found = simulate(cell, rollouts, seed=5).sequential
    return sum(0 < check <= by for check in found)


def too_many(count: int, rollouts: int, promised: float) -> bool:
    return count > promised * rollouts and tail(count, rollouts, promised) < SURPRISE


def too_few(count: int, rollouts: int, promised: float) -> bool:
    return count < promised * rollouts and tail(count, rollouts, promised) < SURPRISE


@pytest.mark.parametrize("max_relative", [100, 150])
@pytest.mark.parametrize(
    ("ladder", "canary", "bursts", "promised"),
    [
        (False, 20, 0.0, 0.05),
        (False, 500, 0.0, 0.05),
        (False, 2000, 0.25, 0.05),
        (True, 500, 0.25, 0.05),
        (False, 100, 1.0, 0.10),
        (True, 2000, 1.0, 0.10),
    ],
)
def test_good_releases_are_seldom_rolled_back(
    ladder: bool, canary: int, bursts: float, promised: float, max_relative: int
) -> None:
    count = rolled_back(Cell(ladder, canary, 1, bursts, max_relative), 150)
    print(f"{count} of 150, promised at most {100 * promised:.0f} %")
    assert not too_many(count, 150, promised)


@pytest.mark.parametrize(
    ("canary", "ratio", "bursts", "max_relative", "by"),
    [
        (100, 4, 0.0, 100, 6),
        (100, 10, 0.0, 100, 3),
        (100, 4, 0.0, 150, 11),
        (100, 10, 0.0, 150, 3),
        (500, 4, 0.25, 100, 4),
    ],
)
def test_bad_releases_are_found_in_time(canary: int, ratio: int, bursts: float, max_relative: int, by: int) -> None:
    count = rolled_back(Cell(False, canary, ratio, bursts, max_relative), 300, by)
    print(f"{count} of 300 by check {by}, promised half")
    assert not too_few(count, 300, 0.5)


def test_without_a_thought_of_bursts_good_releases_would_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(False, 2000, 1, 1.0, 100)
    monkeypatch.setattr(evalues, "DISPERSION_WEIGHTS", (1.0, 0.0, 0.0, 0.0))
    assert too_many(rolled_back(cell, 60), 60, 0.10)


def test_the_same_seed_gives_the_same_verdicts() -> None:
    cell = Cell(True, 100, 4, 0.25, 100)
    assert simulate(cell, 20, seed=3) == simulate(cell, 20, seed=3) != simulate(cell, 20, seed=4)
