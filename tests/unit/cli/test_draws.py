"""Random counts have the distribution they claim, however small or large."""

from __future__ import annotations

from math import comb, exp, factorial, sqrt
from random import Random
from statistics import fmean, pvariance

import pytest

from canaryrollout.cli.draws import binomial, poisson

DRAWS = 6_000


@pytest.mark.parametrize("mean", [0.01, 0.7, 3.2, 50.0, 1234.5, 40_000.0])
def test_poisson_has_its_mean_and_variance(mean: float) -> None:
    rng = Random(f"poisson {mean}")
    found = [poisson(rng, mean) for _ in range(DRAWS)]
    assert fmean(found) == pytest.approx(mean, abs=5 * sqrt(mean / DRAWS))
    assert pvariance(found) == pytest.approx(mean, abs=mean * 0.1 + 6 * sqrt(mean / DRAWS))


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (20, 0.005), (500, 0.02), (500, 0.98), (100_000, 0.3)])
def test_binomial_has_its_mean_and_variance(n: int, p: float) -> None:
    rng = Random(f"binomial {n} {p}")
    found = [binomial(rng, n, p) for _ in range(DRAWS)]
    variance = n * p * (1 - p)
    assert all(0 <= k <= n for k in found)
    assert fmean(found) == pytest.approx(n * p, abs=5 * sqrt(variance / DRAWS))
    assert pvariance(found) == pytest.approx(variance, rel=0.12, abs=0.01)


def test_every_count_is_as_likely_as_it_should_be() -> None:
    rng = Random(7)
    found = [poisson(rng, 2.5) for _ in range(DRAWS)]
    drawn = [binomial(rng, 6, 0.3) for _ in range(DRAWS)]
    for k in range(7):
        expected = exp(-2.5) * 2.5**k / factorial(k)
        assert found.count(k) / DRAWS == pytest.approx(expected, abs=5 * sqrt(expected / DRAWS))
        expected = comb(6, k) * 0.3**k * 0.7 ** (6 - k)
        assert drawn.count(k) / DRAWS == pytest.approx(expected, abs=5 * sqrt(expected / DRAWS))


def test_certain_and_impossible() -> None:
    rng = Random(1)
    assert [poisson(rng, 0.0), binomial(rng, 0, 0.5), binomial(rng, 9, 0.0), binomial(rng, 9, 1.7)] == [0, 0, 0, 9]


def test_the_same_seed_draws_the_same() -> None:
    first, second = ([binomial(Random(3), 100, 0.1), poisson(Random(3), 9.0)] for _ in range(2))
    assert first == second
