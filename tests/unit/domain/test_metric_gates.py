from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.quantities import format_decimal
from canaryrollout.api.spec import MetricGate
from canaryrollout.api.status import FinishedStep, Verdict
from canaryrollout.domain.evidence import Evidence, EvidenceRequest, MetricReading, MetricValue
from canaryrollout.domain.metric_gates import baselines, judge_metric
from canaryrollout.domain.results import GateResult

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
INTERVAL = timedelta(seconds=10)
BOUNDS = {"max": "5", "min": "1"}
RELATIVE = {"maxRelative": "120%", "baselineQuery": "q{version='$stable'}"}
INCREASE = {"maxIncrease": "2", "baselineQuery": "q{version='$stable'}"}

Answer = str | int | MetricValue
"""A number, or why there is none."""


def nothing(reason: str, problem: str = "it says why") -> MetricValue:
    return MetricValue(None, problem=problem, reason=reason)


def answer(text: Answer) -> MetricValue:
    return text if isinstance(text, MetricValue) else MetricValue(Fraction(text))


def gate(**fields: Any) -> MetricGate:
    return MetricGate.model_validate({"name": "failures", "query": "q", **fields})


def evidence(*answers: Answer | tuple[Answer, Answer], weight: int = 10) -> Evidence:
    """Readings one interval apart, the first one interval after T0; pairs are value and baseline."""
    request = EvidenceRequest("default", "shop", "reviews", "v1", "v2", "version", T0, INTERVAL, weight=weight)
    readings = []
    for number, each in enumerate(answers, 1):
        at = T0 + number * INTERVAL
        if isinstance(each, tuple):
            readings.append(MetricReading(at, answer(each[0]), answer(each[1])))
        else:
            readings.append(MetricReading(at, answer(each)))
    return Evidence(request, metrics={"failures": tuple(readings)})


def judged(fields: dict[str, Any], *answers: Answer | tuple[Answer, Answer], weight: int = 10) -> GateResult:
    return judge_metric(gate(**fields), evidence(*answers, weight=weight), T0)


class TestBounds:
    @pytest.mark.parametrize(
        ("value", "expected", "reason"),
        [
            ("5", Verdict.PASS, "WithinLimits"),
            ("1", Verdict.PASS, "WithinLimits"),
            ("5.1", Verdict.FAIL, "AboveMax"),
            ("0.5", Verdict.FAIL, "BelowMin"),
            ("-3", Verdict.FAIL, "BelowMin"),
        ],
    )
    def test_value_against_bounds(self, value: str, expected: Verdict, reason: str) -> None:
        result = judged(BOUNDS, value)
        assert (result.name, result.verdict, result.reason) == ("metrics/failures", expected, reason)
        assert result.message == f"failures is {value} (min 1, max 5)"
        assert (result.value, result.baseline, result.at) == (Fraction(value), None, T0 + INTERVAL)

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            ("NoData", Verdict.INCONCLUSIVE),
            ("NotANumber", Verdict.INCONCLUSIVE),
            ("BadQuery", Verdict.ERROR),
            ("ProviderError", Verdict.ERROR),
        ],
    )
    def test_no_value(self, reason: str, expected: Verdict) -> None:
        result = judged(BOUNDS, nothing(reason))
        assert (result.verdict, result.reason, result.message) == (expected, reason, "failures: it says why")
        assert (result.value, result.at) == (None, T0 + INTERVAL)

    def test_never_asked_or_too_old(self) -> None:
        metric, found = gate(**BOUNDS), evidence(9)
        assert judge_metric(metric, None, T0).reason == "NoData"
        assert judge_metric(metric, evidence(), T0).reason == "NoData"
        assert judge_metric(metric, found, T0 + INTERVAL).reason == "NoData", "what was read at that time is too old"
        assert judge_metric(metric, found, T0).verdict is Verdict.FAIL
        assert judge_metric(metric, found, None).verdict is Verdict.FAIL

    def test_the_newest_value_counts(self) -> None:
        assert judged(BOUNDS, 3, nothing("NoData")).reason == "NoData"
        assert judged(BOUNDS, nothing("BadQuery"), 3).verdict is Verdict.PASS

    def test_a_gate_without_limit_is_a_mistake(self) -> None:
        result = judged({}, 3)
        assert (result.verdict, result.reason) == (Verdict.ERROR, "BadQuery")
        assert result.message == "failures: it has no limit; set max, min, maxRelative or maxIncrease"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("0.333333333333", "0.3333"),
            ("2.00000001", "2"),
            ("5.00000001", "5.00000001"),
            ("4.99999", "4.99999"),
            ("4.9999", "4.9999"),
            ("1234567.891", "1234568"),
            ("1e30", "1e+30"),
            ("0.0000123456", "0.00001235"),
            ("1e-12", "1e-12"),
            ("5e-10", "5e-10"),
            ("1e-9", "0.000000001"),
            ("1e15", "1e+15"),
            ("999999999999999", "999999999999999"),
            ("0", "0"),
        ],
    )
    def test_numbers_are_rounded_but_never_across_a_limit(self, value: str, shown: str) -> None:
        assert judged({"max": "5"}, value).message == f"failures is {shown} (max 5)"


