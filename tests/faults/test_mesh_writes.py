"""Writes of VirtualServices and DestinationRules that are refused, time out or fail, going up and coming back.

What refuses is a validating webhook that the real API server asks, in words of the API server's own; only a write that
never returns and a plain 503 are made by the proxy before it. The write is repeated at growing distances, or at least
once a second where traffic is being taken back; a person can read why; and a rollout next door notices nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import pytest

from canaryrollout.api.status import Phase
from lab.faultproxy import Armed, Entry
from tests.faults.cluster import DESTINATION_RULES, ROLLOUTS, VIRTUAL_SERVICES
from tests.faults.life import LAG_SECONDS, NAME, STEPS, Ground, Life, new_life, shares
from tests.faults.rows import Row
from tests.faults.traffic import SCRAPE_SECONDS
from tests.faults.webhook import MESSAGE, Mood, Review, Webhook, webhook

pytestmark = pytest.mark.cluster

AT_ONCE: Final = 2
LASTS_SECONDS: Final = 8.0
SLACK_SECONDS: Final = 1.5
"""For a machine that is busy with other tests."""
WRITE_TIMEOUT_SECONDS: Final = 5.0
"""The operator's own patience with a write."""
INTERVAL_SECONDS: Final = 1.0
ANSWERED_WITHIN: Final = INTERVAL_SECONDS + 1.0
VISIBLE_SECONDS: Final = SCRAPE_SECONDS + LAG_SECONDS
"""After a breach the provider has it."""
FIRST_DELAY_SECONDS: Final = 0.25
LONGEST_DELAY_SECONDS: Final = 30.0
LONGEST_URGENT_SECONDS: Final = 1.0
UNDELAYED_SECONDS: Final = 3.0
"""How much longer a rollout may take beside one that cannot be written than without."""
ASK_AT_20: Final = [{"weight": 20, "approval": "Required"}, {"weight": 60}, {"weight": 100}]
ASK_AT_60: Final = [{"weight": 20}, {"weight": 60, "approval": "Required"}, {"weight": 100}]
EDGE: Final = "edge"
BOTH: Final = {"virtualServices": [{"name": NAME}, {"name": EDGE}], "destinationRule": {"name": NAME}}


@dataclass
class Obstacle:
    """What keeps mesh objects from being written.

    Attributes:
        life: Whose they are.
        hook: The webhook of its namespace.
        mood: What the webhook does; ``None`` where it is the proxy that disturbs.
        rule: What the proxy does.
        words: What the operator has to say of it.
        patience: How long a write takes until it has failed.
    """

    life: Life
    hook: Webhook
    mood: Mood | None
    rule: str
    words: str
    patience: float = 0.0
    _armed: list[Armed] = field(default_factory=list)

    def begin(self, concerns: Callable[[Review], bool] = lambda _: True) -> float:
        """Let it begin; return when that was."""
        if self.mood is not None:
            self.hook.refuse(self.mood, concerns)
        else:
            self._armed = [self.life.rule(f"patch virtualservices namespace={self.life.namespace} {self.rule}")]
        return time.time()

    def end(self) -> float:
        """Let it end; return when that was."""
        self.life.proxy.retire(*self._armed)
        return self.hook.allow()


OBSTACLES: Final[Mapping[str, tuple[Mood | None, str, str, float]]] = {
    "denied by a webhook": (Mood.DENIES, "", f"denied the request: {MESSAGE}", 0.0),
    "webhook down": (Mood.FAILS, "", "failed calling webhook", 0.0),
    "webhook hangs": (Mood.HANGS, "", "timed out", WRITE_TIMEOUT_SECONDS),
    "503": (None, "answer=503", "HTTP 503", 0.0),
    "never answered": (None, "hang", "timed out", WRITE_TIMEOUT_SECONDS),
}
QUICK: Final = ("denied by a webhook",)
KINDS: Final = [
    pytest.param(QUICK, id="quick"),
    pytest.param(
        tuple(kind for kind in OBSTACLES if kind not in QUICK),
        id="all",
        marks=[pytest.mark.faults, pytest.mark.timeout(1200)],
    ),
]


