"""Lives of a rollout with everything that can happen to it.

``MODEL_EXAMPLES`` and ``MODEL_STEPS`` make it more and longer ones; then they are drawn at random rather than the same
ones each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis.stateful import run_state_machine_as_test

from tests.property.machine import Life

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("MODEL_STEPS", "40"))


def test_a_life_with_everything_that_can_happen() -> None:
    longer = "MODEL_EXAMPLES" in os.environ
    Life.lived = 0
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not longer,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Stage.generate, Stage.shrink],
        ),
    )
    assert Life.lived >= EXAMPLES * STEPS / 2, f"lives have become short: {Life.lived} things happened in all"
