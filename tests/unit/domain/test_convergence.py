import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.api.status import Counts
from canaryrollout.domain.convergence import Agreement, State, agreement, look, tail
from canaryrollout.domain.evidence import Block

START = datetime(2026, 1, 1, 12, 0, 6, tzinfo=UTC)
BOUND = START + timedelta(seconds=30)


def blocks(*pairs: tuple[int, int], seconds: int = 10) -> list[Block]:
    """Return blocks from START on, with so many requests of canary and stable."""
    edges = [START + timedelta(seconds=k * seconds) for k in range(len(pairs) + 1)]
    return [
        Block(edges[k], edges[k + 1], Counts(requests=canary), Counts(requests=stable))
        for k, (canary, stable) in enumerate(pairs)
    ]


def exact_tail(successes: int, n: int, p: float) -> float:
    chances = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    return sum(chances[successes:]) if successes > n * p else sum(chances[: successes + 1])


@given(st.integers(1, 200), st.floats(0.01, 0.99), st.data())
def test_tail_is_the_sum_of_the_binomial_terms(n: int, p: float, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    assert tail(successes, n, p) == pytest.approx(min(1.0, exact_tail(successes, n, p)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("canary", "stable", "weight", "expected"),
    [
        (10, 90, 10, Agreement.AGREES),
        (0, 100, 10, Agreement.CONTRADICTS),  # the old weight is still in force
        (22, 78, 10, Agreement.CONTRADICTS),
        (21, 79, 10, Agreement.AGREES),
        (300, 700, 30, Agreement.AGREES),
        (100, 900, 30, Agreement.CONTRADICTS),
        (65, 7, 90, Agreement.TOO_FEW),
        (66, 7, 90, Agreement.AGREES),
        (7, 65, 10, Agreement.TOO_FEW),
        (7, 66, 10, Agreement.AGREES),
        (0, 72, 10, Agreement.TOO_FEW),
        (0, 73, 10, Agreement.CONTRADICTS),  # what is enough to agree is enough to find the weight not written at all
        (0, 10, 50, Agreement.TOO_FEW),
        (0, 11, 50, Agreement.CONTRADICTS),
        (100_000, 900_000, 10, Agreement.AGREES),
        (101_000, 899_000, 10, Agreement.CONTRADICTS),
        (20, 0, 100, Agreement.AGREES),
        (19, 0, 100, Agreement.TOO_FEW),
        (999, 1, 100, Agreement.CONTRADICTS),
        (0, 20, 0, Agreement.AGREES),
        (1, 99, 0, Agreement.CONTRADICTS),
        (0, 0, 50, Agreement.TOO_FEW),
    ],
)
def test_share_against_weight(canary: int, stable: int, weight: int, expected: Agreement) -> None:
    assert agreement(canary, stable, weight).agreement is expected


def test_interval_is_the_clopper_pearson_interval() -> None:
    # With 20 of 100, the 99.9 % interval is 8.9 % to 35.6 % (e.g. scipy.stats.binomtest(20, 100).proportion_ci(0.999)).
    verdicts = {weight: agreement(20, 80, weight).agreement for weight in (8, 9, 35, 36)}
    assert verdicts == {
        8: Agreement.CONTRADICTS,
        9: Agreement.AGREES,
        35: Agreement.AGREES,
        36: Agreement.CONTRADICTS,
    }


@pytest.mark.parametrize(
    ("canary", "stable", "weight", "previous", "expected"),
    [
        (9, 6, 60, 30, Agreement.TOO_FEW),  # nine of fifteen are no wonder at 30 %
        (4, 11, 60, 30, Agreement.TOO_FEW),
        (60, 40, 60, 30, Agreement.AGREES),
        (30, 70, 60, 30, Agreement.CONTRADICTS),
        (55, 45, 60, 50, Agreement.TOO_FEW),
        (600, 400, 60, 50, Agreement.AGREES),
        (550, 450, 60, 50, Agreement.TOO_FEW),  # half of the proxies are late
        (500, 500, 60, 50, Agreement.CONTRADICTS),
        (6, 67, 10, 0, Agreement.AGREES),  # before, nobody could have met the canary
        (20, 0, 100, 50, Agreement.AGREES),
        (20, 0, 100, 90, Agreement.TOO_FEW),
        (70, 0, 100, 90, Agreement.AGREES),
        (0, 40, 0, 30, Agreement.AGREES),
        (10, 90, 10, 10, Agreement.AGREES),  # asserted again: there is nothing to tell it from
        (10, 90, 10, 100, Agreement.AGREES),
    ],
)
def test_share_against_weight_and_the_weight_before(
    canary: int, stable: int, weight: int, previous: int, expected: Agreement
) -> None:
    assert agreement(canary, stable, weight, previous).agreement is expected


@pytest.mark.parametrize(("previous", "weight"), [(10, 30), (30, 50), (30, 60), (50, 60), (90, 100)])
def test_proxies_that_were_never_told_do_not_pass_for_agreement(previous: int, weight: int) -> None:
    """Two thousand times 600 requests drawn at the weight before, looked at every ten: at most one in a thousand."""
    draw = random.Random(f"{previous} to {weight}")
    fooled = 0
    for _ in range(2_000):
        canary = 0
        for n in range(10, 610, 10):
            canary += sum(draw.random() < previous / 100 for _ in range(10))
            if agreement(canary, n - canary, weight, previous).agreement is Agreement.AGREES:
                fooled += 1
                break
    assert fooled <= 6  # more than six of an expected two at most: odds of one in two hundred


def test_message_has_the_numbers() -> None:
    assert agreement(9, 6, 60, 30).message == (
        "canary had 9 of 15 requests (60.0 %) at weight 60, too few to tell it from weight 30 before"
    )
    assert agreement(8, 92, 10).message == "canary had 8 of 100 requests (8.0 %) at weight 10"
    assert agreement(1, 2, 10).message == "3 of at least 73 requests to tell whether weight 10 is in effect"


@given(st.integers(0, 2_000), st.integers(0, 2_000), st.integers(0, 100))
def test_both_versions_are_treated_alike(canary: int, stable: int, weight: int) -> None:
    assert agreement(canary, stable, weight).agreement is agreement(stable, canary, 100 - weight).agreement


@given(st.integers(50, 100_000), st.integers(1, 99))
def test_the_expected_share_never_contradicts(n: int, weight: int) -> None:
    canary = round(n * weight / 100)
    assert agreement(canary, n - canary, weight).agreement is not Agreement.CONTRADICTS


def test_a_million_requests_take_no_time() -> None:
    started = time.perf_counter()
    for canary in (99_000, 100_000, 101_000, 600_000):  # the last is too unlikely for a float
        agreement(canary, 1_000_000 - canary, 10)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(("canary", "stable", "weight"), [(-1, 1, 10), (1, -1, 10), (1, 1, 101), (1, 1, -1)])
def test_nonsense_is_refused(canary: int, stable: int, weight: int) -> None:
    with pytest.raises(ValueError, match="no counts and weight"):
        agreement(canary, stable, weight)


def test_a_weight_before_that_is_no_percentage_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight before 10: 101"):
        agreement(1, 1, 10, 101)


class TestLook:
    """Since when a weight is in effect."""

    def test_traffic_that_agrees_counts_from_the_start(self) -> None:
        found = look(blocks((3, 30), (12, 100)), 10, start=START, bound=BOUND)
        assert (found.state, found.since) == (State.CONVERGED, START)
        assert found.message == "canary had 15 of 145 requests (10.3 %) at weight 10"

    def test_proxies_that_are_late_delay_it(self) -> None:
        found = look(blocks((0, 1000), (100, 900)), 10, start=START, bound=BOUND)
        assert (found.state, found.since) == (State.CONVERGED, START + timedelta(seconds=10))
        assert found.message == "canary had 100 of 1000 requests (10.0 %) at weight 10"

    def test_a_few_requests_do_not_overrule_a_thousand(self) -> None:
        """Share 20 % at weight 10 for as long as there was traffic, then a trickle that may be anything."""
        found = look(blocks((200, 800), (10, 70)), 10, start=START, bound=BOUND)
        assert (found.state, found.since) == (State.SHARE_CONTRADICTS, None)

    def test_too_little_traffic_counts_from_the_start_once_the_bound_is_reached(self) -> None:
        few = blocks((1, 9), (0, 10), (2, 8))
        assert look(few[:2], 10, start=START, bound=BOUND).since is None
        found = look(few, 10, start=START, bound=BOUND)
        assert (found.state, found.since) == (State.TOO_LITTLE_TRAFFIC, START)
        assert found.message == "30 of at least 73 requests to tell whether weight 10 is in effect"

    def test_a_share_that_contradicts_for_long_is_judged_from_the_bound_on(self) -> None:
        found = look(blocks(*[(600, 400)] * 5), 10, start=START, bound=BOUND)
        assert (found.state, found.since) == (State.SHARE_CONTRADICTS, BOUND)
        assert found.message == "canary had 1800 of 3000 requests (60.0 %) at weight 10"

    def test_one_early_interval_with_few_requests_does_not_decide(self) -> None:
        """Proxies act on 30 % on and on; the first requests seen happen to be six of fifteen."""
        seen = blocks((6, 9), (45, 105), (43, 107))
        assert look(seen[:1], 60, start=START, bound=BOUND, previous=30).since is None
        found = look(seen, 60, start=START, bound=None, previous=30)
        assert (found.state, found.since) == (State.SHARE_CONTRADICTS, None)

    def test_proxies_that_take_over_after_a_while_are_seen_to(self) -> None:
        late = [(60, 240)] * 4 + [(90, 210)] * 2
        found = look(blocks(*late), 30, start=START, bound=None, previous=20)
        assert (found.state, found.since) == (State.CONVERGED, START + timedelta(seconds=40))

    def test_no_data_is_no_traffic_only_once_it_was_counted(self) -> None:
        assert look((), 10, start=START, bound=BOUND).since is None

    @pytest.mark.parametrize("pairs", [[(600, 400)] * 60, [(0, 1)] * 60])
    def test_without_a_bound_it_is_looked_for_on_and_on(self, pairs: list[tuple[int, int]]) -> None:
        assert look(blocks(*pairs), 10, start=START, bound=None).since is None
        healed = look(blocks(*pairs, (100, 900)), 10, start=START, bound=None)
        since = START if pairs[0] == (0, 1) else START + timedelta(seconds=600)
        assert (healed.state, healed.since) == (State.CONVERGED, since)

    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=12), st.sampled_from([10, 50, 100]))
    def test_who_looks_seldom_finds_what_who_looks_always_found(
        self, pairs: Sequence[tuple[int, int]], weight: int
    ) -> None:
        """A restart, or a provider that was away, changes nothing."""
        seen = blocks(*pairs)
        whole = look(seen, weight, start=START, bound=BOUND)
        looks = [look(seen[:k], weight, start=START, bound=BOUND) for k in range(len(seen) + 1)]
        assert next((found for found in looks if found.since is not None), looks[-1]) == whole


def test_a_small_change_that_proxies_take_over_late_is_told_by_as_many_requests_as_that_takes() -> None:
    found = look(blocks(*[(100, 900)] * 20, *[(120, 880)] * 10), 12, start=START, bound=None, previous=10)
    assert (found.state, found.message) == (State.CONVERGED, "canary had 820 of 7000 requests (11.7 %) at weight 12")
    assert found.since == START + timedelta(seconds=190)


def test_the_newest_stretch_is_no_longer_than_it_takes() -> None:
    found = look(blocks(*[(0, 22)] * 10, (10, 12), (11, 11)), 50, start=START, bound=None)
    assert (found.state, found.since) == (State.CONVERGED, START + timedelta(seconds=100))