class TestBaseline:
    @pytest.mark.parametrize(("value", "expected"), [("6", Verdict.PASS), ("6.01", Verdict.FAIL), ("-1", Verdict.PASS)])
    def test_multiple_of_the_baseline(self, value: str, expected: Verdict) -> None:
        result = judged(RELATIVE, (value, 5))
        assert result.verdict is expected
        assert result.message == f"failures is {value} (maxRelative 120 % of 5)"
        assert (result.value, result.baseline) == (Fraction(value), Fraction(5))

    def test_increase_above_the_baseline(self) -> None:
        assert judged(INCREASE, (7, 5)).verdict is Verdict.PASS
        result = judged(INCREASE, ("7.1", 5))
        assert (result.verdict, result.reason) == (Verdict.FAIL, "AboveIncrease")
        assert result.message == "failures is 7.1 (maxIncrease 2 above 5)"
        assert judged(INCREASE, (-3, -5)).verdict is Verdict.PASS, "an increase has a meaning below zero"
        assert judged(INCREASE, (-2, -5)).verdict is Verdict.FAIL

    def test_every_limit_has_to_hold(self) -> None:
        every = {**BOUNDS, **RELATIVE, **INCREASE}
        result = judged(every, (4, 4))
        assert (result.verdict, result.message) == (
            Verdict.PASS,
            "failures is 4 (min 1, max 5, maxRelative 120 % of 4, maxIncrease 2 above 4)",
        )
        assert judged(every, ("5.1", 100)).reason == "AboveMax"
        assert judged(every, ("0.5", 100)).reason == "BelowMin"
        assert judged(every, ("1.3", 1)).reason == "AboveRelative"
        assert judged({**every, "max": "100"}, ("22.1", 20)).reason == "AboveIncrease"

    @pytest.mark.parametrize(
        ("reason", "expected", "verdict"),
        [
            ("NoData", "NoBaseline", Verdict.INCONCLUSIVE),
            ("NotANumber", "NoBaseline", Verdict.INCONCLUSIVE),
            ("BadQuery", "BadQuery", Verdict.ERROR),
            ("ProviderError", "ProviderError", Verdict.ERROR),
        ],
    )
    def test_a_missing_baseline_is_not_missing_data(self, reason: str, expected: str, verdict: Verdict) -> None:
        result = judged({**RELATIVE, "max": "9"}, (3, nothing(reason)))
        assert (result.verdict, result.reason) == (verdict, expected)
        assert result.message == "failures is 3 (max 9; baselineQuery: it says why)"

    def test_a_baseline_that_was_not_asked_is_missing(self) -> None:
        assert judged(RELATIVE, 3).reason == "NoBaseline"

    def test_what_is_exceeded_comes_before_a_missing_baseline(self) -> None:
        result = judged({**RELATIVE, "max": "9"}, (10, nothing("NoData")))
        assert (result.verdict, result.reason) == (Verdict.FAIL, "AboveMax")

    def test_the_canary_without_data_is_no_data_whatever_the_baseline(self) -> None:
        for baseline in (5, 0, -1, nothing("BadQuery")):
            assert judged(RELATIVE, (nothing("NoData"), baseline)).reason == "NoData"

    def test_a_multiple_of_zero_fails_nothing_and_passes_only_what_is_not_above_zero(self) -> None:
        result = judged(RELATIVE, (3, 0))
        assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, "ZeroBaseline")
        assert result.message == "failures is 3 (maxRelative 120 % of 0 is no limit; set maxIncrease as well)"
        assert judged(RELATIVE, (0, 0)).verdict is Verdict.PASS
        assert judged(RELATIVE, (-1, 0)).verdict is Verdict.PASS
        assert judged({**RELATIVE, "max": "2"}, (3, 0)).reason == "AboveMax"

    def test_a_multiple_of_a_negative_number_is_a_mistake(self) -> None:
        result = judged(RELATIVE, (3, "-0.5"))
        assert (result.verdict, result.reason) == (Verdict.ERROR, "BadQuery")
        assert result.message.endswith("(maxRelative 120 % of -0.5 is no limit, as that is negative; set maxIncrease)")

    @pytest.mark.parametrize("baseline", [0, -1])
    def test_where_a_multiple_says_nothing_the_increase_decides_alone(self, baseline: int) -> None:
        both = {**RELATIVE, **INCREASE}
        assert judged(both, (baseline + 2, baseline)).verdict is Verdict.PASS
        assert judged(both, (baseline + 3, baseline)).reason == "AboveIncrease"

    def test_a_relative_limit_without_baseline_query_is_a_mistake(self) -> None:
        result = judged({"maxRelative": "120%", "max": "5"}, 9)
        assert (result.verdict, result.reason) == (Verdict.ERROR, "BadQuery")
        assert "compare with baselineQuery, and there is none" in result.message


