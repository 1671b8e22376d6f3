"""Written weights in percent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.domain.shares import percentages

weights = st.lists(st.none() | st.integers(0, 2000), min_size=2, max_size=6)


@pytest.mark.parametrize("weight", [None, 0, 7, 100])
def test_a_single_destination_has_everything(weight: int | None) -> None:
    assert percentages([weight]) == (100,)


@pytest.mark.parametrize(
    ("written", "shares"),
    [
        ([1, 2], (33, 67)),
        ([1, 1, 1], (34, 33, 33)),
        ([999, 1], (99, 1)),
        ([1, 500, 500], (1, 50, 49)),
        ([10, None, 30], (25, 0, 75)),
        ([602, 292, 106], (60, 29, 11)),
        ([100, 5000, 4950], (1, 50, 49)),  # 0.995 %, 49.75 % and 49.25 %: the first has more than its due already
        ([10_000, 1, 1, 1], (97, 1, 1, 1)),
        ([10_000, 1, 1], (98, 1, 1)),
    ],
)
def test_what_is_left_goes_to_the_largest_remainder(written: list[int | None], shares: tuple[int, ...]) -> None:
    assert percentages(written) == shares


def test_no_weight_at_all_means_nothing() -> None:
    assert percentages([None, 0]) is None


@given(weights)
def test_percent_sum_to_100_and_traffic_is_never_rounded_away(written: list[int | None]) -> None:
    shares = percentages(written)
    if not any(written):
        assert shares is None
        return
    assert shares is not None
    assert sum(shares) == 100
    assert [bool(share) for share in shares] == [bool(weight) for weight in written]
    whole = sum(weight or 0 for weight in written)
    if whole == 100:
        assert shares == tuple(weight or 0 for weight in written)
    for share, weight in zip(shares, written, strict=True):
        assert abs(share - 100 * (weight or 0) / whole) <= len(written)
