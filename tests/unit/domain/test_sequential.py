"""The rule that weighs evidence: verdicts, and that neither restarts nor looks change what the evidence says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from math import log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import CanaryRolloutStatus, Counts, FinishedStep, RolloutRecord, Verdict
from canaryrollout.domain import evalues, sequential
from canaryrollout.domain.evidence import Evidence
from canaryrollout.domain.results import GateResult, Judgement, LimitEvidence
from tests.unit.domain.gatecases import BOTH, ERRORS, LATENCY, RELATIVE, T0, counts, evidence, one, some_blocks, verdict

STRICT = {"assurance": "Strict"}
FULL = {"errorRate": {"max": "1%", "maxRelative": "150%"}}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget what other tests have followed."""
    sequential._trails.clear()
    yield
    sequential._trails.clear()


def step(evidence: dict[str, str] | None = None, stable: Counts | None = None, weight: int = 10) -> FinishedStep:
    return FinishedStep(weight=weight, passed_at=T0, stable=stable or counts(9000, 45), evidence=evidence or {})


def shown(judged: Judgement, limit: str) -> LimitEvidence:
    gate: GateResult = judged.gates[0]
    return next(each for each in gate.limits if each.limit == limit)


def log_evidence(judged: Judgement, limit: str) -> float:
    value = shown(judged, limit).log_evidence
    assert value is not None
    return value


def of(block: tuple[int, int, int, int]) -> dict[str, Any]:
    bad, requests, stable_bad, stable_requests = block
    return {"canary": counts(requests, bad), "stable": counts(stable_requests, stable_bad)}


class TestFail:
    def test_against_stable_in_one_sentence_with_its_numbers(self) -> None:
        found = evidence(*[of((6, 125, 3, 560))] * 4, of((6, 100, 3, 560)))
        judged = verdict(BOTH, found)
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveRelative")
        assert re.fullmatch(
            r"error rate 5 % \(30/600\) against 0\.536 % \(15/2,800\) on stable: limit 150 %, "
            r"evidence [1-9][0-9,]* > 80",
            judged.message,
        )

    def test_against_a_number(self) -> None:
        judged = verdict(ERRORS, evidence(*[of((6, 125, 3, 560))] * 4))
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")
        assert re.fullmatch(r"error rate 4\.8 % \(24/500\): limit 1 %, evidence [1-9][0-9,]* > 20", judged.message)

    def test_latency_alike(self) -> None:
        found = evidence(*[{"canary": counts(timed=250, slow=12), "stable": counts(timed=2000)}] * 2)
        judged = verdict(LATENCY, found)
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveMax")
        assert judged.message.startswith("share slower than 500ms 4.8 % (24/500): limit 1 %, evidence ")

    def test_it_does_not_wait_for_enough_requests(self) -> None:
        found = one(counts(40, 12), counts(9000, 40))
        judged = verdict({**FULL, "minRequests": 1000}, found)
        assert judged.verdict is Verdict.FAIL

    def test_two_failures_are_no_evidence_against_stable(self) -> None:
        """However unlikely they are: three are needed before a relative limit counts."""
        found = [one(counts(100, bad), counts(1_000_000, 1)) for bad in (2, 3)]
        two, three = (verdict({**RELATIVE, "confidence": "50%"}, each) for each in found)
        threshold = shown(two, "maxRelative 150%").log_threshold
        assert threshold is not None
        assert log_evidence(two, "maxRelative 150%") > threshold, "it is the rule that holds it back"
        assert (two.verdict, two.reason) == (Verdict.INCONCLUSIVE, "Suspicious")
        assert (three.verdict, three.reason) == (Verdict.FAIL, "AboveRelative")

    def test_a_test_that_has_rejected_has_rejected(self) -> None:
        found = [of((6, 125, 3, 560))] * 4
        after = [of((0, 500, 3, 560))] * 20
        early, late = verdict(ERRORS, evidence(*found)), verdict(ERRORS, evidence(*found, *after))
        assert (early.verdict, late.verdict) == (Verdict.FAIL, Verdict.FAIL)
        assert log_evidence(late, "max 1%") == log_evidence(early, "max 1%"), "shown is what decided"

    def test_a_limit_of_zero(self) -> None:
        zero = {"errorRate": {"max": "0%"}}
        assert verdict(zero, one(counts(1000, 1))).verdict is Verdict.FAIL
        assert verdict(zero, one(counts(1000, 0))).verdict is Verdict.PASS

    def test_a_failing_dependency_that_hits_both_says_nothing_relatively(self) -> None:
        found = evidence(*[of((1, 200, 9, 1800))] * 5, of((80, 200, 720, 1800)))
        assert verdict(RELATIVE, found).verdict is not Verdict.FAIL

    def test_requests_that_reached_nobody_count_against_the_canary(self) -> None:
        found = evidence(*[{"canary": counts(150), "stable": counts(1350), "unreached": 10}] * 3)
        judged = verdict(ERRORS, found)
        assert judged.verdict is Verdict.FAIL
        assert judged.message.startswith("error rate 6.25 % (30/480): limit 1 %, evidence ")


