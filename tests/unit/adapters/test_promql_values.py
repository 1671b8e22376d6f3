from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest

from canaryrollout.adapters.promql_values import value_of

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "result", "value"),
    [
        ("scalar", [1, "0.1"], Fraction(1, 10)),
        ("vector", [{"metric": {}, "value": [1, "5"]}], Fraction(5)),
        ("vector", [{"metric": {}, "value": [1, "-0"]}], Fraction(0)),
        ("vector", [{"metric": {}, "value": [1, "1e-3"]}], Fraction(1, 1000)),
        ("vector", [{"metric": {}, "value": [1, "1e+21"]}], Fraction(10**21)),
        ("scalar", [1, "1e-999999999"], Fraction(0)),  # no float of Prometheus', and no day of computing either
    ],
)
def test_own_value(kind: str, result: Any, value: Fraction) -> None:
    found = value_of(kind, result, T0)
    assert (found.value, found.at, found.reason, found.problem) == (value, T0, "", "")


NONE = [
    ("vector", [], "NoData", "the query finds no series"),
    ("vector", [{"value": [1, "5"]}] * 3, "BadQuery", "the query gives 3 series; make it one, for example with sum()"),
    ("vector", [{"histogram": [1, {}]}], "BadQuery", "the query gives a native histogram; make it one number"),
    ("vector", [{"value": [1, "NaN"]}], "NotANumber", "the query gives NaN, which is no number to judge: 0 divided"),
    ("scalar", [1, "+Inf"], "NotANumber", "the query gives +Inf, which is no number to judge: a division by 0"),
    ("scalar", [1, "-Inf"], "NotANumber", "the query gives -Inf, which is no number to judge: a division by 0"),
    ("string", [1, "5"], "BadQuery", "the query gives a string; make it one number"),
    ("matrix", [{"values": [[1, "5"]]}], "BadQuery", "the query gives a matrix; make it one number"),
    ("vector", [{"value": [1, "five"]}], "BadQuery", "the query gives 'five', which is no number"),
]


@pytest.mark.parametrize(("kind", "result", "reason", "problem"), NONE)
def test_no_own_value(kind: str, result: Any, reason: str, problem: str) -> None:
    found = value_of(kind, result, T0)
    assert (found.value, found.at, found.reason) == (None, T0, reason)
    assert found.problem.startswith(problem)


def test_every_way_of_having_no_value_has_its_own_words() -> None:
    assert len({value_of(kind, result, T0).problem for kind, result, _, _ in NONE}) == len(NONE)
