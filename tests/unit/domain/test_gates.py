"""What holds under either rule: defaults, missing and doubtful data, the hard ceiling, the worst gate."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.spec import Analysis, AnalysisMode
from canaryrollout.api.status import Baseline, Verdict
from canaryrollout.domain.evidence import MetricReading, MetricValue
from canaryrollout.domain.gates import effective_analysis
from tests.unit.domain.gatecases import (
    BOTH,
    ERRORS,
    INTERVAL,
    LATENCY,
    T0,
    blocks,
    counts,
    evidence,
    one,
    some_blocks,
    verdict,
    worse,
)

EITHER = pytest.mark.parametrize("mode", ["Sequential", "Threshold"])


class TestDefaults:
    def test_nothing_set_means_one_percent_of_errors_and_half_more_than_stable(self) -> None:
        effective = effective_analysis(Analysis())
        assert effective.error_rate is not None
        assert effective.error_rate.max == Fraction(1, 100)
        assert effective.error_rate.max_relative == Fraction(3, 2)
        assert effective.latency is None
        assert effective.mode is AnalysisMode.SEQUENTIAL

    def test_the_plain_rule_has_no_relative_limit_of_its_own(self) -> None:
        effective = effective_analysis(Analysis.model_validate({"mode": "Threshold"}))
        assert effective.error_rate is not None
        assert effective.error_rate.max == Fraction(1, 100)
        assert effective.error_rate.max_relative is None
        assert effective.mode is AnalysisMode.THRESHOLD

    def test_what_is_set_stays(self) -> None:
        effective = effective_analysis(Analysis.model_validate({"latency": {"threshold": "250ms", "maxSlow": "5%"}}))
        assert effective.error_rate is None
        assert effective.latency is not None
        assert effective.latency.max_slow == Fraction(1, 20)
        assert effective.latency.max_relative is None

    def test_a_limit_that_is_set_gets_no_other_beside_it(self) -> None:
        effective = effective_analysis(Analysis.model_validate(ERRORS))
        assert effective.error_rate is not None
        assert effective.error_rate.max_relative is None

    def test_metrics_of_the_users_own_are_gates_enough(self) -> None:
        metrics = [{"name": "failures", "query": "q", "max": "5"}]
        effective = effective_analysis(Analysis.model_validate({"metrics": metrics}))
        assert (effective.error_rate, effective.latency) == (None, None)

    def test_gates_without_a_limit_get_one(self) -> None:
        effective = effective_analysis(Analysis.model_validate({"errorRate": {}, "latency": {"threshold": "250ms"}}))
        assert effective.error_rate is not None
        assert effective.latency is not None
        assert (effective.error_rate.max, effective.latency.max_slow) == (Fraction(1, 100), Fraction(1, 100))

    @pytest.mark.parametrize("analysis", [{}, {"mode": "Threshold"}, BOTH, LATENCY])
    def test_twice_is_once(self, analysis: dict[str, Any]) -> None:
        once = effective_analysis(Analysis.model_validate(analysis))
        assert effective_analysis(once) == once

    def test_default_gate_judges_too(self) -> None:
        assert verdict({}, one(counts(500, 25))).verdict is Verdict.FAIL
        assert verdict({}, one(counts(500, 2), counts(4500, 18))).verdict is Verdict.PASS


@EITHER
class TestMissingData:
    def test_nothing_fetched(self, mode: str) -> None:
        judged = verdict({**ERRORS, "mode": mode}, None)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoData")

    def test_no_series_in_the_newest_block(self, mode: str) -> None:
        found = evidence({"canary": counts(500)}, {"canary_seen": False})
        judged = verdict({**ERRORS, "mode": mode}, found)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoData")

    def test_series_without_requests(self, mode: str) -> None:
        judged = verdict({**ERRORS, "mode": mode}, evidence({}))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoTraffic")

    def test_blocks_before_the_weight_was_in_effect_do_not_count(self, mode: str) -> None:
        found = evidence({"canary": counts(500, 100)}, {"canary": counts(100)})
        judged = verdict({**ERRORS, "mode": mode}, found, since=T0 + INTERVAL)
        assert judged.verdict is Verdict.PASS
        assert judged.canary == counts(100)
        judged = verdict({**ERRORS, "mode": mode}, found, since=T0 + INTERVAL + timedelta(milliseconds=1))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NoData")

    def test_provider_error_is_never_a_pass(self, mode: str) -> None:
        found = evidence({"canary": counts(500)}, error="connection refused", error_since=T0)
        judged = verdict({**ERRORS, "mode": mode}, found)
        assert (judged.verdict, judged.reason) == (Verdict.ERROR, "ProviderError")
        weighed = "" if mode == "Threshold" else ", evidence 0.24 of 20"
        assert judged.message == (
            "provider default: connection refused (since 12:00:00Z); "
            f"before: error rate 0 % (0/500): limit 1 %{weighed}"
        )

    def test_what_was_seen_fails_even_while_the_provider_is_away(self, mode: str) -> None:
        found = evidence({"canary": counts(500, 50)}, error="timed out")
        assert verdict({**ERRORS, "mode": mode}, found).verdict is Verdict.FAIL

    def test_partial_data_is_never_a_pass(self, mode: str) -> None:
        judged = verdict({**ERRORS, "mode": mode}, evidence({"canary": counts(500)}, warnings=("store b is away",)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "PartialData")
        assert "store b is away" in judged.message

    def test_partial_data_fails_on_what_it_shows(self, mode: str) -> None:
        found = evidence({"canary": counts(500, 50)}, warnings=("store b is away",))
        assert verdict({**ERRORS, "mode": mode}, found).verdict is Verdict.FAIL

    def test_notes_are_told_and_change_nothing(self, mode: str) -> None:
        judged = verdict({**ERRORS, "mode": mode}, evidence({"canary": counts(500)}, notes=("a counter was reset",)))
        assert judged.verdict is Verdict.PASS
        assert judged.message.endswith("; a counter was reset")


@EITHER
class TestHardCeiling:
    def test_half_of_twenty_is_enough(self, mode: str) -> None:
        judged = verdict({"latency": {"threshold": "500ms"}, "mode": mode}, one(counts(20, 10)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")
        assert judged.message == "10 of 20 requests of the canary failed (at once beyond 50 %)"

    @pytest.mark.parametrize(("requests", "errors"), [(19, 19), (20, 9), (99, 49)])
    def test_less_is_not(self, requests: int, errors: int, mode: str) -> None:
        judged = verdict({"errorRate": {"max": "60%"}, "mode": mode}, one(counts(requests, errors)))
        assert judged.verdict is Verdict.INCONCLUSIVE

    def test_it_does_not_wait_for_the_weight_to_be_in_effect(self, mode: str) -> None:
        judged = verdict({**ERRORS, "mode": mode}, one(counts(50, 50)), since=T0 + timedelta(hours=1))
        assert judged.verdict is Verdict.FAIL

    def test_what_fails_while_proxies_take_the_weight_over_counts_and_adds_up(self, mode: str) -> None:
        """The first fifty requests fail, some before the evidence begins and some after, and then there are none."""
        opening = blocks({"canary": counts(31, 31)})
        judged = verdict({**ERRORS, "mode": mode}, one(counts(19, 19)), opening=opening)
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")
        assert judged.message.startswith("50 of 50 requests of the canary failed")
        assert verdict({**ERRORS, "mode": mode}, None, opening=opening).verdict is Verdict.FAIL, "without any evidence"

    def test_it_alone_looks_at_what_was_before_the_evidence(self, mode: str) -> None:
        opening = blocks({"canary": counts(1_000, 100)})
        judged = verdict({**ERRORS, "mode": mode}, one(counts(1_000)), opening=opening)
        assert (judged.verdict, judged.canary) == (Verdict.PASS, counts(1_000))

    def test_a_long_good_past_does_not_hide_a_bad_present(self, mode: str) -> None:
        found = evidence(*[{"canary": counts(10_000)}] * 5, {"canary": counts(15, 15)}, {"canary": counts(5, 5)})
        assert verdict({"errorRate": {"max": "50%"}, "mode": mode}, found).reason == "HardCeiling"

    def test_a_canary_that_nobody_reaches_fails_without_a_series(self, mode: str) -> None:
        judged = verdict({**ERRORS, "mode": mode}, evidence({"canary_seen": False, "unreached": 25}))
        assert judged.verdict is Verdict.FAIL
        assert judged.reason == "HardCeiling"

    def test_requests_that_always_reached_nobody_are_no_failures_of_the_canary(self, mode: str) -> None:
        found = evidence({"canary_seen": False, "unreached": 25})
        usual = Baseline(seconds=10, unreached=25)
        assert verdict({**ERRORS, "mode": mode}, found, baseline=usual).verdict is Verdict.INCONCLUSIVE


def readings(value: MetricValue) -> dict[str, tuple[MetricReading, ...]]:
    return {"failures": (MetricReading(T0 + INTERVAL, value),)}


@EITHER
def test_the_worst_gate_decides_and_all_are_told(mode: str) -> None:
    analysis = {**ERRORS, **LATENCY, "metrics": [{"name": "failures", "query": "q", "max": "5"}], "mode": mode}
    found = one(counts(200, 0, timed=50))
    unanswered = MetricValue(None, problem="no", reason="BadQuery")
    judged = verdict(analysis, replace(found, metrics=readings(unanswered)))
    assert [(gate.name, gate.verdict) for gate in judged.gates] == [
        ("errorRate", Verdict.PASS),
        ("latency", Verdict.INCONCLUSIVE),
        ("metrics/failures", Verdict.ERROR),
    ]
    assert (judged.verdict, judged.message) == (Verdict.ERROR, "failures: no")
    judged = verdict(analysis, replace(found, metrics=readings(MetricValue(Fraction(6)))))
    assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")


@EITHER
def test_each_gate_tells_up_to_when_it_has_seen(mode: str) -> None:
    found = evidence({"canary": counts(500, 1)}, {"canary": counts(500, 1)})
    assert verdict({**ERRORS, "mode": mode}, found).gates[0].at == T0 + 2 * INTERVAL


@given(
    some_blocks,
    st.integers(1, 100),
    st.sampled_from(["", "away"]),
    st.sampled_from([(), ("partial",)]),
    st.sampled_from(["Sequential", "Threshold"]),
    st.sampled_from(["Standard", "Strict"]),
)
def test_a_pass_needs_clean_sufficient_data(
    contents: list[dict[str, Any]], weight: int, error: str, warnings: tuple[str, ...], mode: str, assurance: str
) -> None:
    analysis = {**BOTH, "mode": mode, "assurance": assurance}
    judged = verdict(analysis, evidence(*contents, error=error, warnings=warnings), weight=weight)
    if judged.verdict is Verdict.PASS:
        assert not error
        assert not warnings
        assert contents[-1]["canary_seen"]
        unreached = sum(content["unreached"] for content in contents)
        assert judged.canary.requests + unreached >= 100
        assert judged.canary.timed >= 100
        if mode == "Sequential" and assurance == "Strict":
            assert (judged.canary.errors + unreached) * 100 <= judged.canary.requests + unreached
            assert judged.canary.slow * 50 <= judged.canary.timed


@given(some_blocks, st.integers(1, 100), st.integers(1, 20))
def test_a_canary_that_fails_all_its_requests_never_passes(
    contents: list[dict[str, Any]], weight: int, more: int
) -> None:
    judged = verdict(BOTH, evidence(*worse(contents, 3000 + more)), weight=weight)
    assert judged.verdict is not Verdict.PASS
    if judged.canary.requests >= 20:
        assert judged.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "analysis",
    [{"errorRate": {"maxRelative": "150%"}}, {"latency": {"threshold": "250ms", "maxRelative": "150%"}}],
)
def test_a_relative_limit_gets_no_absolute_one_beside_it(analysis: dict[str, Any]) -> None:
    effective = effective_analysis(Analysis.model_validate(analysis))
    assert effective.error_rate is None or effective.error_rate.max is None
    assert effective.latency is None or effective.latency.max_slow is None


def test_what_is_lacking_is_said_also_while_the_provider_answers_in_part() -> None:
    found = evidence({"canary": counts(5)}, warnings=("store eu-1 is away",))
    assert verdict(ERRORS, found).reason == "LowSample"