class TestFullWeight:
    """At weight 100 stable has no traffic: what it answers then says nothing about it."""

    FINISHED = (
        FinishedStep(weight=10, passed_at=T0, evidence={"metrics/failures.baseline": "3"}),
        FinishedStep(weight=50, passed_at=T0, evidence={"metrics/failures.baseline": "5"}),
        FinishedStep(weight=60, passed_at=T0),
    )

    def judged(self, fields: dict[str, Any], given: tuple[Answer, Answer], *finished: FinishedStep) -> GateResult:
        return judge_metric(gate(**fields), evidence(given, weight=100), T0, finished)

    @pytest.mark.parametrize("baseline", ["0.01", 100, nothing("NoData")])
    def test_the_baseline_is_that_of_the_step_before(self, baseline: Answer) -> None:
        assert self.judged(RELATIVE, (6, baseline), *self.FINISHED).verdict is Verdict.PASS
        result = self.judged(RELATIVE, ("6.1", baseline), *self.FINISHED)
        assert (result.verdict, result.baseline) == (Verdict.FAIL, Fraction(5))
        assert result.message == "failures is 6.1 (maxRelative 120 % of 5 of the step before)"

    def test_without_a_step_before_absolute_limits_decide_alone(self) -> None:
        result = self.judged({**RELATIVE, "max": "9"}, (8, "0.01"))
        assert result.verdict is Verdict.PASS
        assert result.message == (
            "failures is 8 (max 9; stable has no traffic at weight 100, and no step before to compare with)"
        )
        assert self.judged({**RELATIVE, "max": "9"}, (10, "0.01")).reason == "AboveMax"
        assert self.judged({**RELATIVE, "min": "1"}, (8, "0.01")).verdict is Verdict.PASS

    def test_without_anything_to_compare_with_it_does_not_pass(self) -> None:
        result = self.judged(RELATIVE, (8, 100))
        assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, "NoBaseline")

    @pytest.mark.parametrize("query", ["q offset 1d", "q{version='$canary'} offset 1d", "q{a='$stable_x'}"])
    def test_a_baseline_that_is_not_about_stable_is_compared_with_as_ever(self, query: str) -> None:
        result = self.judged({**RELATIVE, "baselineQuery": query}, (8, 5), *self.FINISHED)
        assert (result.verdict, result.reason, result.baseline) == (Verdict.FAIL, "AboveRelative", Fraction(5))
        assert self.judged({**RELATIVE, "baselineQuery": query}, (8, 7)).verdict is Verdict.PASS

    def test_both_spellings_of_the_variable_are_about_stable(self) -> None:
        braces = {**RELATIVE, "baselineQuery": "q{version='${stable}'}"}
        assert self.judged(braces, (6, "0.01"), *self.FINISHED).verdict is Verdict.PASS

    def test_what_a_step_leaves_behind_is_the_median_of_its_baselines(self) -> None:
        metric = gate(**RELATIVE)
        found = evidence((1, 4), (1, nothing("NoData")), (1, 100), (1, "4.5"), (1, 0))
        assert baselines([metric], found, T0) == {"metrics/failures.baseline": "4.25"}
        assert baselines([metric], found, T0 + 2 * INTERVAL) == {"metrics/failures.baseline": "4.5"}
        assert baselines([metric], evidence((1, nothing("NoData"))), T0) == {}
        assert baselines([gate(**BOUNDS)], evidence(1), T0) == {}
        assert baselines([metric], None, T0) == {}
        kept = FinishedStep(weight=50, passed_at=T0, evidence=dict(baselines([metric], found, T0)))
        assert self.judged(RELATIVE, ("5.1", 0), kept).verdict is Verdict.PASS
        assert self.judged(RELATIVE, ("5.11", 0), kept).verdict is Verdict.FAIL


