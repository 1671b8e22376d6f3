from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.quantities import (
    between,
    format_decimal,
    format_duration,
    format_percent,
    parse_decimal,
    parse_duration,
    parse_percent,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("500ms", 0.5), ("1m30s500ms", 90.5), ("0s", 0), ("30m1h", 5400), ("007s", 7)],
)
def test_durations_are_read_exactly(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["", "5", "1.5s", "-1s", "1d", "1s\n", "\uff15s", 5, 1.5, None, True])
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be a duration, such as 30s"):
        parse_duration(value)


@given(st.integers(min_value=0, max_value=99_999 * 3_600_000))
def test_a_duration_survives_spelling_to_the_millisecond(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value


def test_percentages_are_exact() -> None:
    assert parse_percent("1%") == Fraction(1, 100)
    assert parse_percent("0.1%") == Fraction(1, 1000)
    assert parse_percent("150%") == Fraction(3, 2)


@pytest.mark.parametrize("value", ["", "1", "-1%", "1e2%", "1.%", "1%\n", 1, 0.01, None])
def test_anything_else_is_no_percentage(value: object) -> None:
    with pytest.raises(ValueError, match="must be a percentage, such as 1%"):
        parse_percent(value)


@given(st.integers(min_value=0, max_value=999_999_999_999))
def test_a_percentage_survives_spelling(millionths: int) -> None:
    value = Fraction(millionths, 100_000_000)
    assert parse_percent(format_percent(value)) == value


@given(st.integers(min_value=-(10**24) + 1, max_value=10**24 - 1))
def test_a_decimal_number_survives_spelling_where_a_float_would_not(billionths: int) -> None:
    value = Fraction(billionths, 10**9)
    assert parse_decimal(format_decimal(value)) == value


@pytest.mark.parametrize("value", ["", "1e3", "5%", "NaN", "0x1", 0.5, True, None])
def test_anything_else_is_no_decimal_number(value: object) -> None:
    with pytest.raises(ValueError, match="must be a decimal number in quotes"):
        parse_decimal(value)


def test_spellings_are_short() -> None:
    assert format_percent(Fraction(1, 200)) == "0.5%"
    assert format_percent(Fraction(1, 10**9)) == "0%"
    assert format_decimal(Fraction(-1, 10**10)) == "0"
    assert format_decimal(Fraction(-5, 2)) == "-2.5"
    assert format_duration(timedelta(0)) == "0s"


def test_a_range_names_its_ends_and_an_example() -> None:
    rule = between("1s", "1h", example="10s")

    assert rule.message == "must be between 1s and 1h, such as 10s"
    assert rule.holds is not None
    assert rule.holds(timedelta(seconds=1))
    assert not rule.holds(timedelta(milliseconds=999))
    assert rule.holds(timedelta(hours=1))
    assert not rule.holds(timedelta(hours=1, milliseconds=1))
