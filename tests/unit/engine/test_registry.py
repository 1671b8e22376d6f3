from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import Change, ChangeKind, CommandRecord, Phase, RolloutRecord
from canaryrollout.engine.ports import Rollout
from canaryrollout.engine.registry import Registry, is_active
from canaryrollout.engine.workqueue import Priority
from tests.unit.engine.fakes import EPOCH, SPEC, host_of, rollout


@pytest.fixture
def registry() -> Registry:
    return Registry(host_of)


def changed(known: Rollout, version: int, phase: Phase | None = None, **identity: Any) -> Rollout:
    status = known.status.model_copy(update={"phase": phase}) if phase else known.status
    return replace(
        known,
        resource_version=str(version),
        status=status,
        identity=replace(known.identity, **identity),
    )


KEY = "shop/reviews"


def test_a_rollout_at_rest_concerns_nobody_and_is_kept_as_little_more_than_a_name(registry: Registry) -> None:
    assert registry.apply(rollout()) == {}
    entry = registry.get(KEY)
    assert entry is not None
    assert entry.rollout is None


@pytest.mark.parametrize("phase", [None, Phase.PROGRESSING, Phase.BLOCKED, Phase.ROLLING_BACK])
def test_a_rollout_that_is_not_at_rest_is_looked_at_on_first_sight(registry: Registry, phase: Phase | None) -> None:
    assert registry.apply(rollout(phase=phase)) == {KEY: Priority.URGENT}


def test_what_came_while_nobody_watched_is_looked_at_on_first_sight(registry: Registry) -> None:
    assert registry.apply(rollout("a", deleting=True)) == {"shop/a": Priority.URGENT}
    known = rollout("b", command="retry/v2/1")
    assert registry.apply(known)["shop/b"] is Priority.URGENT
    done = CommandRecord(command="retry/v2/1", handled_at=EPOCH, result="done")
    known = rollout("c", command="retry/v2/1")
    known = replace(known, status=known.status.model_copy(update={"last_command": done}))
    assert "shop/c" not in registry.apply(known)
    known = rollout("d")
    known = replace(known, identity=replace(known.identity, generation=2))
    assert registry.apply(known)["shop/d"] is Priority.URGENT


def test_what_is_gone_stays_gone_whatever_is_late(registry: Registry) -> None:
    """The answer to the write that took the finalizer off may come in after the watch has told of the deletion."""
    first, second = rollout("a", Phase.ROLLING_BACK, version=5), rollout("b", Phase.BLOCKED, version=6)
    registry.apply(first)
    registry.apply(second)
    _, concerned = registry.forget("shop/a", first.identity.uid)
    registry.bury(first.identity.uid)
    assert concerned == {"shop/b": Priority.ROUTINE}
    assert registry.apply(changed(first, 7, finalizer=False)) == {}
    assert registry.get("shop/a") is None
    assert registry.claims("shop/b") == ()
    assert registry.apply(changed(first, 8, uid="another")) != {}, "a namesake is no ghost"


@pytest.mark.parametrize("uid", [None, "uid-reviews"])
def test_what_was_not_found_may_come_back(registry: Registry, uid: str | None) -> None:
    """An API server that has just been started may answer 404 for what it has."""
    registry.apply(rollout(version=5))
    registry.forget(KEY, uid)
    assert registry.get(KEY) is None
    registry.apply(rollout(version=5))
    assert registry.get(KEY) is not None


def test_an_echo_of_our_own_status_write_concerns_nobody(registry: Registry) -> None:
    known = rollout(phase=Phase.PROGRESSING, version=5)
    registry.apply(known)
    assert registry.apply(changed(known, 6)) == {}
    assert registry.apply(changed(known, 6)) == {}


@pytest.mark.parametrize(
    "change", [{"generation": 2}, {"deleting": True}, {"command": "abort/v2/1"}, {"finalizer": True}]
)
def test_intent_commands_deletion_and_finalizers_are_looked_at_urgently(
    registry: Registry, change: dict[str, Any]
) -> None:
    known = rollout(version=5)
    registry.apply(known)
    assert registry.apply(changed(known, 6, **change)) == {KEY: Priority.URGENT}


def test_an_older_state_is_ignored(registry: Registry) -> None:
    known = rollout(version=10, generation=3)
    registry.apply(known)
    assert registry.apply(rollout(version=9, generation=2)) == {}
    entry = registry.get(KEY)
    assert entry is not None
    assert entry.identity.generation == 3


def test_a_namesake_that_was_created_anew_replaces_the_old_one(registry: Registry) -> None:
    registry.apply(rollout(version=10))
    assert registry.apply(rollout(version=3, uid="other", phase=None)) == {KEY: Priority.URGENT}
    assert registry.forget(KEY, "uid-reviews") == (None, {}), "the old one's deletion does not concern the new one"
    assert KEY in registry


def test_rivals_on_a_host_know_of_each_other(registry: Registry) -> None:
    registry.apply(rollout("b", created_at=EPOCH + timedelta(seconds=1)))
    concerned = registry.apply(rollout("a", phase=Phase.PROGRESSING))
    assert concerned == {"shop/a": Priority.URGENT, "shop/b": Priority.ROUTINE}
    (claim,) = registry.claims("shop/b")
    assert (claim.key, claim.uid, claim.created_at, claim.active) == ("shop/a", "uid-a", EPOCH, True)
    assert registry.claims("shop/a") == (), "it judges the host itself"


