"""What status shows of a gate: every number rounded for people."""

from __future__ import annotations

import re
from fractions import Fraction
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.status import CanaryRolloutStatus, GateStatus, Verdict
from canaryrollout.domain.gate_status import gate_status, in_short
from canaryrollout.domain.results import GateResult, LimitEvidence, Sample, evidence_text, percent
from tests.unit.domain.gatecases import BOTH, T0, counts, evidence, verdict

RESULT = GateResult(
    name="errorRate",
    verdict=Verdict.FAIL,
    reason="AboveRelative",
    message="error rate 4.8 % (24/500) against 0.5 % (11/2,241) on stable: limit 150 %, evidence 312 > 80",
    canary=Sample(24, 500),
    stable=Sample(11, 2241),
    limits=(LimitEvidence("maxRelative 150%", log(312.4), log(80)), LimitEvidence("max 1%", log(3.14159), log(80))),
    at=T0,
)


def test_everything_a_person_needs() -> None:
    assert CanaryRolloutStatus(gates=(gate_status(RESULT),)).as_object()["gates"] == [
        {
            "name": "errorRate",
            "verdict": "Fail",
            "reason": "AboveRelative",
            "message": RESULT.message,
            "canary": {"requests": 500, "bad": 24, "rate": "4.8%", "interval": "3.25%..7.04%"},
            "stable": {"requests": 2241, "bad": 11, "rate": "0.491%", "interval": "0.274%..0.877%"},
            "limits": [
                {"limit": "maxRelative 150%", "evidence": "312", "threshold": "80"},
                {"limit": "max 1%", "evidence": "3.1", "threshold": "80"},
            ],
            "at": "2026-01-01T12:00:00.000Z",
        }
    ]


def test_a_metric_has_values_instead_of_counts() -> None:
    result = GateResult(
        "metrics/m", Verdict.PASS, "WithinLimits", "", value=Fraction(10, 3), baseline=Fraction(1, 10**9)
    )
    status = gate_status(result)
    assert (status.canary, status.stable) == (None, None)
    assert (status.value, status.baseline) == ("3.333333", "1e-09")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Fraction(0), "0"),
        (Fraction(1, 10**6), "0.000001"),
        (Fraction(9, 10**7), "9e-07"),
        (Fraction(10**15 - 1), "999999999999999"),
        (Fraction(10**15), "1e+15"),
        (Fraction(2, 3), "0.666667"),
    ],
)
def test_a_value_has_six_decimals_unless_it_is_very_small_or_large(value: Fraction, shown: str) -> None:
    assert gate_status(GateResult("metrics/up", Verdict.PASS, "WithinLimits", "", value=value)).value == shown


@pytest.mark.parametrize("known", [{}, {"log_evidence": 1.0}, {"log_threshold": 1.0}])
def test_a_plain_limit_has_no_evidence(known: dict[str, float]) -> None:
    result = GateResult("errorRate", Verdict.PASS, "WithinLimits", "", limits=(LimitEvidence("max 1%", **known),))
    (limit,) = gate_status(result).limits
    assert (limit.limit, limit.evidence, limit.threshold) == ("max 1%", "", "")


class TestInShort:
    def test_of_the_gate_that_decides(self) -> None:
        fine = GateStatus(name="latency", verdict=Verdict.PASS)
        assert in_short((fine, gate_status(RESULT))) == "errorRate 4.8% (24/500), stable 0.491%, evidence 312 of 80"

    def test_the_strongest_evidence_also_where_it_has_thousands(self) -> None:
        limits = (LimitEvidence("a", log(900), log(80)), LimitEvidence("b", log(12_345), log(80)))
        result = GateResult("errorRate", Verdict.FAIL, "", "", canary=Sample(24, 500), limits=limits)
        assert in_short((gate_status(result),)) == "errorRate 4.8% (24/500), evidence 12,345 of 80"

    def test_without_a_stable_version_that_had_no_requests(self) -> None:
        result = GateResult("errorRate", Verdict.FAIL, "", "", canary=Sample(24, 500), stable=Sample(0, 0))
        assert in_short((gate_status(result),)) == "errorRate 4.8% (24/500)"

    def test_of_a_metric(self) -> None:
        result = GateResult("metrics/m", Verdict.FAIL, "AboveMax", "", value=Fraction(6), baseline=Fraction(2))
        assert in_short((gate_status(result),)) == "metrics/m 6, baseline 2"

    def test_the_reason_where_there_is_no_number(self) -> None:
        result = GateResult("errorRate", Verdict.INCONCLUSIVE, "NoData", "", canary=Sample(0, 0))
        assert in_short((gate_status(result),)) == "errorRate: NoData"

    def test_of_no_gate(self) -> None:
        assert in_short(()) == ""


class TestEvidenceText:
    @pytest.mark.parametrize(
        ("value", "text"),
        [(1, "1"), (0.5, "0.5"), (3.14159, "3.1"), (0.1234, "0.12"), (10, "10"), (312.4, "312"), (12_345.6, "12,346")],
    )
    def test_two_digits_or_whole(self, value: float, text: str) -> None:
        assert evidence_text(log(value)) == text

    def test_larger_says_nothing_more(self) -> None:
        assert evidence_text(log(2e6)) == evidence_text(1e4) == "1,000,000"
        assert [evidence_text(log(value)) for value in (999_999, 999_999.4)] == ["999,999", "1,000,000"]

    @given(st.floats(-700, 2000))
    def test_it_is_a_short_number(self, log_value: float) -> None:
        text = evidence_text(log_value)
        assert len(text) <= 9
        if -600 < log_value < log(999_999):
            assert float(text.replace(",", "")) == pytest.approx(exp(log_value), rel=0.06)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (Fraction(24, 500), "4.8 %"),
        (Fraction(1, 3), "33.3 %"),
        (Fraction(1, 7000), "0.0143 %"),
        (Fraction(0), "0 %"),
        (Fraction(3, 2), "150 %"),
        (Fraction(1), "100 %"),
        (Fraction(1001, 10**4), "10 %"),
        (Fraction(951, 10**4), "9.51 %"),
        (Fraction(1001, 10**5), "1 %"),
        (Fraction(9951, 10**6), "0.995 %"),
        (Fraction(1001, 10**6), "0.1 %"),
        (Fraction(9995, 10**7), "0.1 %"),
        (Fraction(9994, 10**7), "0.0999 %"),
    ],
)
def test_percent(share: Fraction, text: str) -> None:
    assert percent(share) == text


@given(st.integers(0, 9999), st.integers(0, 99), st.integers(0, 99_999), st.integers(0, 999))
def test_no_number_in_status_has_a_tail_of_digits(requests: int, errors: int, stable: int, bad: int) -> None:
    found = evidence(
        {
            "canary": counts(requests, min(errors, requests), requests, min(errors, requests)),
            "stable": counts(stable, min(bad, stable), stable, min(bad, stable)),
        }
    )
    judged = verdict({**BOTH, "assurance": "Strict"}, found)
    written = CanaryRolloutStatus(gates=tuple(map(gate_status, judged.gates))).as_object()
    assert not re.search(r"\d\.\d{5,}", str(written))
    assert not re.search(r"nan|inf\b", str(written))
