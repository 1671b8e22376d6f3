"""The mathematics of the e-processes, against reference code that is written differently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.domain import evalues
from canaryrollout.domain.evalues import DISPERSIONS, MULTIPLES, SHARE, STAKES, Wealth

EQUAL = len(DISPERSIONS)
BOUND = math.log(80)
"""The evidence at which one of four limits fails with 95 % confidence."""


def only(dispersion: float) -> Wealth:
    """Return a beginning that is sure of one dispersion."""
    return replace(evalues.begin(), weights=tuple(float(each == dispersion) for each in DISPERSIONS))


def value(wealth: Wealth) -> float:
    return math.exp(wealth.log_value)


Likelihood = Callable[[Fraction], Fraction]


def reference(likelihoods: Iterable[Likelihood]) -> list[Fraction]:
    """Return the e-values after each block in exact arithmetic, without dispersions.

    Every bet is carried as a capital of its own; ``likelihoods`` tell for each block how probable it is when the rate
    is so many times the limit.
    """
    hypotheses = [Fraction(1), *map(Fraction, MULTIPLES)]
    stakes, share = [Fraction(stake) for stake in STAKES], Fraction(SHARE)
    capital, values = list(stakes), []
    for likelihood in likelihoods:
        pool = share * sum(capital)
        capital = [(1 - share) * each + pool * stake for each, stake in zip(capital, stakes, strict=True)]
        null = likelihood(Fraction(1))
        capital = [each * likelihood(h) / null for each, h in zip(capital, hypotheses, strict=True)]
        values.append(sum(capital, Fraction(0)))
    return values


def binomial(bad: int, of: int, share: Fraction) -> Fraction:
    return math.comb(of, bad) * share**bad * (1 - share) ** (of - bad)


def share_under(theta: Fraction, canary_of: int, stable_of: int) -> Fraction:
    """Return the probability that a failure is the canary's when its rate is ``theta`` times stable's."""
    rho = Fraction(canary_of, canary_of + stable_of)
    return rho * theta / (rho * theta + 1 - rho)


def poisson(count: int, mean: float) -> float:
    probability = math.exp(-mean)
    for k in range(1, count + 1):
        probability *= mean / k
    return probability


def negative_binomial(mean: float, dispersion: float, up_to: int) -> list[float]:
    """Return the probabilities of 0, 1, 2 ... by the recursion of the Panjer class."""
    if not dispersion:
        return [poisson(k, mean) for k in range(up_to)]
    size = 1 / dispersion
    fails = mean / (mean + size)
    probabilities = [(1 - fails) ** size]
    for k in range(1, up_to):
        probabilities.append(probabilities[-1] * fails * (k - 1 + size) / k)
    return probabilities


def integrated(bad: int, total: int, center: float, dispersion: float) -> float:
    """Return the logarithm of the mean of ``p^bad (1-p)^(total-bad)``, where the log odds of ``p`` are ``center`` plus
    those of a Beta(1/d, 1/d) variate: by Simpson's rule on a grid far finer and wider than the shipped one."""
    shape, points = 1 / dispersion, 5_001
    mode = math.log((bad + 0.5) / (total - bad + 0.5))
    low, high = min(center, mode) - 25, max(center, mode) + 25
    step = (high - low) / (points - 1)
    constant = math.lgamma(2 * shape) - 2 * math.lgamma(shape)

    def log_logistic(u: float) -> float:
        return -math.log1p(math.exp(-u)) if u > 0 else u - math.log1p(math.exp(u))

    terms = []
    for i in range(points):
        u = low + i * step
        density = shape * (log_logistic(u - center) + log_logistic(center - u))
        terms.append(bad * log_logistic(u) + (total - bad) * log_logistic(-u) + density)
    largest = max(terms)
    simpson = [1 if i in {0, points - 1} else 4 if i % 2 else 2 for i in range(points)]
    area = math.fsum(weight * math.exp(term - largest) for weight, term in zip(simpson, terms, strict=True)) * step / 3
    return constant + largest + math.log(area)