# --- what is measured -------------------------------------------------------------------------------------------------


def most_attempts(seconds: float, longest: float) -> int:
    """How many attempts there may be in so many seconds: the distances double, and are shortened by half at most."""
    attempts, at, delay = 1, 0.0, FIRST_DELAY_SECONDS
    while (at := at + delay / 2) <= seconds:
        attempts, delay = attempts + 1, min(longest, 2 * delay)
    return attempts


def tries(life: Life, since: float, plural: str = "virtualservices", name: str = NAME) -> list[Entry]:
    """Attempts to write an object of the mesh since a time."""
    return [e for e in life.writes() if (e.call.resource, e.call.name) == (plural, name) and e.at >= since]


def distances(entries: Sequence[Entry]) -> list[float]:
    """Seconds between an attempt's end and the next one."""
    return [new.at - (old.at + (old.seconds or 0.0)) for old, new in pairwise(entries)]


def whole_rollout(life: Life) -> float:
    """Let a rollout begin and end; return how many seconds it took."""
    life.begin()
    took = life.until(lambda: life.ended, "end")
    assert life.weights() == [0, *STEPS], life.story()
    return took


def approve(life: Life) -> None:
    """Let a person approve the step."""
    command = {"metadata": {"annotations": {"canaryrollout.io/command": "approve/v2/1"}}}
    life.ground.cluster.merge(ROLLOUTS, life.namespace, NAME, command)


def asks(life: Life, weight: int) -> bool:
    """Whether a step has passed and waits for a person."""
    return life.weight == weight and life.status.phase is Phase.PAUSED


def events(life: Life, reason: str) -> list[str]:
    """Notes of the Events with a reason."""
    found = json.loads(life.ground.lab.kubectl("get", "events.events.k8s.io", "-n", life.namespace, "-o", "json"))
    return [event.get("note", "") for event in found["items"] if event["reason"] == reason]


def check_visible(life: Life, words: str) -> None:
    """A person reads why: in the conditions, in `kubectl get`, and in an Event."""
    life.until(lambda: words in life.status.message, f"{words!r} in the message", 10)
    assert any(words in condition.message for condition in life.status.conditions if condition.type == "Ready")
    assert words in life.ground.lab.kubectl("get", "canaryrollouts", "-n", life.namespace, "-o", "wide")
    life.until(lambda: any(words in note for note in events(life, "WriteFailed")), "Event", 10)


@contextmanager
def obstructed(ground: Ground, kind: str) -> Iterator[tuple[Life, Life, Life, Obstacle]]:
    """A rollout whose mesh can be kept from being written, and two more of the same operator."""
    with new_life(ground) as life:
        calm, beside = life.neighbor(), life.neighbor()
        directory = ground.directory / life.namespace
        with webhook(ground.lab, life.namespace, directory) as hook:
            mood, rule, words, patience = OBSTACLES[kind]
            life.until(lambda: reviewed(life, hook), "webhook that is asked", 20)
            life.start()
            yield life, calm, beside, Obstacle(life, hook, mood, rule, words, patience)


def reviewed(life: Life, hook: Webhook) -> bool:
    """Whether the API server asks the webhook already."""
    change = {"metadata": {"labels": {"touched": f"{time.time():.0f}"}}}
    life.ground.cluster.merge(DESTINATION_RULES, life.namespace, NAME, change)
    return bool(hook.reviews)


# --- one VirtualService -----------------------------------------------------------------------------------------------


