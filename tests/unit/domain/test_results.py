"""What gates say together: the worst of them, in its own words."""

from __future__ import annotations

from fractions import Fraction

import pytest

from canaryrollout.api.status import Counts, Verdict
from canaryrollout.domain.results import GateResult, Judgement, Sample, exact_percent, percent, worst

PASSED = GateResult("errorRate", Verdict.PASS, "WithinLimits", "few errors")
WAITING = GateResult("latency", Verdict.INCONCLUSIVE, "LowSample", "too few requests", needed=40)
UNASKED = GateResult("metrics/a", Verdict.ERROR, "BadQuery", "no such metric")
FAILED = GateResult("metrics/b", Verdict.FAIL, "AboveMax", "7 (max 5)")
ALL = (PASSED, WAITING, UNASKED, FAILED)


def together(*results: GateResult, **fields: object) -> Judgement:
    return worst(results, Counts(requests=9), Counts(requests=90), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_worst_verdict_decides_with_its_own_reason(count: int) -> None:
    decisive = ALL[count - 1]
    for results in (ALL[:count], ALL[:count][::-1]):
        found = together(*results)
        assert (found.verdict, found.reason, found.message) == (decisive.verdict, decisive.reason, decisive.message)
        assert found.gates == results


def test_of_several_that_decide_the_first_gives_the_reason_and_each_is_told_once() -> None:
    other = GateResult("latency", Verdict.FAIL, "AboveRelative", "slow")
    found = together(PASSED, FAILED, other, other, notes=("a counter was reset",))
    assert (found.reason, found.message) == ("AboveMax", "7 (max 5); slow; a counter was reset")


def test_what_was_counted_and_what_later_steps_go_on_from_stay_with_it() -> None:
    found = together(PASSED, evidence={"errorRate max 1%": "3"})
    assert (found.canary.requests, found.stable.requests, found.evidence) == (9, 90, {"errorRate max 1%": "3"})
    assert together(PASSED).evidence == {}


def test_all_gates_pass_once_the_one_that_lacks_most_has_its_requests() -> None:
    assert together(PASSED, WAITING).needed == 40
    assert together(PASSED, UNASKED).needed == 0


def test_of_no_requests_none_were_bad() -> None:
    assert (Sample(0, 0).rate, Sample(1, 4).rate) == (Fraction(0), Fraction(1, 4))


def test_a_limit_is_spelled_as_exactly_as_it_was_written() -> None:
    assert exact_percent(Fraction(12345, 10**6)) == "1.2345 %"


@pytest.mark.parametrize(
    ("top", "bottom", "told"), [(954, 10_000, "9.54 %"), (954, 100_000, "0.954 %"), (954, 1_000_000, "0.0954 %")]
)
def test_three_digits_are_told_just_below_a_power_of_ten(top: int, bottom: int, told: str) -> None:
    assert percent(Fraction(top, bottom)) == told
