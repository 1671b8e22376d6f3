"""What gates on shares of requests count."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import Baseline, Counts, FinishedStep, Verdict
from canaryrollout.domain.gates import effective_analysis
from canaryrollout.domain.rates import RateGate, beyond, rate_gates
from canaryrollout.domain.results import Sample
from tests.unit.domain.gatecases import BOTH, ERRORS, INTERVAL, RELATIVE, T0, blocks, counts, some_blocks


def gates(
    *contents: dict[str, Any],
    analysis: dict[str, Any] = BOTH,
    weight: int = 10,
    finished: tuple[FinishedStep, ...] = (),
    baseline: Baseline | None = None,
) -> list[RateGate]:
    model = effective_analysis(Analysis.model_validate(analysis))
    return list(rate_gates(model, blocks(*contents), weight=weight, finished=finished, baseline=baseline))


def step(**stable: int) -> FinishedStep:
    return FinishedStep(weight=10, passed_at=T0, stable=counts(**stable))


def test_failed_and_slow_requests_are_counted_from_their_own_source() -> None:
    errors, latency = gates({"canary": counts(100, 3, 98, 7), "stable": counts(900, 4, 880, 9)})
    assert (errors.pairs, latency.pairs) == (((3, 100, 4, 900),), ((7, 98, 9, 880),))
    assert (errors.name, latency.name) == ("errorRate", "latency")
    assert (errors.absolute_field, latency.absolute_field) == ("max", "maxSlow")
    assert (errors.limit, latency.limit) == (Fraction(1, 100), Fraction(1, 50))


def test_blocks_stay_apart_and_are_added_up() -> None:
    (gate,) = gates({"canary": counts(100, 3)}, {"canary": counts(50, 1), "stable": counts(9, 2)}, analysis=ERRORS)
    assert gate.pairs == ((3, 100, 0, 0), (1, 50, 2, 9))
    assert (gate.canary, gate.now) == (Sample(4, 150), Sample(2, 9))
    assert gate.at == T0 + 2 * INTERVAL


class TestCompared:
    def test_stable_of_this_step_where_it_is_large_enough(self) -> None:
        gate = gates({"canary": counts(9), "stable": counts(100, 1)}, finished=(step(requests=900, errors=90),))[0]
        assert gate.compared(100) == Sample(1, 100)

    def test_with_all_steps_before_where_it_is_too_small(self) -> None:
        finished = (step(requests=900, errors=90), step(requests=100, errors=1))
        gate = gates({"canary": counts(9), "stable": counts(99, 2)}, finished=finished, weight=90)[0]
        assert gate.compared(100) == Sample(93, 1099)

    def test_only_those_before_at_full_weight(self) -> None:
        gate = gates({"stable": counts(5000, 5000)}, finished=(step(requests=900, errors=9),), weight=100)[0]
        assert gate.compared(100) == Sample(9, 900)
        assert not gate.stable_serves

    def test_latency_compares_with_timed_requests(self) -> None:
        gate = gates({}, finished=(step(requests=900, errors=90, timed=800, slow=8),), weight=100)[1]
        assert gate.compared(100) == Sample(8, 800)

    def test_too_few_are_told(self) -> None:
        gate = gates({"stable": counts(99)})[0]
        assert gate.lacking_stable(100) == "stable has 99 of 100 requests to compare with"
        assert gate.lacking_stable(99) == ""
        assert gates({"stable": counts(99)}, analysis=ERRORS)[0].lacking_stable(100) == "", "nothing is compared"


class TestLacking:
    @pytest.mark.parametrize(
        ("contents", "reason", "message"),
        [
            ([], "NoData", "no complete interval of data since the weight came into effect"),
            ([{"canary_seen": False}], "NoData", "Prometheus has no series of the canary"),
            ([{"canary": counts(500)}, {"canary_seen": False}], "NoData", "Prometheus has no series of the canary"),
            ([{}], "NoTraffic", "canary had no requests yet"),
            ([{"canary": counts(999)}], "LowSample", "999 of 1,000 requests of the canary so far"),
        ],
    )
    def test_what_is_missing(self, contents: list[dict[str, Any]], reason: str, message: str) -> None:
        lacking = gates(*contents, analysis=ERRORS)[0].lacking(1000)
        assert lacking is not None
        assert (lacking.verdict, lacking.reason, lacking.message) == (Verdict.INCONCLUSIVE, reason, message)

    def test_nothing(self) -> None:
        assert gates({"canary": counts(1000)}, analysis=ERRORS)[0].lacking(1000) is None


def test_what_was_found_in_words() -> None:
    (gate,) = gates({"canary": counts(500, 24)}, analysis=ERRORS)
    assert gate.finding() == "error rate 4.8 % (24/500)"
    assert gate.finding(Sample(11, 2241)) == "error rate 4.8 % (24/500) against 0.491 % (11/2,241) on stable"


class TestUnreached:
    """Requests that reached no version count against the canary beyond what was usual."""

    @pytest.mark.parametrize(
        ("unreached", "seconds", "usual", "expected"),
        [
            (10, 10, None, 10),
            (10, 10, Baseline(seconds=60, unreached=60), 0),
            (11, 10, Baseline(seconds=60, unreached=60), 1),
            (11, 10, Baseline(seconds=60, unreached=61), 0),  # 11 - 10.17
            (12, 10, Baseline(seconds=60, unreached=61), 1),  # 12 - 10.17
            (5, 10, Baseline(seconds=60, unreached=600), 0),
            (5, 10, Baseline(seconds=0, unreached=600), 5),
            (5, 10, Baseline(seconds=1, unreached=600), 0),
            (0, 10, None, 0),
        ],
    )
    def test_beyond_the_usual(self, unreached: int, seconds: int, usual: Baseline | None, expected: int) -> None:
        assert beyond(unreached, timedelta(seconds=seconds), usual) == expected

    def test_they_fail_and_are_requests_but_have_no_latency(self) -> None:
        errors, latency = gates({"canary": counts(100, 1, 100, 1), "unreached": 7})
        assert (errors.pairs, latency.pairs) == (((8, 107, 0, 0),), ((1, 100, 0, 0),))

    def test_each_counts_in_the_block_it_came_in(self) -> None:
        usual = Baseline(seconds=10, unreached=2)
        (gate,) = gates(
            {"unreached": 2}, {"unreached": 5}, {"unreached": 0}, {"unreached": 4}, analysis=ERRORS, baseline=usual
        )
        # Beyond two per block in all: 0, 3, 1, 3; what counted stays counted, and counts once.
        assert [pair[0] for pair in gate.pairs] == [0, 3, 0, 0]

    @given(some_blocks, st.integers(0, 40), st.integers(1, 100))
    def test_a_new_block_changes_no_earlier_one(
        self, contents: list[dict[str, Any]], unreached: int, seconds: int
    ) -> None:
        """Evidence is weighed block by block: what a block said must stay what it said."""
        usual = Baseline(seconds=seconds, unreached=unreached)
        whole = gates(*contents, analysis=ERRORS, baseline=usual)[0].pairs
        for upto in range(len(contents) + 1):
            assert gates(*contents[:upto], analysis=ERRORS, baseline=usual)[0].pairs == whole[:upto]
        assert all(0 <= bad <= of for bad, of, _, _ in whole)
        assert sum(bad for bad, *_ in whole) <= sum(c["canary"].errors + c["unreached"] for c in contents)


@pytest.mark.parametrize(
    ("analysis", "stable", "shown"),
    [(ERRORS, counts(), None), (ERRORS, counts(9, 2), Sample(2, 9)), (RELATIVE, counts(), Sample(0, 0))],
)
def test_stable_is_shown_where_it_is_compared_with_or_had_requests(
    analysis: dict[str, Any], stable: Counts, shown: Sample | None
) -> None:
    (gate,) = gates({"canary": counts(100), "stable": stable}, analysis=analysis)
    assert gate.undecided("LowSample", "").stable == shown


def test_the_usual_is_counted_to_the_microsecond() -> None:
    usual = Baseline(seconds=1, unreached=1_000_000)
    assert beyond(1_000_001, timedelta(seconds=1, microseconds=1), usual) == 0
