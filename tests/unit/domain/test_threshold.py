"""The plain rule: counts of the whole step against limits, both verdicts with enough requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.status import Baseline, FinishedStep, Verdict
from canaryrollout.domain.evidence import Block, Evidence
from canaryrollout.domain.results import Judgement
from tests.unit.domain import gatecases
from tests.unit.domain.gatecases import BOTH, ERRORS, LATENCY, RELATIVE, T0, counts, evidence, one, some_blocks, worse


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
    plain = {"mode": "Threshold", **analysis}
    return gatecases.verdict(
        plain, found, weight=weight, finished=finished, baseline=baseline, since=since, opening=opening
    )


class TestAbsoluteLimit:
    def test_above_fails_with_numbers(self) -> None:
        judged = verdict(ERRORS, one(counts(412, 21)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")
        assert judged.message == "error rate 5.1 % (21/412): limit 1 %"

    def test_at_the_limit_passes(self) -> None:
        judged = verdict(ERRORS, one(counts(400, 4)))
        assert (judged.verdict, judged.reason) == (Verdict.PASS, "WithinLimits")
        assert judged.message == "error rate 1 % (4/400): limit 1 %"

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

    def test_there_is_no_relative_limit_by_default(self) -> None:
        """A healthy canary exceeds 150 % by chance too often for a plain rule."""
        assert verdict({}, one(counts(1000, 9), counts(9000, 9))).verdict is Verdict.PASS


class TestRelativeLimit:
    def test_above_stable_fails(self) -> None:
        judged = verdict(RELATIVE, one(counts(1000, 40), counts(9000, 90)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveRelative")
        assert judged.message == "error rate 4 % (40/1,000) against 1 % (90/9,000) on stable: limit 150 %"

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
        assert "against 1 % (10/1,000) on stable" in judged.message
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
        assert judged.message == "share slower than 500ms 2 % (2/100): limit 1 %"
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
        assert judged.message == "error rate 6.25 % (10/160): limit 1 %"

    def test_only_what_exceeds_the_usual_counts(self) -> None:
        usual = Baseline(seconds=60, unreached=60)  # ten per block
        assert verdict(ERRORS, one(counts(150, 0), unreached=10), baseline=usual).verdict is Verdict.PASS
        assert verdict(ERRORS, one(counts(150, 0), unreached=11), baseline=usual).verdict is Verdict.PASS
        judged = verdict(ERRORS, one(counts(148, 0), unreached=12), baseline=usual)
        assert judged.message == "error rate 1.33 % (2/150): limit 1 %"

    def test_fewer_than_usual_do_not_help(self) -> None:
        usual = Baseline(seconds=10, unreached=100)
        assert verdict(ERRORS, one(counts(100, 2), unreached=0), baseline=usual).verdict is Verdict.FAIL

    def test_a_canary_that_nobody_reaches_fails_without_a_series(self) -> None:
        judged = verdict(ERRORS, evidence({"canary_seen": False, "unreached": 25}))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")


class TestTolerance:
    """One check at the end of each block, on what the step has counted by then."""

    BAD: ClassVar = {"canary": counts(100, 3), "stable": counts(900)}
    GOOD: ClassVar = {"canary": counts(400), "stable": counts(900)}

    @staticmethod
    def tolerant(**fields: int) -> dict[str, Any]:
        return {**ERRORS, **fields}

    def test_without_a_number_the_first_check_fails(self) -> None:
        assert verdict(ERRORS, evidence(self.BAD)).message == "error rate 3 % (3/100): limit 1 %"

    def test_so_many_checks_may_exceed_a_limit(self) -> None:
        judged = verdict(self.tolerant(failureLimit=2), evidence(self.BAD, self.BAD))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "OutsideLimits")
        assert judged.message == "error rate 3 % (6/200): limit 1 %; 2 of 2 checks exceed it (2 allowed)"

    def test_one_more_fails(self) -> None:
        judged = verdict(self.tolerant(failureLimit=2), evidence(self.BAD, self.BAD, self.BAD))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")
        assert judged.message == "error rate 3 % (9/300): limit 1 %; 3 of 3 checks exceed it (2 allowed)"

    def test_none_allowed_is_the_first(self) -> None:
        assert verdict(self.tolerant(failureLimit=0), evidence(self.BAD)).verdict is Verdict.FAIL

    def test_checks_need_not_follow_each_other(self) -> None:
        # 3/100, 3/500 (within), 8/600 and 11/700: three of four exceed 1 %.
        more = {"canary": counts(100, 5), "stable": counts(900)}
        found = evidence(self.BAD, self.GOOD, more, self.BAD)
        assert verdict(self.tolerant(failureLimit=2), found).verdict is Verdict.FAIL
        judged = verdict(self.tolerant(failureLimit=3), found)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "OutsideLimits")
        assert "3 of 4 checks exceed it (3 allowed)" in judged.message

    def test_in_a_row_begins_anew_after_a_check_within_limits(self) -> None:
        more = {"canary": counts(100, 5), "stable": counts(900)}
        judged = verdict(self.tolerant(consecutive=3), evidence(self.BAD, self.GOOD, more, self.BAD))
        assert judged.verdict is Verdict.INCONCLUSIVE
        assert judged.message.endswith("; 3 of 4 checks exceed it (2 of 3 in a row)")
        judged = verdict(self.tolerant(consecutive=3), evidence(self.BAD, self.GOOD, more, self.BAD, self.BAD))
        assert judged.verdict is Verdict.FAIL

    def test_whichever_comes_first_of_the_two_decides(self) -> None:
        both = self.tolerant(failureLimit=5, consecutive=2)
        assert verdict(both, evidence(self.BAD)).verdict is Verdict.INCONCLUSIVE
        assert verdict(both, evidence(self.BAD, self.BAD)).verdict is Verdict.FAIL
        both = self.tolerant(failureLimit=1, consecutive=5)
        assert verdict(both, evidence(self.BAD, self.BAD)).verdict is Verdict.FAIL

    def test_blocks_before_there_are_enough_requests_are_no_checks_that_fail(self) -> None:
        few = {"canary": counts(40, 4), "stable": counts(900)}
        judged = verdict(self.tolerant(failureLimit=1), evidence(few, few, few))
        assert judged.verdict is Verdict.INCONCLUSIVE
        assert judged.message.endswith("; 1 of 3 checks exceed it (1 allowed)")

    def test_a_tolerated_check_is_never_a_pass(self) -> None:
        for blocks_seen in range(1, 6):
            judged = verdict(self.tolerant(failureLimit=1000), evidence(*[self.BAD] * blocks_seen))
            assert judged.verdict is Verdict.INCONCLUSIVE

    def test_relative_limits_are_tolerated_alike(self) -> None:
        worse_than = {"canary": counts(1000, 40), "stable": counts(9000, 90)}
        tolerant = {**RELATIVE, "failureLimit": 1}
        assert verdict(tolerant, evidence(worse_than)).reason == "OutsideLimits"
        judged = verdict(tolerant, evidence(worse_than, worse_than))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveRelative")

    def test_the_hard_ceiling_tolerates_nothing(self) -> None:
        judged = verdict(self.tolerant(failureLimit=1000), one(counts(100, 50)))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "HardCeiling")


def test_limits_are_shown_without_evidence() -> None:
    (gate,) = verdict({"errorRate": {"max": "1%", "maxRelative": "150%"}}, one(counts(1000, 5))).gates
    assert [limit.limit for limit in gate.limits] == ["max 1%", "maxRelative 150%"]
    assert all(limit.log_evidence is None and limit.log_threshold is None for limit in gate.limits)


def test_it_carries_no_evidence_from_step_to_step() -> None:
    kept = verdict(BOTH, one(counts(1000, 5, 1000, 5))).evidence
    assert set(kept) == {"errorRate counts", "latency counts"}, "nothing but what the counts are of"


@pytest.mark.parametrize(("requests", "needed"), [(0, 100), (37, 63), (100, 0)])
def test_it_says_how_many_requests_are_lacking(requests: int, needed: int) -> None:
    assert verdict(ERRORS, one(counts(requests))).gates[0].needed == needed


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
    after = verdict(BOTH, evidence(*worse(contents, more)), weight=weight).verdict
    assert before is not Verdict.FAIL or after is Verdict.FAIL
    assert after is not Verdict.PASS or before is Verdict.PASS


class TestSmallNumbers:
    """Where one request more or less decides."""

    @pytest.mark.parametrize(("errors", "reason"), [(2, "WithinLimits"), (3, "AboveRelative")])
    def test_fewer_than_three_failures_are_above_no_relative_limit(self, errors: int, reason: str) -> None:
        assert verdict(RELATIVE, one(counts(1000, errors), counts(10_000))).reason == reason

    @pytest.mark.parametrize(("requests", "failed"), [(99, False), (100, True)])
    def test_stable_needs_as_many_requests_as_the_canary(self, requests: int, failed: bool) -> None:
        judged = verdict(RELATIVE, one(counts(100, 10), counts(requests)))
        assert (judged.verdict is Verdict.FAIL) is failed

    @pytest.mark.parametrize(("errors", "failed"), [(3, False), (4, True)])
    def test_a_stable_version_without_failures_is_taken_to_have_had_one(self, errors: int, failed: bool) -> None:
        judged = verdict(RELATIVE, one(counts(1000, errors), counts(500)))
        assert (judged.verdict is Verdict.FAIL) is failed

    @pytest.mark.parametrize(
        ("analysis", "first", "second", "said"),
        [
            (ERRORS, (counts(100, 1), counts()), (counts(100, 3), counts()), "1 of 2 checks exceed it"),
            (ERRORS, (counts(99, 9), counts()), (counts(1, 0), counts()), "1 of 2 checks exceed it"),
            (RELATIVE, (counts(1000, 3), counts(1000, 1)), (counts(1000, 10), counts(1000, 1)), "2 of 2 checks"),
            (RELATIVE, (counts(100, 9), counts(99)), (counts(100, 9), counts(1)), "1 of 2 checks exceed it"),
            (RELATIVE, (counts(1000, 10), counts(1000, 8)), (counts(1000, 50), counts(1000, 8)), "1 of 2 checks"),
        ],
    )
    def test_each_check_is_made_on_what_was_counted_by_then(
        self, analysis: dict[str, Any], first: tuple[Any, Any], second: tuple[Any, Any], said: str
    ) -> None:
        found = evidence(*({"canary": canary, "stable": stable} for canary, stable in (first, second)))
        judged = verdict(analysis | {"failureLimit": 2}, found)
        assert judged.verdict is Verdict.INCONCLUSIVE
        assert said in judged.message


def test_a_limit_of_its_own_is_not_enough_while_stable_serves_and_has_too_few_to_compare_with() -> None:
    judged = verdict(BOTH | {"latency": None}, one(counts(1000, 1), counts(50)))
    assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "LowStableSample")