class TestAgainstExactArithmetic:
    """Without dispersion the e-process is a product of ratios of likelihoods, which can be computed exactly."""

    def test_against_stable_through_changing_weights(self) -> None:
        theta0 = Fraction(3, 2)
        seen = [
            (1, 100, 4, 900),
            (0, 97, 6, 911),
            (3, 310, 2, 690),
            (4, 300, 0, 700),
            (9, 500, 3, 500),
            (2, 1000, 1, 9),
        ]
        expected = reference(
            [
                lambda h, b=b, n=n, s=s, m=m: binomial(b, b + s, share_under(theta0 * h, n, m))  # type: ignore[misc]
                for b, n, s, m in seen
            ]
        )
        wealth, values = only(0.0), []
        for bad, of, stable_bad, stable_of in seen:
            wealth = evalues.relative(wealth, (bad, of), (stable_bad, stable_of), 1.5)
            # What stable's counts say on dispersions is kept out: this test is about the bets.
            wealth = replace(wealth, weights=only(0.0).weights)
            values.append(value(wealth))
        assert values == pytest.approx([float(each) for each in expected], rel=1e-9)

    def test_against_a_number(self) -> None:
        limit, seen = Fraction(1, 100), [(0, 120), (1, 80), (5, 200), (0, 0), (3, 90), (0, 400)]
        # exp(-n p h) / exp(-n p) is no fraction; what is left of the Poisson likelihood is.
        counted = [(bad, of) for bad, of in seen if of]
        factors = [Fraction(math.exp(-float(of * limit))) for _, of in counted]
        expected = reference(
            [
                lambda h, bad=bad, f=f: h**bad * Fraction(float(f) ** float(h))  # type: ignore[misc]
                for (bad, _), f in zip(counted, factors, strict=True)
            ]
        )
        wealth, values = only(0.0), []
        for bad, of in seen:
            wealth = evalues.absolute(wealth, bad, of, float(limit))
            values.append(value(wealth))
        del values[3]
        assert values == pytest.approx([float(each) for each in expected], rel=1e-9)

    def test_a_mixture_weighs_each_dispersion_by_what_the_counts_say(self) -> None:
        """Against a number, two blocks: the ratio of two mixtures, summed term by term."""
        mean, seen = 2.0, (7, 3)
        above = below = 0.0
        for prior, dispersion in zip(evalues.DISPERSION_WEIGHTS, DISPERSIONS, strict=True):
            tables = {h: negative_binomial(mean * h, dispersion, 10) for h in (1.0, *MULTIPLES)}
            null = math.prod(tables[1.0][bad] for bad in seen)
            capital = list(STAKES)
            for bad in seen:
                pool = SHARE * sum(capital)
                capital = [
                    ((1 - SHARE) * each + pool * stake) * tables[h][bad] / tables[1.0][bad]
                    for each, stake, h in zip(capital, STAKES, (1.0, *MULTIPLES), strict=True)
                ]
            below += prior * null
            above += prior * null * sum(capital)
        wealth = evalues.begin()
        for bad in seen:
            wealth = evalues.absolute(wealth, bad, 200, 0.01)
        assert value(wealth) == pytest.approx(above / below, rel=1e-9)


