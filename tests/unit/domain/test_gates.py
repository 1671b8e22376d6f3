from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.spec import Analysis, AnalysisMode
from canaryrollout.api.status import Baseline, Counts, FinishedStep, Verdict
from canaryrollout.domain.evidence import Block, Evidence, EvidenceRequest, MetricValue
from canaryrollout.domain.gates import Judgement, effective_analysis, judge

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
INTERVAL = timedelta(seconds=10)
REQUEST = EvidenceRequest(
    provider="default",
    namespace="shop",
    host="reviews.shop.svc.cluster.local",
    stable="v1",
    canary="v2",
    version_label="version",
    start=T0,
    interval=INTERVAL,
)
ERRORS = {"errorRate": {"max": "1%"}}
RELATIVE = {"errorRate": {"maxRelative": "150%"}}
LATENCY = {"latency": {"threshold": "500ms", "maxSlow": "1%"}}


def counts(requests: int = 0, errors: int = 0, timed: int = 0, slow: int = 0) -> Counts:
    return Counts(requests=requests, errors=errors, timed=timed, slow=slow)


def blocks(*contents: dict[str, Any]) -> tuple[Block, ...]:
    return tuple(Block(T0 + i * INTERVAL, T0 + (i + 1) * INTERVAL, **content) for i, content in enumerate(contents))


def evidence(*contents: dict[str, Any], **fields: Any) -> Evidence:
    return Evidence(REQUEST, blocks(*contents), **fields)


def verdict(
    analysis: dict[str, Any],
    found: Evidence | None,
    *,
    weight: int = 10,
    finished: Sequence[FinishedStep] = (),
    baseline: Baseline | None = None,
    since: datetime | None = None,
    opening: Sequence[Block] = (),
) -> Judgement:
    model = Analysis.model_validate(analysis)
    return judge(model, found, weight=weight, finished=finished, baseline=baseline, since=since, opening=opening)


def one(canary: Counts, stable: Counts | None = None, unreached: int = 0) -> Evidence:
    return evidence({"canary": canary, "stable": stable or counts(10_000), "unreached": unreached})


class TestDefaults:
    def test_nothing_set_means_one_percent_of_errors(self) -> None:
        effective = effective_analysis(Analysis())
        assert effective.error_rate is not None
        assert effective.error_rate.max == Fraction(1, 100)
        assert effective.error_rate.max_relative is None
        assert effective.mode is AnalysisMode.THRESHOLD

    def test_what_is_set_stays(self) -> None:
        effective = effective_analysis(Analysis.model_validate({"latency": {"threshold": "250ms", "maxSlow": "5%"}}))
        assert effective.error_rate is None
        assert effective.latency is not None
        assert effective.latency.max_slow == Fraction(1, 20)

    def test_gates_without_a_limit_get_one(self) -> None:
        effective = effective_analysis(Analysis.model_validate({"errorRate": {}, "latency": {"threshold": "250ms"}}))
        assert effective.error_rate is not None
        assert effective.latency is not None
        assert (effective.error_rate.max, effective.latency.max_slow) == (Fraction(1, 100), Fraction(1, 100))

    def test_twice_is_once(self) -> None:
        once = effective_analysis(Analysis())
        assert effective_analysis(once) == once