@pytest.mark.parametrize("text", ["abc", "", "1/0", "nan", "1e999999999", "5 "])
def test_a_remembered_baseline_that_somebody_else_wrote_is_none(text: str) -> None:
    finished = [
        FinishedStep(weight=weight, passed_at=T0, evidence={"metrics/failures.baseline": known})
        for weight, known in ((30, "5"), (50, text))
    ]
    result = judge_metric(gate(**RELATIVE), evidence("6.1", weight=100), T0, finished)
    assert result.message == "failures is 6.1 (maxRelative 120 % of 5 of the step before)"
    assert judge_metric(gate(**RELATIVE), evidence("3", weight=100), T0, finished[1:]).reason == "NoBaseline"


class TestFailureLimit:
    TWO = {"max": "5", "failureLimit": 2}  # noqa: RUF012 - never changed

    def test_more_than_the_limit_fail(self) -> None:
        result = judged(self.TWO, 6, 7, 8)
        assert (result.verdict, result.reason, result.value) == (Verdict.FAIL, "AboveMax", Fraction(8))
        assert result.message == "failures is 8 (max 5); 3 of 3 values outside, 2 allowed"

    def test_as_many_as_the_limit_hold_while_the_newest_is_one(self) -> None:
        result = judged(self.TWO, 1, 6, 7)
        assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, "OutsideLimits")
        assert result.message == "failures is 7 (max 5); 2 of 3 values outside, 2 allowed"

    def test_as_many_as_the_limit_pass_once_the_newest_is_inside(self) -> None:
        result = judged(self.TWO, 6, 7, 5)
        assert (result.verdict, result.reason) == (Verdict.PASS, "WithinLimits")
        assert result.message == "failures is 5 (max 5); 2 of 3 values outside, 2 allowed"

    def test_they_need_not_be_in_a_row_and_what_failed_stays_failed(self) -> None:
        result = judged(self.TWO, 6, 1, 7, 1, 8, 1)
        assert (result.verdict, result.reason, result.value, result.at) == (
            Verdict.FAIL,
            "AboveMax",
            Fraction(8),
            T0 + 5 * INTERVAL,
        )
        assert result.message == "failures was, at 12:00:50Z, 8 (max 5); 3 of 6 values outside, 2 allowed"

    def test_readings_from_before_the_weight_do_not_count(self) -> None:
        found = evidence(6, 7, 8)
        assert judge_metric(gate(**self.TWO), found, T0 + INTERVAL).verdict is Verdict.INCONCLUSIVE
        assert judge_metric(gate(**self.TWO), found, T0).verdict is Verdict.FAIL

    def test_what_is_no_number_is_not_outside(self) -> None:
        for reason in ("NoData", "NotANumber", "BadQuery", "ProviderError"):
            assert judged(self.TWO, *[nothing(reason)] * 9, 6, 7).reason == "OutsideLimits"
            result = judged(self.TWO, 6, 7, nothing(reason))
            assert result.reason == reason
            assert result.message == "failures: it says why; 2 of 3 values outside, 2 allowed"

    def test_a_reading_is_outside_by_any_limit(self) -> None:
        fields = {**RELATIVE, "max": "5", "failureLimit": 1}
        assert judged(fields, (6, nothing("NoData")), (3, 1)).verdict is Verdict.FAIL