class TestExpectationUnderTheNull:
    """What makes it an e-process: on average wealth does not grow while the canary keeps its limit."""

    @pytest.mark.parametrize("theta", [0.1, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("canary_share", [0.01, 0.1, 0.5, 0.98])
    @pytest.mark.parametrize("failures", [1, 7, 60])
    def test_against_stable(self, theta: float, canary_share: float, failures: int) -> None:
        of = round(canary_share * 100_000)
        stable_of, limit = 100_000 - of, 1.5
        p = float(share_under(Fraction(theta * limit), of, stable_of))
        mean = sum(
            math.comb(failures, x)
            * p**x
            * (1 - p) ** (failures - x)
            * value(evalues.relative(only(0.0), (x, of), (failures - x, stable_of), limit))
            for x in range(failures + 1)
        )
        assert mean <= 1 + 1e-9
        if theta == 1.0 and failures < 60:  # with so many, single ratios are capped
            assert mean == pytest.approx(1, rel=1e-6), "at the limit nothing is given away"

    @pytest.mark.parametrize("theta", [0.1, 0.5, 1.0])
    @pytest.mark.parametrize("expected", [0.02, 1.0, 30.0])
    @pytest.mark.parametrize("dispersion", DISPERSIONS)
    def test_against_a_number(self, theta: float, expected: float, dispersion: float) -> None:
        of = round(expected * 1000)
        up_to = int(expected * 60 + 400)
        probabilities = negative_binomial(of * 0.001 * theta, dispersion, up_to)
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        mean = sum(
            p * value(evalues.absolute(only(dispersion), x, of, 0.001)) for x, p in enumerate(probabilities) if p
        )
        assert mean <= 1 + 1e-9

    @pytest.mark.parametrize("expected", [0.5, 5.0])
    @pytest.mark.parametrize("position", range(EQUAL))
    def test_a_dispersion_that_is_not_known_costs_its_prior_weight_at_most(
        self, expected: float, position: int
    ) -> None:
        of = round(expected * 1000)
        probabilities = negative_binomial(expected, DISPERSIONS[position], int(expected * 200 + 400))
        mean = sum(p * value(evalues.absolute(evalues.begin(), x, of, 0.001)) for x, p in enumerate(probabilities) if p)
        assert mean <= 1 / evalues.DISPERSION_WEIGHTS[position]

    @pytest.mark.parametrize("canary_share", [0.01, 0.1, 0.5, 0.98])
    @pytest.mark.parametrize("failures", [1, 8, 24])
    @pytest.mark.parametrize("dispersion", DISPERSIONS[1:])
    def test_against_stable_with_bursts(self, canary_share: float, failures: int, dispersion: float) -> None:
        """Given how many failed, the canary's are a binomial whose log odds are those of a beta variate, shifted."""
        of = round(canary_share * 100_000)
        stable_of = 100_000 - of
        center = math.log(of / stable_of)
        total = mean = 0.0
        for x in range(failures + 1):
            p = math.comb(failures, x) * math.exp(integrated(x, failures, center, dispersion))
            total += p
            mean += p * value(evalues.relative(only(dispersion), (x, of), (failures - x, stable_of), 1.0))
        assert total == pytest.approx(1, rel=1e-6)
        assert mean <= 1.005

    @pytest.mark.parametrize(("canary_share", "most"), [(0.1, 1.0), (0.5, 1.0005), (0.9, 1.1)])
    @pytest.mark.parametrize("dispersion", DISPERSIONS[1:])
    def test_bursts_on_both_sides(self, canary_share: float, most: float, dispersion: float) -> None:
        """Bursts of their own on each side: how many failed says a little on whose they are, which helps up to 50 %."""
        mean = 5.0
        sides = [negative_binomial(mean * part, dispersion, 40) for part in (canary_share, 1 - canary_share)]
        of = round(canary_share * 10_000)
        expectation = seen = 0.0
        for x, canary in enumerate(sides[0]):
            for y, stable in enumerate(sides[1]):
                if canary * stable > 1e-7:
                    seen += canary * stable
                    after = evalues.relative(only(dispersion), (x, of), (y, 10_000 - of), 1.0)
                    expectation += canary * stable * value(after)
        assert seen > 0.99
        assert expectation <= most


class TestQuadrature:
    @pytest.mark.parametrize("weight", [1, 10, 50, 98])
    @pytest.mark.parametrize(
        ("bad", "total"), [(0, 1), (1, 1), (3, 8), (0, 10), (20, 40), (50, 400), (2000, 9000), (0, 2000), (2000, 2000)]
    )
    def test_it_equals_an_integral_over_a_fine_grid(self, bad: int, total: int, weight: int) -> None:
        log_odds = math.log(weight / (100 - weight))
        nulls, ratios = evalues._share_table(bad, total, log_odds)
        for position in range(1, EQUAL):
            null = integrated(bad, total, log_odds, DISPERSIONS[position])
            assert nulls[position] == pytest.approx(null, abs=0.01)
            for which in (1, 5, 12):
                multiple = MULTIPLES[which - 1]
                expected = integrated(bad, total, log_odds + math.log(multiple), DISPERSIONS[position]) - null
                if expected > -20:  # below, the bet is lost whatever the digits
                    assert math.log(ratios[position][which]) == pytest.approx(min(expected, 60), abs=0.01)

    def test_without_dispersion_it_is_the_binomial(self) -> None:
        nulls, _ = evalues._share_table(3, 8, math.log(1 / 9))
        assert nulls[0] == pytest.approx(math.log(0.1**3 * 0.9**5))


some_counts = st.tuples(st.integers(0, 50), st.integers(0, 2000), st.integers(0, 50), st.integers(0, 20_000))
some_limits = st.floats(1.0, 10.0)


class TestOrder:
    @given(st.lists(some_counts, min_size=1, max_size=6), st.integers(1, 50), st.data(), some_limits)
    def test_more_failures_of_the_canary_never_lower_what_is_known_against_a_number(
        self, seen: list[tuple[int, int, int, int]], more: int, data: st.DataObject, limit: float
    ) -> None:
        """With a dispersion that is known; a mixture may find in a burst that it is one."""
        index = data.draw(st.integers(0, len(seen) - 1))
        dispersion = data.draw(st.sampled_from(DISPERSIONS))
        before = after = only(dispersion)
        for position, (bad, of, _, _) in enumerate(seen):
            before = evalues.absolute(before, bad, of, limit / 1000)
            after = evalues.absolute(after, bad + more * (position == index), of, limit / 1000)
        assert after.log_value >= min(before.log_value, 100) - 1e-9  # wealth is capped where it is beyond all doubt

    @given(some_counts, st.integers(1, 50), some_limits, st.sampled_from(DISPERSIONS))
    def test_more_failures_of_the_canary_never_lower_what_is_known_against_stable(
        self, seen: tuple[int, int, int, int], more: int, limit: float, dispersion: float
    ) -> None:
        bad, of, stable_bad, stable_of = seen
        before = evalues.relative(only(dispersion), (bad, of), (stable_bad, stable_of), limit)
        after = evalues.relative(only(dispersion), (bad + more, of), (stable_bad, stable_of), limit)
        assert after.log_value >= min(before.log_value, 50) - 1e-3

    @given(st.lists(some_counts, min_size=1, max_size=12), some_limits)
    def test_the_peak_is_the_highest_it_ever_was(self, seen: list[tuple[int, int, int, int]], limit: float) -> None:
        wealth, highest = evalues.begin(), 0.0
        for bad, of, stable_bad, stable_of in seen:
            wealth = evalues.relative(wealth, (bad, of), (stable_bad, stable_of), limit)
            highest = max(highest, wealth.log_value)
            assert wealth.log_peak == highest

    def test_a_peak_stays_when_the_evidence_is_gone(self) -> None:
        wealth = evalues.begin()
        for _ in range(3):
            wealth = evalues.relative(wealth, (20, 500), (5, 4500), 1.5)
        peak = wealth.log_peak
        assert peak > BOUND
        for _ in range(30):
            wealth = evalues.relative(wealth, (0, 500), (25, 4500), 1.5)
        assert wealth.log_value < peak - 1
        assert wealth.log_peak == peak


huge = st.integers(0, 10**9)


class TestTotal:
    @given(
        st.lists(st.tuples(huge, huge, huge, huge), min_size=1, max_size=5),
        st.floats(1e-6, 1e3),
        st.sampled_from([evalues.begin(), only(0.0), only(1.0)]),
    )
    def test_any_counts_and_limits_give_a_number(
        self, seen: list[tuple[int, int, int, int]], limit: float, start: Wealth
    ) -> None:
        first = second = start
        for a, b, c, d in seen:
            first = evalues.relative(first, (min(a, b), max(a, b)), (min(c, d), max(c, d)), limit)
            second = evalues.absolute(second, min(a, b), max(a, b), limit)
            for wealth in (first, second):
                assert math.isfinite(wealth.log_value)
                assert math.isfinite(wealth.log_peak)
                assert all(0 <= weight <= 1 for weight in wealth.weights)
                assert sum(wealth.weights) == pytest.approx(1)
                assert all(math.isfinite(bet) and bet >= 0 for row in wealth.bets for bet in row)

    @pytest.mark.parametrize("bad", [0, 1, 10**9])
    def test_the_largest_counts(self, bad: int) -> None:
        wealth = evalues.begin()
        for _ in range(20):
            wealth = evalues.relative(wealth, (bad, 10**9), (10**9 - bad, 10**9), 1e-6)
            wealth = evalues.relative(wealth, (bad, 10**9), (10**9 - bad, 10**9), 1e3)
        assert math.isfinite(wealth.log_value)

    def test_wealth_that_is_nearly_gone_does_not_vanish(self) -> None:
        """A step of months: the bets are lost again and again, and what is never bet melts with them."""
        gone = tuple(tuple(bet * 1e-290 for bet in row) for row in evalues.begin().bets)
        wealth = replace(evalues.begin(), bets=gone)
        for _ in range(20_000):
            wealth = evalues.absolute(wealth, 0, 1000, 0.01)
        assert math.isfinite(wealth.log_value)
        low = wealth.log_value
        for _ in range(5):
            wealth = evalues.absolute(wealth, 100, 1000, 0.01)
        assert wealth.log_value > low + 10

    def test_no_traffic_says_nothing(self) -> None:
        start = evalues.begin()
        assert evalues.relative(start, (0, 0), (9, 900), 1.5) is start
        assert evalues.relative(start, (9, 100), (0, 0), 1.5) is start
        assert evalues.absolute(start, 0, 0, 0.01) is start

    def test_no_failures_at_all_say_nothing_on_the_ratio(self) -> None:
        wealth = evalues.relative(evalues.begin(), (0, 100), (0, 900), 1.5)
        assert wealth.log_value == pytest.approx(0, abs=1e-12)


class TestLimitOfZero:
    def test_a_single_failure_is_proof_and_stays_it(self) -> None:
        wealth = evalues.absolute(evalues.begin(), 1, 1000, 0.0)
        assert wealth.log_value > math.log(1e20)
        wealth = evalues.absolute(wealth, 0, 1000, 0.0)
        assert wealth.log_peak > math.log(1e20)

    def test_none_say_nothing(self) -> None:
        assert evalues.absolute(evalues.begin(), 0, 1000, 0.0).log_value == 0


class TestChange:
    """A canary that is fine for fifty minutes and then fails ten times as often as it did."""

    def found_after(self, monkeypatch: pytest.MonkeyPatch, share: float) -> int:
        monkeypatch.setattr(evalues, "SHARE", share)
        monkeypatch.setattr(evalues, "_KEPT", 1 - share)
        wealth = evalues.begin()
        for block in range(300):
            wealth = evalues.relative(wealth, (block % 2, 100), (5 - block % 2, 900), 1.5)  # 0.5 % on both sides
        assert wealth.log_peak < BOUND
        for block in range(1, 1000):
            wealth = evalues.relative(wealth, (5, 100), (5 - block % 2, 900), 1.5)
            if wealth.log_value >= BOUND:
                return block
        raise AssertionError

    def test_it_is_found_within_a_handful_of_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_share = self.found_after(monkeypatch, SHARE)
        without = self.found_after(monkeypatch, 0.0)
        assert with_share <= 4
        assert without >= 3 * with_share


def test_what_was_learned_on_dispersion_is_recalled_but_not_blindly() -> None:
    learned = (0.0, 0.0, 0.0, 1.0)
    weights: Sequence[float] = evalues.resume(0.0, learned).weights
    assert sum(weights) == pytest.approx(1)
    assert weights[3] > 0.9
    assert all(weight > 0 for weight in weights)


def test_a_step_begins_with_the_evidence_of_the_one_before() -> None:
    wealth = evalues.resume(1.2, (1.0, 1.0, 1.0, 1.0))
    assert (wealth.log_value, wealth.log_peak) == (1.2, 1.2)
    after = evalues.absolute(replace(wealth, weights=only(0.0).weights), 3, 100, 0.01)
    unweighed = evalues.resume(0.0, (1.0, 1.0, 1.0, 1.0))
    anew = evalues.absolute(replace(unweighed, weights=only(0.0).weights), 3, 100, 0.01)
    assert after.log_value == pytest.approx(anew.log_value + 1.2)


def test_a_step_that_went_well_does_not_take_most_of_the_wealth_again() -> None:
    wealth = evalues.begin()
    for _ in range(3):
        for _ in range(20):
            wealth = evalues.relative(wealth, (10, 5000), (100, 45000), 1.0)
        wealth = evalues.resume(wealth.log_value, wealth.weights)
    least = evalues.RESERVE * evalues.LATER_RESERVE**2
    assert value(wealth) > least * (1 - evalues.SHARE) ** 60, "what is spread anew is all that leaves the reserve"


def test_bursts_on_stable_make_the_same_count_weigh_less() -> None:
    steady = bursty = evalues.begin()
    for block in range(20):
        steady = evalues.relative(steady, (4, 1000), (36, 9000), 1.5)
        bursty = evalues.relative(bursty, (4, 1000), (72 * (block % 2), 9000), 1.5)
    found = [
        evalues.relative(evalues.resume(0.0, each.weights), (15, 1000), (36, 9000), 1.5) for each in (steady, bursty)
    ]
    assert found[0].log_value > 2 * found[1].log_value > 0