class TestAbsoluteLimit:
    def test_above_fails_with_numbers(self) -> None:
        judged = verdict(ERRORS, one(counts(412, 21)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")
        assert judged.message == "canary 5.1 % of 412 requests failed (limit 1 %)"

    def test_at_the_limit_passes(self) -> None:
        judged = verdict(ERRORS, one(counts(400, 4)))
        assert (judged.verdict, judged.reason) == (Verdict.PASS, "WithinLimits")
        assert judged.message == "canary 1 % of 400 requests failed (limit 1 %)"

    def test_counts_are_cumulative_over_blocks(self) -> None:
        found = evidence({"canary": counts(60, 1)}, {"canary": counts(60, 1)}, {"canary": counts(60, 0)})
        judged = verdict(ERRORS, found)
        assert judged.verdict is Verdict.FAIL
        assert judged.canary == counts(180, 2)

    def test_neither_passes_nor_fails_below_min_requests(self) -> None:
        judged = verdict(ERRORS, one(counts(37, 10)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "LowSample")
        assert judged.message == "37 of 100 requests of the canary so far"

    def test_a_limit_of_zero_fails_on_one_error(self) -> None:
        assert verdict({"errorRate": {"max": "0%"}}, one(counts(1000, 1))).verdict is Verdict.FAIL
        assert verdict({"errorRate": {"max": "0%"}}, one(counts(1000, 0))).verdict is Verdict.PASS

    def test_default_gate_judges_too(self) -> None:
        assert verdict({}, one(counts(100, 2))).verdict is Verdict.FAIL


class TestMissingData:
    def test_nothing_fetched(self) -> None:
        judged = verdict(ERRORS, None)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoData")

    def test_no_series_in_the_newest_block(self) -> None:
        found = evidence({"canary": counts(500)}, {"canary_seen": False})
        judged = verdict(ERRORS, found)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoData")

    def test_series_without_requests(self) -> None:
        judged = verdict(ERRORS, evidence({}))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoTraffic")

    def test_blocks_before_the_weight_was_in_effect_do_not_count(self) -> None:
        found = evidence({"canary": counts(500, 100)}, {"canary": counts(100)})
        judged = verdict(ERRORS, found, since=T0 + INTERVAL)
        assert judged.verdict is Verdict.PASS
        assert judged.canary == counts(100)
        judged = verdict(ERRORS, found, since=T0 + INTERVAL + timedelta(milliseconds=1))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoData")

    def test_provider_error_is_never_a_pass(self) -> None:
        found = evidence({"canary": counts(500)}, error="connection refused", error_since=T0)
        judged = verdict(ERRORS, found)
        assert (judged.verdict, judged.reason) == (Verdict.ERROR, "ProviderError")
        assert judged.message == (
            "provider default: connection refused (since 12:00:00Z); "
            "before: canary 0 % of 500 requests failed (limit 1 %)"
        )

    def test_what_was_seen_fails_even_while_the_provider_is_away(self) -> None:
        assert verdict(ERRORS, evidence({"canary": counts(500, 50)}, error="timed out")).verdict is Verdict.FAIL

    def test_partial_data_is_never_a_pass(self) -> None:
        judged = verdict(ERRORS, evidence({"canary": counts(500)}, warnings=("store b is away",)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "PartialData")
        assert "store b is away" in judged.message

    def test_partial_data_fails_on_what_it_shows(self) -> None:
        found = evidence({"canary": counts(500, 50)}, warnings=("store b is away",))
        assert verdict(ERRORS, found).verdict is Verdict.FAIL

    def test_notes_are_told_and_change_nothing(self) -> None:
        judged = verdict(ERRORS, evidence({"canary": counts(500)}, notes=("a counter was reset",)))
        assert judged.verdict is Verdict.PASS
        assert judged.message.endswith("; a counter was reset")


class TestRelativeLimit:
    def test_above_stable_fails(self) -> None:
        judged = verdict(RELATIVE, one(counts(1000, 40), counts(9000, 90)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveRelative")
        assert judged.message == "canary 4 % of 1000 requests failed (limit 150 % of stable's 1 % of 9000 requests)"

    def test_as_bad_as_stable_passes(self) -> None:
        assert verdict(RELATIVE, one(counts(1000, 100), counts(9000, 900))).verdict is Verdict.PASS
        assert verdict(RELATIVE, one(counts(1000, 15), counts(9000, 90))).verdict is Verdict.PASS

    def test_two_errors_are_no_evidence(self) -> None:
        assert verdict(RELATIVE, one(counts(100, 2), counts(9000, 0))).verdict is Verdict.PASS
        assert verdict(RELATIVE, one(counts(100, 3), counts(9000, 0))).verdict is Verdict.FAIL

    def test_faultless_stable_with_few_requests_is_taken_to_have_had_one_error(self) -> None:
        # 0.3 % against "at most one of 100": nothing to complain about; against one of 9,000 it is.
        assert verdict(RELATIVE, one(counts(1000, 3), counts(100, 0)), weight=90).verdict is Verdict.PASS
        assert verdict(RELATIVE, one(counts(1000, 3), counts(9000, 0)), weight=10).verdict is Verdict.FAIL

    def test_too_few_requests_of_stable_wait(self) -> None:
        judged = verdict(RELATIVE, one(counts(1000, 50), counts(99, 0)), weight=90)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "LowStableSample")
        assert judged.message == "stable has 99 of 100 requests to compare with"

    def test_too_few_requests_of_stable_are_filled_up_from_finished_steps(self) -> None:
        finished = (FinishedStep(weight=50, passed_at=T0, stable=counts(1000, 1)),)
        found = one(counts(1000, 50), counts(99, 0))
        assert verdict(RELATIVE, found, weight=90, finished=finished).verdict is Verdict.FAIL

    def test_at_full_weight_stable_is_that_of_the_finished_steps(self) -> None:
        finished = (
            FinishedStep(weight=10, passed_at=T0, stable=counts(900, 9)),
            FinishedStep(weight=50, passed_at=T0, stable=counts(100, 1)),
        )
        # What stable still answers by other ways (all failing here) is not looked at.
        found = one(counts(1000, 16), counts(1000, 1000))
        judged = verdict(RELATIVE, found, weight=100, finished=finished)
        assert judged.verdict is Verdict.FAIL
        assert "stable's 1 % of 1000 requests" in judged.message
        assert verdict(RELATIVE, one(counts(1000, 15)), weight=100, finished=finished).verdict is Verdict.PASS

    def test_at_full_weight_without_history_the_absolute_limit_decides_alone(self) -> None:
        both = {"errorRate": {"max": "5%", "maxRelative": "150%"}}
        judged = verdict(both, one(counts(1000, 50)), weight=100)
        assert judged.verdict is Verdict.PASS
        assert "stable has 0 of 100 requests to compare with" in judged.message
        assert verdict(both, one(counts(1000, 51)), weight=100).verdict is Verdict.FAIL
        assert verdict(RELATIVE, one(counts(1000, 50)), weight=100).verdict is Verdict.INCONCLUSIVE


class TestLatency:
    def test_slow_requests_are_a_share_of_the_same_histogram(self) -> None:
        judged = verdict(LATENCY, one(counts(requests=10_000, timed=100, slow=2)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")
        assert judged.message == "canary 2 % of 100 timed requests took longer than 500ms (limit 1 %)"
        assert verdict(LATENCY, one(counts(requests=100, timed=200, slow=2))).verdict is Verdict.PASS

    def test_counters_do_not_stand_in_for_the_histogram(self) -> None:
        judged = verdict(LATENCY, one(counts(requests=500, timed=0)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoTraffic")
        judged = verdict(LATENCY, one(counts(requests=500, timed=99)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "LowSample")

    def test_relative_to_stable(self) -> None:
        relative = {"latency": {"threshold": "500ms", "maxRelative": "200%"}}
        stable = counts(timed=1000, slow=100)
        assert verdict(relative, one(counts(timed=100, slow=20), stable)).verdict is Verdict.PASS
        assert verdict(relative, one(counts(timed=100, slow=21), stable)).verdict is Verdict.FAIL

    def test_requests_without_version_have_no_latency(self) -> None:
        assert verdict(LATENCY, one(counts(timed=200, slow=2), unreached=10)).verdict is Verdict.PASS


class TestUnreached:
    def test_requests_without_version_count_against_the_canary(self) -> None:
        judged = verdict(ERRORS, one(counts(150, 0), unreached=10))
        assert judged.verdict is Verdict.FAIL
        assert judged.message == "canary 6.25 % of 160 requests failed (limit 1 %)"

    def test_only_what_exceeds_the_usual_counts(self) -> None:
        usual = Baseline(seconds=60, unreached=60)  # ten per block
        assert verdict(ERRORS, one(counts(150, 0), unreached=10), baseline=usual).verdict is Verdict.PASS
        assert verdict(ERRORS, one(counts(150, 0), unreached=11), baseline=usual).verdict is Verdict.PASS
        judged = verdict(ERRORS, one(counts(148, 0), unreached=12), baseline=usual)
        assert judged.message == "canary 1.33 % of 150 requests failed (limit 1 %)"

    def test_fewer_than_usual_do_not_help(self) -> None:
        usual = Baseline(seconds=10, unreached=100)
        assert verdict(ERRORS, one(counts(100, 2), unreached=0), baseline=usual).verdict is Verdict.FAIL

    def test_a_canary_that_nobody_reaches_fails_without_a_series(self) -> None:
        judged = verdict(ERRORS, evidence({"canary_seen": False, "unreached": 25}))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")


class TestHardCeiling:
    def test_half_of_twenty_is_enough(self) -> None:
        judged = verdict({"latency": {"threshold": "500ms"}}, one(counts(20, 10)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")
        assert judged.message == "10 of 20 requests of the canary failed (at once beyond 50 %)"

    @pytest.mark.parametrize(("requests", "errors"), [(19, 19), (20, 9), (99, 49)])
    def test_less_is_not(self, requests: int, errors: int) -> None:
        assert verdict(ERRORS, one(counts(requests, errors))).verdict is Verdict.INCONCLUSIVE

    def test_it_does_not_wait_for_the_weight_to_be_in_effect(self) -> None:
        judged = verdict(ERRORS, one(counts(50, 50)), since=T0 + timedelta(hours=1))
        assert judged.verdict is Verdict.FAIL

    def test_what_fails_while_proxies_take_the_weight_over_counts_and_adds_up(self) -> None:
        """The first fifty requests fail, some before the evidence begins and some after, and then there are none."""
        opening = blocks({"canary": counts(31, 31)})
        judged = verdict(ERRORS, one(counts(19, 19)), opening=opening)
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")
        assert judged.message.startswith("50 of 50 requests of the canary failed")
        assert verdict(ERRORS, None, opening=opening).verdict is Verdict.FAIL, "at once, without any evidence"

    def test_it_alone_looks_at_what_was_before_the_evidence(self) -> None:
        opening = blocks({"canary": counts(1_000, 100)})
        judged = verdict(ERRORS, one(counts(1_000)), opening=opening)
        assert (judged.verdict, judged.canary) == (Verdict.PASS, counts(1_000))

    def test_a_long_good_past_does_not_hide_a_bad_present(self) -> None:
        found = evidence(*[{"canary": counts(10_000)}] * 5, {"canary": counts(15, 15)}, {"canary": counts(5, 5)})
        assert verdict({"errorRate": {"max": "50%"}}, found).reason == "HardCeiling"


def test_the_worst_gate_decides_and_all_are_told() -> None:
    analysis = {**ERRORS, **LATENCY, "metrics": [{"name": "failures", "query": "q", "max": "5"}]}
    found = one(counts(200, 0, timed=50))
    judged = verdict(analysis, replace(found, metrics={"failures": MetricValue(None, T0, "no", "BadQuery")}))
    assert [(gate.name, gate.verdict) for gate in judged.gates] == [
        ("errorRate", Verdict.PASS),
        ("latency", Verdict.INCONCLUSIVE),
        ("metrics/failures", Verdict.ERROR),
    ]
    assert (judged.verdict, judged.message) == (Verdict.ERROR, "failures: no")
    judged = verdict(analysis, replace(found, metrics={"failures": MetricValue(Fraction(6), T0)}))
    assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")


some_counts = st.builds(
    lambda requests, errors, timed, slow: counts(requests, min(errors, requests), timed, min(slow, timed)),
    st.integers(0, 3000),
    st.integers(0, 60),
    st.integers(0, 3000),
    st.integers(0, 60),
)
some_blocks = st.lists(
    st.fixed_dictionaries(
        {
            "canary": some_counts,
            "stable": some_counts,
            "unreached": st.integers(0, 5),
            "canary_seen": st.booleans(),
        }
    ),
    max_size=6,
)
BOTH = {
    "errorRate": {"max": "1%", "maxRelative": "150%"},
    "latency": {"threshold": "500ms", "maxSlow": "2%", "maxRelative": "150%"},
}


@given(some_blocks, st.integers(1, 100), st.sampled_from(["", "away"]), st.sampled_from([(), ("partial",)]))
def test_a_pass_needs_clean_sufficient_data_within_limits(
    contents: list[dict[str, Any]], weight: int, error: str, warnings: tuple[str, ...]
) -> None:
    judged = verdict(BOTH, evidence(*contents, error=error, warnings=warnings), weight=weight)
    if judged.verdict is Verdict.PASS:
        assert not error
        assert not warnings
        assert contents[-1]["canary_seen"]
        unreached = sum(content["unreached"] for content in contents)
        assert judged.canary.requests + unreached >= 100
        assert judged.canary.timed >= 100
        assert (judged.canary.errors + unreached) * 100 <= judged.canary.requests + unreached
        assert judged.canary.slow * 50 <= judged.canary.timed


@given(some_blocks, st.integers(1, 100), st.integers(1, 20))
def test_more_errors_never_make_it_better(contents: list[dict[str, Any]], weight: int, more: int) -> None:
    before = verdict(BOTH, evidence(*contents), weight=weight).verdict
    worse = [
        {
            **content,
            "canary": counts(c.requests, min(c.errors + more, c.requests), c.timed, min(c.slow + more, c.timed)),
        }
        for content in contents
        for c in [content["canary"]]
    ]
    after = verdict(BOTH, evidence(*worse), weight=weight).verdict
    assert before is not Verdict.FAIL or after is Verdict.FAIL
    assert after is not Verdict.PASS or before is Verdict.PASS