def refused_going_up(ground: Ground, kind: str) -> Row:
    """Let no weight be written in the middle of a rollout, and tell what was seen."""
    with obstructed(ground, kind) as (life, calm, beside, obstacle):
        life.begin(steps=ASK_AT_20)
        usual = whole_rollout(calm)
        life.until(lambda: asks(life, 20), "approved step")
        began = obstacle.begin()
        approve(life)
        took = whole_rollout(beside)
        check_visible(life, obstacle.words)
        time.sleep(max(0.0, began + LASTS_SECONDS - time.time()))
        assert life.weights() == [0, 20], life.story()
        ended = obstacle.end()
        attempts = tries(life, began)
        most = most_attempts(ended - began, LONGEST_DELAY_SECONDS)
        life.until(lambda: life.ended, "end", 90)
        check_end(life, [0, *STEPS])
        assert 1 < len(attempts) <= most, life.story()
        assert took < usual + UNDELAYED_SECONDS, f"{took:.1f} s, usually {usual:.1f} s; {beside.story()}"
        again = next(entry.at for entry in tries(life, ended) if entry.applied) - ended
        return Row(
            f"VirtualService {kind}",
            f"for {ended - began:.0f} s, going up",
            1,
            f"tried {len(attempts)} times ({most} at most), said in message and Event; written {again:.1f} s after it "
            f"ended, then promoted; a rollout beside it took {took:.1f} s, one before {usual:.1f} s",
        )


def refused_coming_back(ground: Ground, kind: str) -> Row:
    """Let no weight be written while a breach is to be answered, and tell what was seen."""
    with obstructed(ground, kind) as (life, calm, beside, obstacle):
        life.begin(steps=ASK_AT_60)
        usual = whole_rollout(calm)
        life.until(lambda: asks(life, 60), "approved step")
        began = obstacle.begin()
        life.fail("v2")
        took = whole_rollout(beside)
        check_visible(life, obstacle.words)
        time.sleep(max(0.0, began + LASTS_SECONDS - time.time()))
        assert life.weight == 60, life.story()
        ended = obstacle.end()
        attempts = tries(life, began)
        life.until(lambda: life.weight == 0, "rollback", 10)
        back = next(seen.at for seen in life.seen(VIRTUAL_SERVICES)[::-1] if not shares(seen.document).get("v2"))
        life.until(lambda: life.ended, "end")
        check_end(life, [0, 20, 60, 0])
        between = distances([entry for entry in attempts if entry.seconds is not None])
        assert between, life.story()
        assert max(between) < LONGEST_URGENT_SECONDS + SLACK_SECONDS, life.story()
        assert len(attempts) <= most_attempts(ended - began, LONGEST_URGENT_SECONDS), life.story()
        assert back - ended < LONGEST_URGENT_SECONDS + obstacle.patience + SLACK_SECONDS, life.story()
        assert took < usual + UNDELAYED_SECONDS, f"{took:.1f} s, usually {usual:.1f} s; {beside.story()}"
        return Row(
            f"VirtualService {kind}",
            f"for {ended - began:.0f} s, coming back after a breach",
            1,
            f"tried {len(attempts)} times, {max(between):.1f} s apart at most, said in message and Event; weight 0 "
            f"{back - ended:.1f} s after it ended; a rollout beside it took {took:.1f} s, one before {usual:.1f} s",
        )


def check_end(life: Life, weights: list[int]) -> None:
    """It ended as it would have, only later."""
    assert life.weights() == weights, life.story()
    life.check_raises()
    life.check_not_repeated()
    record = life.status.rollout
    if weights[-1] == 0:
        assert record is not None
        assert record.reason == "GateFailed", life.story()