class TestPass:
    def test_with_the_numbers(self) -> None:
        judged = verdict(FULL, one(counts(1000, 5), counts(9000, 45)))
        assert (judged.verdict, judged.reason) == (Verdict.PASS, "WithinLimits")
        assert re.fullmatch(
            r"error rate 0\.5 % \(5/1,000\) against 0\.5 % \(45/9,000\) on stable: limit 150 %, 1 %, "
            r"evidence 0\.[0-9]+ of 40",
            judged.message,
        )

    @pytest.mark.parametrize(
        ("found", "reason"),
        [
            (evidence(), "NoData"),
            (evidence({"canary_seen": False}), "NoData"),
            (evidence({"stable": counts(900)}), "NoTraffic"),
            (one(counts(37, 0), counts(900)), "LowSample"),
            (one(counts(900, 0), counts(99, 0)), "LowStableSample"),
        ],
    )
    def test_what_is_lacking_comes_before(self, found: Evidence, reason: str) -> None:
        judged = verdict(FULL, found)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, reason)

    def test_it_says_how_many_requests_are_lacking(self) -> None:
        assert verdict(ERRORS, one(counts(37))).gates[0].needed == 63

    def test_too_few_requests_of_stable_are_filled_up_from_finished_steps(self) -> None:
        found = one(counts(900, 0), counts(99, 0))
        assert verdict(FULL, found, weight=90, finished=(step(),)).verdict is Verdict.PASS

    def test_something_suspicious_waits_for_more(self) -> None:
        judged = verdict(ERRORS, one(counts(200, 7)))
        threshold = log(20)
        assert threshold / 2 <= log_evidence(judged, "max 1%") < threshold
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "Suspicious")
        assert re.fullmatch(
            r"error rate 3\.5 % \(7/200\): limit 1 %, evidence [0-9.]+ of 20, more is awaited", judged.message
        )

    def test_what_was_suspicious_passes_once_more_speaks_for_it(self) -> None:
        found = evidence(of((7, 200, 0, 0)), *[of((0, 400, 0, 0))] * 5)
        assert verdict(ERRORS, found).verdict is Verdict.PASS