answers = st.one_of(
    st.decimals(-20, 20, places=2).map(str),
    st.sampled_from(["NoData", "NotANumber", "BadQuery", "ProviderError"]).map(nothing),
)
pairs = st.lists(st.tuples(answers, answers), max_size=8)
limits = st.fixed_dictionaries(
    {"failureLimit": st.integers(0, 3)},
    optional={
        "max": st.decimals(-5, 15, places=1).map(str),
        "min": st.decimals(-15, 5, places=1).map(str),
        "maxRelative": st.sampled_from(["100%", "150%"]),
        "maxIncrease": st.sampled_from(["0", "3"]),
        "baselineQuery": st.sampled_from(["q", "q{v='$stable'}"]),
    },
)


@given(limits, pairs, st.sampled_from([10, 100]))
def test_a_pass_is_inside_every_limit_that_applies(
    fields: dict[str, Any], given: list[tuple[Answer, Answer]], weight: int
) -> None:
    result = judged(fields, *given, weight=weight)
    if result.verdict is Verdict.PASS:
        metric, value = gate(**fields), Fraction(str(given[-1][0]))
        assert result.value == value
        assert metric.max is None or value <= metric.max
        assert metric.min is None or value >= metric.min
        if result.baseline is not None and metric.max_increase is not None:
            assert value <= result.baseline + metric.max_increase
        if result.baseline is not None and metric.max_relative is not None and result.baseline > 0:
            assert value <= result.baseline * metric.max_relative
        if metric.max is metric.min is None:
            assert result.baseline is not None


@given(limits, pairs)
def test_it_fails_exactly_when_more_readings_fail_than_allowed(
    fields: dict[str, Any], given: list[tuple[Answer, Answer]]
) -> None:
    alone = [judged({**fields, "failureLimit": 0}, one).verdict for one in given]
    failed = alone.count(Verdict.FAIL) > fields["failureLimit"]
    assert (judged(fields, *given).verdict is Verdict.FAIL) == failed


@given(st.fractions(-100, 100), st.fractions(-100, 100, max_denominator=10**6))
def test_a_number_is_shown_on_its_side_of_the_limit(value: Fraction, bound: Fraction) -> None:
    bound = Fraction(format_decimal(bound))
    metric = MetricGate(name="failures", query="q", max=bound)
    result = judge_metric(metric, evidence(MetricValue(value)), T0)
    shown = Fraction(result.message.removeprefix("failures is ").partition(" ")[0])
    if abs(value - bound) > Fraction(1, 10**8):
        assert (shown > bound) == (value > bound)
    assert abs(shown - value) <= max(abs(value) / 1000, Fraction(1, 10**9))


@pytest.mark.parametrize("limit", [{"min": "1"}, {"max": "5"}])
def test_one_limit_is_enough(limit: dict[str, str]) -> None:
    assert judged(limit, 3).verdict is Verdict.PASS


@pytest.mark.parametrize("value", ["0", "-3", "2"])
def test_without_a_baseline_no_value_is_within_a_multiple_of_it(value: str) -> None:
    result = judged(RELATIVE, (value, nothing("NoData")))
    assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, "NoBaseline")


@pytest.mark.parametrize("value", ["0.5", "1"])
def test_above_a_baseline_of_zero_nothing_passes_a_multiple(value: str) -> None:
    assert judged(RELATIVE, (value, 0)).reason == "ZeroBaseline"


def test_what_is_allowed_is_mentioned_once_a_value_was_outside() -> None:
    assert judged({**BOUNDS, "failureLimit": 2}, 3).message == "failures is 3 (min 1, max 5)"
    assert judged({**BOUNDS, "failureLimit": 2}, 9, 3).message.endswith("; 1 of 2 values outside, 2 allowed")


@pytest.mark.parametrize(
    ("limits", "value", "shown"),
    [
        ({"max": "5.41485"}, "5.4148", "5.4148"),
        ({"min": "1", "max": "5"}, "5.0000001", "5.0000001"),
        ({"min": "5", "max": "9"}, "4.9999999", "4.9999999"),
    ],
)
def test_a_value_is_shown_on_its_side_of_every_limit(limits: dict[str, str], value: str, shown: str) -> None:
    assert judged(limits, value).message.startswith(f"failures is {shown} (")
