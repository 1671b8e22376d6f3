"""Intervals against known values and against exact binomial sums."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.domain.intervals import ratio_upper, requests_needed, spelled, upper, wilson
from canaryrollout.domain.results import Sample


def at_most(bad: int, of: int, p: float) -> float:
    """Return the probability of ``bad`` or fewer of ``of``."""
    return math.fsum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(bad + 1))


class TestWilson:
    @pytest.mark.parametrize(
        ("bad", "of", "low", "high"),
        # As R's prop.test(..., correct = FALSE) and published tables have them.
        [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
    )
    def test_known_values(self, bad: int, of: int, low: float, high: float) -> None:
        assert list(wilson(Sample(bad, of))) == pytest.approx([low, high], abs=1e-4)

    def test_nothing_seen_says_nothing(self) -> None:
        assert wilson(Sample(0, 0)) == (0.0, 1.0)

    @given(st.integers(0, 10**9), st.integers(1, 10**9))
    def test_it_holds_what_was_seen(self, bad: int, of: int) -> None:
        bad = min(bad, of)
        low, high = wilson(Sample(bad, of))
        assert 0 <= low <= bad / of <= high <= 1
        assert low < high

    def test_more_confidence_is_wider(self) -> None:
        narrow, wide = wilson(Sample(5, 100), 0.8), wilson(Sample(5, 100), 0.99)
        assert wide[0] < narrow[0] < narrow[1] < wide[1]


class TestUpper:
    @pytest.mark.parametrize(("bad", "of"), [(0, 1), (0, 299), (1, 20), (3, 30), (10, 100), (50, 60)])
    @pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
    def test_so_few_would_be_seen_with_the_probability_that_is_left(self, bad: int, of: int, confidence: float) -> None:
        bound = upper(Sample(bad, of), confidence)
        assert at_most(bad, of, bound) == pytest.approx(1 - confidence, rel=1e-4)
        assert bound > bad / of

    def test_rule_of_three(self) -> None:
        assert upper(Sample(0, 1000)) == pytest.approx(0.00299, rel=0.01)

    @pytest.mark.parametrize("of", [0, 1, 50])
    def test_all_bad_or_nothing_seen_bounds_nothing(self, of: int) -> None:
        assert upper(Sample(of, of)) == 1.0

    def test_huge_counts(self) -> None:
        assert upper(Sample(10**6, 10**8)) == pytest.approx(0.01, rel=0.01)
        assert upper(Sample(10**6, 10**8)) > 0.01


class TestRatio:
    def test_the_canarys_share_of_what_failed_bounds_the_ratio(self) -> None:
        """With as many requests on both sides and 10 of 30 failures: p = 0.499 of failures, hence 0.997 times."""
        share = upper(Sample(10, 30))
        assert ratio_upper(Sample(10, 1000), Sample(20, 1000)) == pytest.approx(share / (1 - share))
        assert ratio_upper(Sample(10, 1000), Sample(20, 9000)) == pytest.approx(9 * share / (1 - share))

    def test_it_comes_down_to_the_true_ratio(self) -> None:
        bounds = [ratio_upper(Sample(5 * k, 1000 * k), Sample(45 * k, 9000 * k)) for k in (1, 10, 100, 1000)]
        assert bounds == sorted(bounds, reverse=True)
        assert 1 < bounds[-1] < 1.05

    @pytest.mark.parametrize(
        ("canary", "stable"),
        [
            (Sample(0, 0), Sample(1, 9)),
            (Sample(1, 9), Sample(0, 0)),
            (Sample(0, 9), Sample(0, 9)),
            (Sample(3, 9), Sample(0, 9)),
        ],
    )
    def test_nothing_to_compare_bounds_nothing(self, canary: Sample, stable: Sample) -> None:
        assert ratio_upper(canary, stable) == math.inf


class TestRequestsNeeded:
    def test_none_failed(self) -> None:
        assert requests_needed(0, 0.01) == 299
        assert upper(Sample(0, 299)) <= 0.01 < upper(Sample(0, 298))

    def test_some_failed(self) -> None:
        needed = requests_needed(0.005, 0.01)
        assert needed is not None
        assert upper(Sample(round(needed * 0.005), needed)) == pytest.approx(0.01, rel=0.2)

    @pytest.mark.parametrize(("rate", "limit"), [(0.01, 0.01), (0.02, 0.01), (0.0, 0.0), (0.5, 1.0)])
    def test_what_never_becomes_sure(self, rate: float, limit: float) -> None:
        assert requests_needed(rate, limit) is None

    @given(st.floats(0, 0.9), st.floats(0.001, 0.1))
    def test_the_nearer_to_the_limit_the_more_it_takes(self, share: float, limit: float) -> None:
        nearer, farther = requests_needed(limit * share, limit), requests_needed(limit * share / 2, limit)
        assert nearer is not None
        assert farther is not None
        assert nearer >= farther >= 1


def test_spelled_for_people() -> None:
    assert spelled(Sample(24, 500)) == "3.25 %..7.04 %"
    assert spelled(Sample(0, 10)) == "0 %..27.8 %"
    assert spelled(Sample(0, 0)) == "0 %..100 %"