class TestStrict:
    def test_nothing_against_it_is_not_enough(self) -> None:
        analysis = {**ERRORS, **STRICT}
        judged = verdict(analysis, one(counts(200, 0)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NotYetSure")
        assert judged.message == "error rate 0 % (0/200): not sure yet to be within 1 %, at most 1.49 %"
        assert judged.gates[0].needed == 99
        assert verdict(analysis, one(counts(299, 0))).verdict is Verdict.PASS

    def test_standard_passes_there(self) -> None:
        assert verdict(ERRORS, one(counts(200, 0))).verdict is Verdict.PASS

    def test_against_stable_as_soon_as_there_are_three_failures(self) -> None:
        analysis = {**RELATIVE, **STRICT}
        assert verdict(analysis, one(counts(1000, 2), counts(9000, 45))).verdict is Verdict.PASS
        judged = verdict(analysis, one(counts(1000, 5), counts(9000, 45)))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "NotYetSure")
        assert "not sure yet to be within 150 %, at most " in judged.message
        assert verdict(analysis, one(counts(20_000, 100), counts(180_000, 900))).verdict is Verdict.PASS

    def test_a_rate_at_its_limit_never_becomes_sure(self) -> None:
        for size in (1_000, 100_000):
            judged = verdict({**ERRORS, **STRICT}, one(counts(size, size // 100)))
            assert (judged.verdict, judged.gates[0].needed) == (Verdict.INCONCLUSIVE, 0)


class TestFullWeight:
    """At weight 100 stable has no traffic, but is remembered."""

    def test_the_remembered_rate_is_the_limit(self) -> None:
        finished = (step(stable=counts(4500, 22)), step(stable=counts(4500, 23), weight=50))
        good, bad = one(counts(10_000, 50), counts()), one(counts(10_000, 400), counts())
        assert verdict(RELATIVE, good, weight=100, finished=finished).verdict is Verdict.PASS
        judged = verdict(RELATIVE, bad, weight=100, finished=finished)
        assert (judged.verdict, judged.reason) == (Verdict.FAIL, "AboveRelative")
        assert "error rate 4 % (400/10,000) against 0.5 % (45/9,000) on stable: limit 150 %" in judged.message

    def test_the_less_is_remembered_the_more_it_takes(self) -> None:
        found = one(counts(1000, 15), counts())
        little = verdict(RELATIVE, found, weight=100, finished=(step(stable=counts(200, 1)),))
        much = verdict(RELATIVE, found, weight=100, finished=(step(stable=counts(200_000, 1000)),))
        assert log_evidence(little, "maxRelative 150%") < log_evidence(much, "maxRelative 150%")

    def test_what_stable_still_answers_by_other_ways_is_not_looked_at(self) -> None:
        finished = (step(stable=counts(9000, 45)),)
        found = one(counts(10_000, 400), counts(1000, 1000))
        assert verdict(RELATIVE, found, weight=100, finished=finished).verdict is Verdict.FAIL

    def test_nothing_remembered_leaves_the_absolute_limit(self) -> None:
        judged = verdict(FULL, one(counts(1000, 5), counts()), weight=100)
        assert judged.verdict is Verdict.PASS
        assert judged.message.endswith("; stable has 0 of 100 requests to compare with")
        assert verdict(FULL, one(counts(1000, 50), counts()), weight=100).verdict is Verdict.FAIL
        judged = verdict(RELATIVE, one(counts(1000, 50), counts()), weight=100)
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "LowStableSample")


class TestRisk:
    @pytest.mark.parametrize(
        ("analysis", "limits"),
        [
            (ERRORS, 1),
            (RELATIVE, 1),
            (FULL, 2),
            ({**FULL, **LATENCY}, 3),
            (BOTH, 4),
            ({**ERRORS, "metrics": [{"name": "m", "query": "q", "max": "1"}]}, 1),
        ],
    )
    def test_limits_share_the_risk_of_a_false_alarm(self, analysis: dict[str, Any], limits: int) -> None:
        assert sequential.count_limits(Analysis.model_validate(analysis)) == limits
        judged = verdict(analysis, one(counts(100, 0, 100, 0)))
        for gate in judged.gates:
            for limit in gate.limits:
                if limit.log_threshold is not None:
                    assert limit.log_threshold == pytest.approx(log(20 * limits))

    @pytest.mark.parametrize(
        ("confidence", "evidence_needed"), [("50%", 2), ("95%", 20), ("99%", 100), ("99.9%", 1000)]
    )
    def test_confidence_moves_the_threshold(self, confidence: str, evidence_needed: int) -> None:
        judged = verdict({**ERRORS, "confidence": confidence}, one(counts(100, 0)))
        assert shown(judged, "max 1%").log_threshold == pytest.approx(log(evidence_needed))

    def test_what_is_enough_for_less_confidence_is_suspicious_for_more(self) -> None:
        found = one(counts(200, 12))
        assert verdict({**ERRORS, "confidence": "90%"}, found).verdict is Verdict.FAIL
        assert verdict({**ERRORS, "confidence": "99.99%"}, found).reason == "Suspicious"


GOOD = [(1, 100, 4, 900), (0, 90, 6, 880), (1, 110, 5, 910), (0, 95, 3, 905), (2, 105, 5, 895)]
LATER = [(1, 300, 4, 700), (2, 310, 2, 690), (3, 290, 5, 710), (4, 305, 3, 695), (9, 300, 3, 700)]


def remembered(judged: Judgement, weight: int = 10) -> FinishedStep:
    return FinishedStep(
        weight=weight,
        passed_at=T0,
        canary=judged.canary,
        stable=judged.stable,
        evidence=dict(judged.evidence),
    )


def through_status(finished: Sequence[FinishedStep]) -> tuple[FinishedStep, ...]:
    """Write steps into status and read them back, as a restarted operator does."""
    record = RolloutRecord(version="v2", started_at=T0, finished=tuple(finished))
    written = CanaryRolloutStatus(rollout=record).as_object()
    read = CanaryRolloutStatus.model_validate(written).rollout
    assert read is not None
    return read.finished


class TestRestart:
    """The verdict is a function of data: who looks, how often, and after which restarts changes nothing."""

    def at_once(self, finished: Sequence[FinishedStep]) -> Judgement:
        return verdict(FULL, evidence(*map(of, LATER)), weight=30, finished=finished)

    def test_block_by_block_is_as_in_one_go(self) -> None:
        finished = (remembered(verdict(FULL, evidence(*map(of, GOOD)))),)
        for upto in range(1, len(LATER)):
            verdict(FULL, evidence(*map(of, LATER[:upto])), weight=30, finished=finished)
        step_by_step = self.at_once(finished)
        sequential._trails.clear()
        assert self.at_once(finished) == step_by_step

    def test_after_a_restart_between_any_two_blocks(self) -> None:
        finished = (remembered(verdict(FULL, evidence(*map(of, GOOD)))),)
        expected = self.at_once(finished)
        for restart in range(len(LATER)):
            sequential._trails.clear()
            for upto in range(1, len(LATER) + 1):
                if upto == restart:
                    sequential._trails.clear()
                judged = verdict(FULL, evidence(*map(of, LATER[:upto])), weight=30, finished=finished)
            assert judged == expected

    def test_through_status_and_back(self) -> None:
        finished = (remembered(verdict(FULL, evidence(*map(of, GOOD)))),)
        expected = self.at_once(finished)
        sequential._trails.clear()
        back = through_status(finished)
        assert back[0].evidence == finished[0].evidence
        assert self.at_once(back) == expected

    def test_what_is_remembered_is_a_handful_of_numbers(self) -> None:
        texts = verdict(BOTH, evidence(*[{"canary": counts(100, 1, 100, 1), "stable": counts(900, 4, 900, 4)}] * 9))
        assert len(texts.evidence) == 10
        assert sum(len(text) for text in texts.evidence.values()) < 280

    @given(some_blocks, st.integers(1, 99), st.integers(0, 6))
    def test_any_blocks(self, contents: list[dict[str, Any]], weight: int, cut: int) -> None:
        sequential._trails.clear()
        at_once = verdict(BOTH, evidence(*contents), weight=weight)
        sequential._trails.clear()
        for upto in range(len(contents) + 1):
            judged = verdict(BOTH, evidence(*contents[:upto]), weight=weight)
            if upto == cut:
                sequential._trails.clear()
        assert judged == at_once


class TestCarriedEvidence:
    def test_a_rollout_is_one_test_and_not_one_for_each_step(self) -> None:
        """What no step alone shows, both together do."""
        little = evidence(*[of((3, 100, 4, 900))] * 2)
        first = verdict(FULL, little)
        assert first.verdict is not Verdict.FAIL
        carried = verdict(FULL, little, weight=30, finished=(remembered(first),))
        anew = verdict(FULL, little, weight=30, finished=(step(),))
        expected = log_evidence(first, "maxRelative 150%")
        assert expected > 0
        gained = log_evidence(carried, "maxRelative 150%") - log_evidence(anew, "maxRelative 150%")
        assert gained == pytest.approx(expected, rel=0.5)

    def test_only_the_newest_step_counts_as_it_holds_what_was_before(self) -> None:
        older, newer = {"errorRate max 1%": "7"}, {"errorRate max 1%": "2"}
        weights = {"errorRate max 1% dispersion": "0.5 0.3 0.1 0.1"}
        judged = verdict(ERRORS, evidence(), finished=(step({**older, **weights}), step({**newer, **weights})))
        assert log_evidence(judged, "max 1%") == pytest.approx(log(2))

    def test_a_limit_that_was_edited_begins_anew(self) -> None:
        first = verdict(FULL, evidence(*[of((3, 100, 4, 900))] * 2))
        finished = (remembered(first),)
        edited = {"errorRate": {"max": "2%", "maxRelative": "150%"}}
        judged = verdict(edited, evidence(), weight=30, finished=finished)
        assert log_evidence(judged, "max 2%") == 0
        assert log_evidence(judged, "maxRelative 150%") == pytest.approx(
            log_evidence(first, "maxRelative 150%"), abs=1e-5
        )

    def test_the_same_limit_of_another_gate_is_another(self) -> None:
        first = verdict(RELATIVE, evidence(*[of((3, 100, 4, 900))] * 2))
        latency = {"latency": {"threshold": "500ms", "maxRelative": "150%"}}
        judged = verdict(latency, evidence(), finished=(remembered(first),))
        assert log_evidence(judged, "maxRelative 150%") == 0

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "", "1e300", "1e-400", "much"])
    @pytest.mark.parametrize("part", ["value", "weight"])
    def test_a_text_that_was_edited_by_hand_begins_anew(self, value: str, part: str) -> None:
        weights = "0.5 0.3 0.1 0.1"
        if part == "value":
            texts = {"errorRate max 1%": value, "errorRate max 1% dispersion": weights}
        else:
            texts = {"errorRate max 1%": "2", "errorRate max 1% dispersion": f"{value} {value} {value} {value}"}
        self.assert_begins_anew(texts)

    @pytest.mark.parametrize(
        "weights",
        [
            "",
            "0.5",
            "0.5 0.3 0.2",
            "0.5 0.3 0.1 0.05 0.05",
            "0 0 0 0",
            "1,0,0,0",
            "nan 0.3 0.1 0.1",
            "inf 0.3 0.1 0.1",
            "-1 0.9 0.9 0.2",
            "1.5 0.9 0.9 0.2",
        ],
    )
    def test_weights_that_cannot_be(self, weights: str) -> None:
        self.assert_begins_anew({"errorRate max 1%": "2", "errorRate max 1% dispersion": weights})

    def test_weights_that_are_missing(self) -> None:
        self.assert_begins_anew({"errorRate max 1%": "2"})

    def test_evidence_for_the_canary_is_gone_on_from_too(self) -> None:
        texts = {"errorRate max 1%": "0.5", "errorRate max 1% dispersion": "0.25 0.25 0.25 0.25"}
        judged = verdict(ERRORS, evidence(), finished=(step(texts),))
        assert log_evidence(judged, "max 1%") == pytest.approx(log(0.5))

    @pytest.mark.parametrize(("before", "reason"), [("5", "WithinLimits"), ("7", "Suspicious")])
    def test_it_is_suspicious_from_half_way_to_a_failure_on(self, before: str, reason: str) -> None:
        texts = {"errorRate max 1%": before, "errorRate max 1% dispersion": "0.25 0.25 0.25 0.25"}
        judged = verdict(ERRORS, evidence(of((1, 100, 5, 900))), finished=(step(texts),))
        assert judged.reason == reason

    @pytest.mark.parametrize("against", ["max 1%", "maxRelative 150%"])
    def test_the_limit_that_most_speaks_against_decides_whether_it_is(self, against: str) -> None:
        texts = {f"errorRate {limit} dispersion": "0.25 0.25 0.25 0.25" for limit in ("max 1%", "maxRelative 150%")}
        texts |= {"errorRate max 1%": "0.5", "errorRate maxRelative 150%": "0.5", f"errorRate {against}": "20"}
        judged = verdict(FULL, evidence(of((1, 100, 5, 900))), finished=(step(texts),))
        assert (judged.verdict, judged.reason) == (Verdict.INCONCLUSIVE, "Suspicious")

    def assert_begins_anew(self, texts: dict[str, str]) -> None:
        finished = (step(texts),)
        for found in (evidence(), evidence(of((1, 200, 5, 900))), evidence(*[of((6, 125, 3, 560))] * 4)):
            judged = verdict(ERRORS, found, finished=finished)
            anew = verdict(ERRORS, found, finished=(step(),))
            assert judged == anew
        assert judged.verdict is Verdict.FAIL, "it still judges"

    def test_evidence_beyond_all_measure_is_remembered_as_a_number(self) -> None:
        judged = verdict(FULL, evidence(*[of((400, 1000, 1, 9000))] * 30))
        assert all(
            part.replace(".", "").replace("e+", "").replace("e-", "").isdigit()
            for key, text in judged.evidence.items()
            for part in text.split()
            if not key.endswith("counts")
        )


class TestWhatCountsAsBad:
    """Evidence on one thing is none on another: what counts as slow, or as a failure, may be edited on the way."""

    SLOW = of((0, 100, 0, 900)) | {"canary": counts(100, 0, 100, 4), "stable": counts(900, 0, 900, 9)}

    @staticmethod
    def gates(threshold: str) -> dict[str, Any]:
        return {"latency": {"threshold": threshold, "maxSlow": "1%", "maxRelative": "150%"}}

    def test_another_threshold_begins_anew(self) -> None:
        first = verdict(self.gates("500ms"), evidence(*[self.SLOW] * 2))
        finished = (remembered(first),)
        same = verdict(self.gates("500ms"), evidence(), weight=30, finished=finished)
        edited = verdict(self.gates("250ms"), evidence(), weight=30, finished=finished)
        assert log_evidence(same, "maxSlow 1%") == pytest.approx(log_evidence(first, "maxSlow 1%"), abs=1e-4)
        assert log_evidence(edited, "maxSlow 1%") == log_evidence(edited, "maxRelative 150%") == 0

    def test_what_stable_had_above_another_threshold_is_no_limit_at_full_weight(self) -> None:
        first = verdict(self.gates("500ms"), evidence(*[self.SLOW] * 2))
        finished = (remembered(first).model_copy(update={"stable": counts(9000, 0, 9000, 9)}),)
        block = {"canary": counts(1000, 0, 1000, 9)}
        same = verdict(self.gates("500ms"), evidence(*[block] * 4), weight=100, finished=finished)
        edited = verdict(self.gates("250ms"), evidence(*[block] * 4), weight=100, finished=finished)
        assert same.verdict is Verdict.FAIL
        assert edited.verdict is not Verdict.FAIL

    def test_other_faults_of_grpc_begin_anew(self) -> None:
        first = verdict(ERRORS, evidence(*[of((3, 100, 4, 900))] * 2))
        edited = {"errorRate": {"max": "1%", "grpcServerFaults": [13]}}
        judged = verdict(edited, evidence(), weight=30, finished=(remembered(first),))
        assert log_evidence(first, "max 1%") > 0
        assert log_evidence(judged, "max 1%") == 0


class TestTrails:
    """How far blocks were followed is kept to save work, and never mixes anything up."""

    def test_two_rollouts_with_the_same_counts_agree(self) -> None:
        first = verdict(FULL, evidence(*map(of, LATER)))
        assert verdict(FULL, evidence(*map(of, LATER))) == first

    def test_two_that_begin_alike_and_go_apart(self) -> None:
        others = [LATER[0], *GOOD]
        for _ in range(2):
            interleaved = [verdict(FULL, evidence(*map(of, blocks))) for blocks in (LATER, others)]
        sequential._trails.clear()
        assert verdict(FULL, evidence(*map(of, others))) == interleaved[1]
        sequential._trails.clear()
        assert verdict(FULL, evidence(*map(of, LATER))) == interleaved[0]
        assert interleaved[0].gates[0].limits != interleaved[1].gates[0].limits

    @pytest.mark.parametrize("replaced", range(len(LATER)))
    def test_a_provisional_block_that_was_replaced(self, replaced: int) -> None:
        """A block whose answer was partial is asked for again, and may turn out otherwise."""
        provisional = [(0, 50, 0, 300) if i == replaced else block for i, block in enumerate(LATER)]
        verdict(FULL, evidence(*map(of, provisional)))
        after = verdict(FULL, evidence(*map(of, LATER)))
        sequential._trails.clear()
        assert verdict(FULL, evidence(*map(of, LATER))) == after

    def test_fewer_blocks_than_before(self) -> None:
        """A restarted metrics source begins to fetch from the start."""
        verdict(FULL, evidence(*map(of, LATER)))
        fewer = verdict(FULL, evidence(*map(of, LATER[:2])))
        sequential._trails.clear()
        assert verdict(FULL, evidence(*map(of, LATER[:2]))) == fewer

    def test_limits_and_weights_do_not_share_a_trail(self) -> None:
        found = evidence(*map(of, LATER))
        other = {"errorRate": {"max": "2%", "maxRelative": "200%"}}
        finished = (step(),)
        cases: list[tuple[dict[str, Any], int]] = [(FULL, 10), (other, 10), (FULL, 100), (other, 100), (FULL, 10)]
        kept = [verdict(analysis, found, weight=weight, finished=finished) for analysis, weight in cases]
        for (analysis, weight), judged in zip(cases, kept, strict=True):
            sequential._trails.clear()
            assert verdict(analysis, found, weight=weight, finished=finished) == judged

    def test_they_do_not_grow_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sequential, "_KEPT_TRAILS", 3)
        for bad in range(20):
            verdict(FULL, one(counts(1000, bad), counts(9000, 9)))
        assert len(sequential._trails) == 3

    def test_a_block_that_is_new_costs_only_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        verdict(ERRORS, evidence(*map(of, LATER[:4])))
        taken_in = []
        absolute = evalues.absolute

        def counting(*given: Any) -> Any:
            taken_in.append(given[1:])
            return absolute(*given)

        monkeypatch.setattr(evalues, "absolute", counting)
        verdict(ERRORS, evidence(*map(of, LATER)))
        assert taken_in == [(9, 300, 0.01)]


