"""What a person says and edits: pauses, approvals, commands, and other versions, replayed in a world in memory."""

from __future__ import annotations

import pytest

from canaryrollout.api.status import Phase
from tests.unit.domain.watchedworld import at, history
from tests.world import World, spec


class TestPeople:
    def test_an_approval_is_awaited_without_a_deadline(self) -> None:
        world = World(rollout=spec(steps=[{"weight": 50, "approval": "Required"}, {"weight": 100}]))
        world.run(7200)
        assert (world.phase, world.reason, world.share("v2")) == (Phase.PAUSED, "AwaitingApproval", 50)
        assert world.state.deadline is None
        world.command = "approve/v2/1"
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")
        assert "Approved" in history(world)

    def test_an_approved_canary_still_has_to_pass(self) -> None:
        world = World(rollout=spec(steps=[{"weight": 50, "approval": "Required"}, {"weight": 100}])).run(600)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        world.run(30)
        assert world.phase is Phase.ROLLED_BACK

    def test_pausing_stops_raises_but_not_rollbacks(self) -> None:
        world = at(10)
        world.apply(paused=True)
        world.run(7200)
        assert (world.phase, world.share("v2")) == (Phase.PAUSED, 10)
        world.error_rate = lambda version, weight, now: 0.5 if version == "v2" else 0.0
        assert world.run(60).phase is Phase.ROLLED_BACK

    def test_time_with_a_person_does_not_count_against_the_deadline(self) -> None:
        world = at(10)
        world.apply(paused=True)
        world.run(7200)
        world.apply(paused=False)
        assert world.run().phase is Phase.STABLE

    def test_promote_is_one_jump_once_the_canary_is_ready(self) -> None:
        world = World(ready={"v1": 2}).run(60)
        world.command = "promote/v2/1"
        assert world.run(30).share("v2") == 0
        world.ready = {"v1": 2, "v2": 1}
        world.run()
        assert [weight for _, weight in world.weights] == [0, 100]
        assert world.phase is Phase.STABLE

    def test_a_rolled_back_version_stays_back_until_it_is_retried(self) -> None:
        world = World(error_rate=lambda version, weight, now: 0.05 if version == "v2" else 0.0).run()
        assert world.phase is Phase.ROLLED_BACK
        world.error_rate = lambda version, weight, now: 0.0
        world.apply(hold="10s")
        world.run()
        assert world.phase is Phase.ROLLED_BACK
        world.command = "retry/v2/again"
        world.run()
        assert (world.phase, world.state.stable_version) == (Phase.STABLE, "v2")

    @pytest.mark.parametrize(
        ("command", "why"),
        [
            ("approve/v2/1", "nothing waits for approval"),
            ("abort/v9/1", "the rollout under way is to v2, not v9"),
            ("retry/v2/1", "nothing was taken back"),
            ("launch/v2/1", "is not a command"),
            ("promote", "is not <command>/<version>/<token>"),
        ],
    )
    def test_a_command_that_does_not_apply_is_answered_once(self, command: str, why: str) -> None:
        world = at(10)
        world.command = command
        world.step()
        assert world.state.last_command is not None
        assert why in world.state.last_command.result
        assert world.events.count("CommandRefused") == 1
        world.run(60)
        assert world.events.count("CommandRefused") == 1
        assert world.run().phase is Phase.STABLE
