from datetime import timedelta

import pytest

from canaryrollout.engine.attempts import Attempts, retry_delay
from tests.unit.engine.fakes import EPOCH


def test_delays_double_up_to_their_cap() -> None:
    patient = [retry_delay("shop/reviews", n, urgent=False) for n in range(1, 30)]
    assert 0.125 <= patient[0] <= 0.25
    assert all(15 <= delay <= 30 for delay in patient[10:])
    assert all(retry_delay("shop/reviews", n, urgent=True) <= 0.5 for n in range(1, 2000))


def test_a_wait_that_was_asked_for_is_kept_and_no_longer_one_taken() -> None:
    asked = [retry_delay(f"shop/{n}", failed, urgent=False, asked=3) for n in range(20) for failed in (1, 12)]
    assert 3 <= min(asked) < max(asked) <= 3.3
    assert retry_delay("shop/reviews", 1, urgent=False, asked=3600) <= 33
    assert retry_delay("shop/reviews", 1, urgent=True, asked=3600) <= 0.5


def test_delays_of_different_rollouts_differ() -> None:
    assert len({retry_delay(f"shop/{n}", 5, urgent=False) for n in range(50)}) == 50


def test_failures_are_counted_per_action_until_it_succeeds() -> None:
    attempts = Attempts()
    attempts.record(["a", "b"], {"a": "refused", "b": "refused"}, EPOCH)
    attempts.record(["a", "b"], {"a": "timed out"}, EPOCH + timedelta(seconds=1))
    assert attempts.failures["a"].count == 2
    assert attempts.failures["a"].message == "timed out"
    assert attempts.failures["a"].since == EPOCH
    assert "b" not in attempts.failures
    attempts.record(["b"], {}, EPOCH)
    attempts.succeeded(idle=False)
    assert attempts.failures["a"].count == 2, "what was not tried has not succeeded"
    attempts.succeeded(idle=True)
    assert attempts.failures == {}, "nothing is left to be done"


@pytest.mark.parametrize(("drift", "step"), [(0.0, 0.0), (0.9, 0.0), (-0.9, 0.0), (5.0, 5.0), (-3600.0, -3600.0)])
def test_only_a_jump_of_the_wall_clock_is_a_step(drift: float, step: float) -> None:
    attempts = Attempts()
    assert attempts.clock_step(1000.0) == timedelta()
    attempts.stored()
    assert attempts.clock_step(1000.0 + drift) == timedelta(seconds=step)