def test_each_limit_shows_its_evidence_and_what_it_takes() -> None:
    judged = verdict(BOTH, one(counts(1000, 5, 1000, 5), counts(9000, 45, 9000, 45)))
    assert [[limit.limit for limit in gate.limits] for gate in judged.gates] == [
        ["maxRelative 150%", "max 1%"],
        ["maxRelative 150%", "maxSlow 2%"],
    ]
    assert all(limit.log_evidence is not None for gate in judged.gates for limit in gate.limits)


def test_blocks_before_the_weight_was_in_effect_are_not_weighed() -> None:
    found = evidence(of((100, 500, 4, 900)), of((1, 500, 4, 900)))
    since: datetime = found.blocks[1].start
    assert verdict(FULL, found, since=since).verdict is Verdict.PASS
    assert verdict(FULL, found).verdict is Verdict.FAIL


def test_a_limit_of_zero_is_kept_as_surely_as_can_be_by_a_canary_without_failures() -> None:
    judged = verdict({"errorRate": {"max": "0%"}, **STRICT}, one(counts(1000)))
    assert (judged.verdict, judged.reason) == (Verdict.PASS, "WithinLimits")


def test_where_there_is_nothing_to_compare_with_nothing_is_shown() -> None:
    judged = verdict(FULL, one(counts(1000, 1), counts()), weight=100)
    assert judged.verdict is Verdict.PASS
    assert "against" not in judged.message


@pytest.mark.parametrize(("bad", "reason"), [(2, "WithinLimits"), (3, "NotYetSure")])
def test_to_be_sure_of_a_multiple_takes_as_many_failures_as_to_exceed_it(bad: int, reason: str) -> None:
    assert verdict({**RELATIVE, **STRICT}, one(counts(1000, bad), counts(100_000, 500))).reason == reason


def test_stable_is_not_mentioned_where_no_limit_compares_with_it() -> None:
    assert "against" not in verdict(ERRORS, one(counts(1000, 1))).message
