import time
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.domain.convergence import Agreement, agreement, tail


def exact_tail(successes: int, n: int, p: float) -> float:
    chances = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    return sum(chances[successes:]) if successes > n * p else sum(chances[: successes + 1])


@given(st.integers(1, 200), st.floats(0.01, 0.99), st.data())
def test_tail_is_the_sum_of_the_binomial_terms(n: int, p: float, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    assert tail(successes, n, p) == pytest.approx(min(1.0, exact_tail(successes, n, p)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("canary", "stable", "weight", "expected"),
    [
        (10, 90, 10, Agreement.AGREES),
        (0, 100, 10, Agreement.CONTRADICTS),  # the old weight is still in force
        (22, 78, 10, Agreement.CONTRADICTS),
        (21, 79, 10, Agreement.AGREES),
        (300, 700, 30, Agreement.AGREES),
        (100, 900, 30, Agreement.CONTRADICTS),
        (5, 44, 10, Agreement.TOO_FEW),
        (5, 45, 10, Agreement.AGREES),
        (100_000, 900_000, 10, Agreement.AGREES),
        (101_000, 899_000, 10, Agreement.CONTRADICTS),
        (20, 0, 100, Agreement.AGREES),
        (19, 0, 100, Agreement.TOO_FEW),
        (999, 1, 100, Agreement.CONTRADICTS),
        (0, 20, 0, Agreement.AGREES),
        (1, 99, 0, Agreement.CONTRADICTS),
        (0, 0, 50, Agreement.TOO_FEW),
    ],
)
def test_share_against_weight(canary: int, stable: int, weight: int, expected: Agreement) -> None:
    assert agreement(canary, stable, weight).agreement is expected


def test_interval_is_the_clopper_pearson_interval() -> None:
    # With 20 of 100, the 99.9 % interval is 8.9 % to 35.6 % (e.g. scipy.stats.binomtest(20, 100).proportion_ci(0.999)).
    verdicts = {weight: agreement(20, 80, weight).agreement for weight in (8, 9, 35, 36)}
    assert verdicts == {
        8: Agreement.CONTRADICTS,
        9: Agreement.AGREES,
        35: Agreement.AGREES,
        36: Agreement.CONTRADICTS,
    }


def test_message_has_the_numbers() -> None:
    assert agreement(8, 92, 10).message == "canary had 8 of 100 requests (8.0 %) at weight 10"
    assert agreement(1, 2, 10).message == "3 of at least 50 requests to tell whether weight 10 is in effect"


@given(st.integers(0, 2_000), st.integers(0, 2_000), st.integers(0, 100))
def test_both_versions_are_treated_alike(canary: int, stable: int, weight: int) -> None:
    assert agreement(canary, stable, weight).agreement is agreement(stable, canary, 100 - weight).agreement


@given(st.integers(50, 100_000), st.integers(1, 99))
def test_the_expected_share_never_contradicts(n: int, weight: int) -> None:
    canary = round(n * weight / 100)
    assert agreement(canary, n - canary, weight).agreement is not Agreement.CONTRADICTS


def test_a_million_requests_take_no_time() -> None:
    started = time.perf_counter()
    for canary in (99_000, 100_000, 101_000):
        agreement(canary, 1_000_000 - canary, 10)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(("canary", "stable", "weight"), [(-1, 1, 10), (1, -1, 10), (1, 1, 101), (1, 1, -1)])
def test_nonsense_is_refused(canary: int, stable: int, weight: int) -> None:
    with pytest.raises(ValueError, match="no counts and weight"):
        agreement(canary, stable, weight)