def test_rivals_are_told_when_a_host_becomes_free(registry: Registry) -> None:
    a = rollout("a", phase=Phase.PROGRESSING, version=1, created_at=EPOCH + timedelta(seconds=1))
    registry.apply(a)
    registry.apply(rollout("b", phase=Phase.BLOCKED))
    assert registry.apply(changed(a, 2, Phase.STABLE)) == {"shop/b": Priority.ROUTINE}, "b is the older of two at rest"
    assert registry.apply(changed(a, 3, Phase.PROGRESSING)) == {"shop/b": Priority.ROUTINE}
    entry, concerned = registry.forget("shop/a")
    assert entry is not None
    assert concerned == {"shop/b": Priority.ROUTINE}
    assert registry.claims("shop/b") == ()


def test_rivals_are_told_when_a_rollout_moves_to_another_host(registry: Registry) -> None:
    a, b, c = rollout("a", version=1), rollout("b"), rollout("c")
    other = SPEC.model_copy(update={"host": "ratings"})
    registry.apply(a)
    registry.apply(b)
    registry.apply(replace(c, spec=other))
    moved = replace(changed(a, 2, generation=2), spec=other)
    assert registry.apply(moved) == dict.fromkeys(("shop/b", "shop/c"), Priority.ROUTINE) | {"shop/a": Priority.URGENT}
    assert registry.claims("shop/b") == ()
    assert [claim.key for claim in (*registry.claims("shop/a"), *registry.claims("shop/c"))] == ["shop/a"]


@pytest.mark.parametrize("spec", [SPEC, None])
def test_a_rollout_whose_spec_is_not_followed_stands_for_no_host(
    registry: Registry, spec: CanaryRolloutSpec | None
) -> None:
    wrong = replace(rollout("a"), spec=spec, problems=("spec.steps[0].weight is 50: ...",))
    registry.apply(rollout("b", created_at=EPOCH + timedelta(seconds=1)))
    assert registry.apply(wrong).keys() <= {"shop/a"}
    assert registry.claims("shop/b") == (), "the older one judges nothing until it is corrected"
    assert registry.apply(replace(wrong, spec=SPEC, problems=(), resource_version="2")).keys() >= {"shop/b"}
    assert [claim.key for claim in registry.claims("shop/b")] == ["shop/a"]


def test_a_rollout_that_becomes_invalid_under_way_keeps_its_host(registry: Registry) -> None:
    registry.apply(rollout("b", phase=Phase.BLOCKED))
    younger = rollout("a", phase=Phase.PROGRESSING, created_at=EPOCH + timedelta(seconds=1))
    registry.apply(replace(younger, problems=("spec.hold is soon: ...",)))
    assert [claim.key for claim in registry.claims("shop/b")] == ["shop/a"]


def test_many_on_one_host_are_woken_only_when_another_comes_to_judge_it(registry: Registry) -> None:
    many = [rollout(f"r{n}", phase=Phase.BLOCKED, created_at=EPOCH + timedelta(seconds=n)) for n in range(50)]
    woken = [registry.apply(one) for one in many]
    assert [set(concerned) for concerned in woken] == [{one.identity.key} for one in many], "each wakes itself"
    judge, heir = many[0], many[1]
    assert registry.apply(changed(judge, 2, Phase.PREPARING)) == {}
    assert registry.apply(changed(judge, 3, Phase.STABLE)) == {}
    assert registry.apply(changed(many[30], 2, generation=2)) == {"shop/r30": Priority.URGENT}
    assert len(registry.apply(changed(many[30], 3, Phase.PROGRESSING, generation=2))) == 49, "it was begun: it judges"
    assert [claim.key for claim in registry.claims(judge.identity.key)] == ["shop/r30"]
    _, concerned = registry.forget("shop/r40")
    assert concerned == {}
    _, concerned = registry.forget("shop/r30")
    assert len(concerned) == 48
    assert registry.claims(judge.identity.key) == ()
    _, concerned = registry.forget(judge.identity.key)
    assert len(concerned) == 47
    assert registry.claims(heir.identity.key) == ()


def test_a_sweep_finds_what_nobody_has_seen_since(registry: Registry) -> None:
    registry.apply(rollout("a"))
    registry.apply(rollout("b"))
    mark = registry.begin_sweep()
    registry.apply(rollout("a"))
    registry.apply(rollout("new"))
    assert registry.unmarked(mark) == ("shop/b",)


def test_what_stays_behind_is_remembered_for_the_event(registry: Registry) -> None:
    change = Change(kind=ChangeKind.SUBSET, object="reviews", subset="v2", version="v2")
    known = rollout()
    registry.apply(replace(known, status=known.status.model_copy(update={"changes": (change,)})))
    entry, _ = registry.forget(KEY)
    assert entry is not None
    assert entry.left is not None
    assert entry.left.reason == "LeftInPlace"
    assert "subset v2 in reviews" in entry.left.message


def test_a_blocked_rollout_holds_its_host_only_if_its_change_was_begun() -> None:
    blocked = rollout(phase=Phase.BLOCKED).status
    begun = RolloutRecord(version="v2", started_at=EPOCH)
    assert not is_active(blocked)
    assert is_active(blocked.model_copy(update={"rollout": begun}))
    ended = begun.model_copy(update={"ended_at": EPOCH})
    assert not is_active(blocked.model_copy(update={"rollout": ended}))
    assert is_active(rollout(phase=Phase.PREPARING).status)
    assert not is_active(rollout(phase=Phase.ROLLED_BACK).status)
