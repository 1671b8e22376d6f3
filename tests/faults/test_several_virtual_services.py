"""A rollout over two VirtualServices, one of which cannot be written.

Going up, the other one waits for it at the same step; coming back, it waits for nothing. What refuses is a validating
webhook that the real API server asks.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Final

import pytest

from tests.faults.cluster import VIRTUAL_SERVICES
from tests.faults.life import NAME, STEPS, Ground, Life, shares
from tests.faults.obstacles import (
    ASK_AT_20,
    ASK_AT_60,
    LASTS_SECONDS,
    LONGEST_URGENT_SECONDS,
    SLACK_SECONDS,
    asks,
    check_end,
    check_urgent,
    check_visible,
    distances,
    most_attempts,
    obstructed,
    rows,
    tries,
)
from tests.faults.rows import Row

pytestmark = pytest.mark.cluster

EDGE: Final = "edge"
BOTH: Final = {"virtualServices": [{"name": NAME}, {"name": EDGE}], "destinationRule": {"name": NAME}}


def weights_of(life: Life, name: str) -> list[int]:
    """The canary's weights on one VirtualService, in the order of writes, without repetitions."""
    seen = life.ground.witness.seen(VIRTUAL_SERVICES, life.namespace, name)
    found = [shares(each.document).get("v2", 0) for each in seen]
    return [weight for weight, before in zip(found, [-1, *found], strict=False) if weight != before]


def zero_at(life: Life, name: str) -> float:
    """When the canary's weight was last taken to 0 on one VirtualService."""
    seen = life.ground.witness.seen(VIRTUAL_SERVICES, life.namespace, name)
    assert weights_of(life, name)[-1] == 0, life.story()
    return next(new.at for old, new in reversed(list(pairwise(seen))) if shares(old.document).get("v2", 0))


def second_route(life: Life) -> None:
    """Add another VirtualService whose route leads to the same service."""
    destination = {"destination": {"host": NAME, "subset": "v1"}}
    spec = {"hosts": [f"{life.namespace}.example"], "http": [{"route": [destination]}]}
    metadata = {"name": EDGE, "namespace": life.namespace}
    document = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": metadata, "spec": spec}
    life.ground.cluster.create(VIRTUAL_SERVICES, life.namespace, document)


def one_of_two_going_up(ground: Ground, failing: str) -> Row:
    """Let one of two VirtualServices not be written going up: the other one waits for it before the next step."""
    healthy = NAME if failing == EDGE else EDGE
    with obstructed(ground, "denied by a webhook") as (life, _, _, obstacle):
        second_route(life)
        life.begin(istio=BOTH, steps=ASK_AT_20)
        life.until(lambda: asks(life, 20), "first step")
        began = obstacle.begin(lambda review: review.name == failing)
        life.command("approve/v2/1")
        life.until(lambda: weights_of(life, healthy) == [0, 20, 60], "60 % on the other one", 10)
        check_visible(life, obstacle.words)
        time.sleep(max(0.0, began + LASTS_SECONDS - time.time()))
        assert weights_of(life, healthy) == [0, 20, 60], life.story()
        assert weights_of(life, failing) == [0, 20], life.story()
        assert len(tries(life, began, name=healthy)) == 1, "what was written is written again"
        ended = obstacle.end()
        attempts = len(tries(life, began, name=failing))
        life.until(lambda: life.ended, "end", 90)
        for name in (NAME, EDGE):
            assert weights_of(life, name) == [0, *STEPS], life.story()
        life.check_not_repeated()
        return Row(
            f"one of two VirtualServices ({failing}) denied by a webhook",
            f"for {ended - began:.0f} s, going up",
            1,
            f"the other one stays at the same step, written once; {attempts} attempts; promoted together afterwards",
        )


def one_of_two_coming_back(ground: Ground, failing: str) -> Row:
    """Let one of two VirtualServices not be written coming back: the other one does not wait for it."""
    healthy = NAME if failing == EDGE else EDGE
    with obstructed(ground, "denied by a webhook") as (life, _, _, obstacle):
        second_route(life)
        life.begin(istio=BOTH, steps=ASK_AT_60)
        life.until(lambda: asks(life, 60), "second step")
        began = obstacle.begin(lambda review: review.name == failing)
        life.fail("v2")
        life.until(lambda: weights_of(life, healthy)[-1] == 0, "rollback of the other one", 10)
        check_visible(life, obstacle.words)
        time.sleep(max(0.0, began + LASTS_SECONDS - time.time()))
        ending = time.time()
        ended = obstacle.end()
        refused, done = tries(life, began, name=failing), tries(life, began, name=healthy)
        life.until(lambda: life.ended, "end")
        assert [entry.applied for entry in done] == [True], "what was taken back is written again"
        over = [entry for entry in refused if entry.seconds is not None and entry.at + entry.seconds < ending]
        assert not any(entry.applied for entry in over), life.story()
        assert len(over) > 1, life.story()
        assert done[0].at < over[1].at, "the other one waited for it"
        check_urgent(refused, life.story())
        assert len(refused) <= most_attempts(ended - began, LONGEST_URGENT_SECONDS), life.story()
        late = zero_at(life, failing) - ended
        assert late < LONGEST_URGENT_SECONDS + SLACK_SECONDS, life.story()
        check_end(life, weights_of(life, NAME))
        for name in (NAME, EDGE):
            assert weights_of(life, name) == [0, 20, 60, 0], life.story()
        return Row(
            f"one of two VirtualServices ({failing}) denied by a webhook",
            f"for {ended - began:.0f} s, coming back after a breach",
            1,
            f"both tried within {abs(done[0].at - refused[0].at) * 1000:.0f} ms of each other, the other one at 0 at "
            f"once; {len(refused)} attempts, {max(distances(refused)):.1f} s apart at most; at 0 {late:.1f} s after it "
            "ended",
        )


TWO_WAYS: Final = {"up": one_of_two_going_up, "back": one_of_two_coming_back}


@pytest.mark.parametrize("failing", [pytest.param(EDGE), pytest.param(NAME, marks=pytest.mark.faults)])
def test_one_of_two_virtual_services_that_cannot_be_written(ground: Ground, table: list[Row], failing: str) -> None:
    rows(lambda way: TWO_WAYS[way](ground, failing), list(TWO_WAYS), table)