def rows(work: Callable[[Any], Row], cases: Sequence[Any], table: list[Row]) -> None:
    """Try several cases, some at once, and tell of all of them before one that went wrong."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tried = [(case, pool.submit(work, case)) for case in cases]
    problems = {case: error for case, future in tried if (error := future.exception()) is not None}
    table += [future.result() for case, future in tried if case not in problems]
    assert not problems, "\n\n".join(f"{case}: {error!r}" for case, error in problems.items())


WAYS: Final = {"up": refused_going_up, "back": refused_coming_back}


@pytest.mark.parametrize("kinds", KINDS)
def test_a_weight_that_cannot_be_written_is_tried_again_and_delays_nobody_else(
    ground: Ground, table: list[Row], kinds: tuple[str, ...]
) -> None:
    cases = [(way, kind) for kind in kinds for way in WAYS]
    rows(lambda case: WAYS[case[0]](ground, case[1]), cases, table)


@pytest.mark.faults
def test_a_canary_whose_raise_is_refused_is_judged_as_ever(ground: Ground, table: list[Row]) -> None:
    """However long the next attempt waits: who refuses more traffic for the canary lets it be taken back."""
    with obstructed(ground, "denied by a webhook") as (life, _, _, obstacle):
        life.begin(steps=ASK_AT_20)
        life.until(lambda: asks(life, 20), "approved step")
        began = obstacle.begin(lambda review: shares(review.document).get("v2", 0) > 20)
        approve(life)
        time.sleep(2 * LASTS_SECONDS)
        attempts = tries(life, began)
        assert 1 < len(attempts) <= most_attempts(time.time() - began, LONGEST_DELAY_SECONDS), life.story()
        life.fail("v2")
        took = life.until(lambda: life.weight == 0, "rollback", 10)
        life.until(lambda: life.ended, "end")
        check_end(life, [0, 20, 0])
    table.append(
        Row(
            "VirtualService: a webhook denies every weight above 20",
            "a breach at 20 while the next step is refused",
            1,
            f"{len(attempts)} attempts in {2 * LASTS_SECONDS:g} s, weight 0 {took:.1f} s after the breach",
        )
    )
    assert took < VISIBLE_SECONDS + ANSWERED_WITHIN + SLACK_SECONDS, life.story()


# --- the DestinationRule ----------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_subset_that_cannot_be_written_keeps_traffic_where_it_is(ground: Ground, table: list[Row]) -> None:
    """Refused twice: when the canary's subset is to be added, and when stable's former one is to be removed."""
    with obstructed(ground, "denied by a webhook") as (life, _, beside, obstacle):
        began = obstacle.begin(lambda review: review.resource == "destinationrules")
        life.begin(steps=ASK_AT_20)
        took = whole_rollout(beside)
        check_visible(life, obstacle.words)
        assert life.status.phase is Phase.PREPARING, life.story()
        added = len(tries(life, began, "destinationrules"))
        assert 1 < added <= most_attempts(time.time() - began, LONGEST_DELAY_SECONDS), life.story()
        assert life.weights() == [0], life.story()
        obstacle.end()
        life.until(lambda: asks(life, 20), "first step")
        again = obstacle.begin(lambda review: review.resource == "destinationrules")
        life.fail("v2")
        life.until(lambda: life.weight == 0, "rollback", 10)
        check_visible(life, obstacle.words)
        time.sleep(2.0)
        removed = len(tries(life, again, "destinationrules"))
        assert 1 < removed <= most_attempts(time.time() - again, LONGEST_URGENT_SECONDS), life.story()
        obstacle.end()
        life.until(lambda: life.ended, "end")
        check_end(life, [0, 20, 0])
        rule = ground.cluster.get(DESTINATION_RULES, life.namespace, NAME)
        assert [subset["name"] for subset in rule["spec"]["subsets"]] == ["v1"]
    table.append(
        Row(
            "DestinationRule denied by a webhook",
            "when a subset is added, and when it is removed after a rollback",
            2,
            f"no weight before the subset ({added} attempts); weight 0 at once and the subset removed later ({removed} "
            f"attempts); a rollout beside it took {took:.1f} s",
        )
    )


# --- two VirtualServices ----------------------------------------------------------------------------------------------


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
        approve(life)
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
        ended = obstacle.end()
        refused, done = tries(life, began, name=failing), tries(life, began, name=healthy)
        life.until(lambda: life.ended, "end")
        assert [entry.applied for entry in done] == [True], "what was taken back is written again"
        assert not any(entry.applied for entry in refused if entry.at < ended - 0.1), life.story()
        assert abs(done[0].at - refused[0].at) < 0.5, "tried one after the other"
        assert max(distances(refused)) < LONGEST_URGENT_SECONDS + SLACK_SECONDS, life.story()
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
