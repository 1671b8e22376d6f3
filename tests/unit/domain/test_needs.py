"""What a pass reads: what the next decision takes, and nothing that costs without need."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from canaryrollout.api.status import (
    Baseline,
    CanaryRolloutStatus,
    Change,
    ChangeKind,
    Contest,
    RolloutRecord,
    Target,
)
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import OwnQuery
from canaryrollout.domain.needs import needs
from canaryrollout.domain.observation import Identity
from canaryrollout.domain.settings import DomainSettings
from tests.world import HOST, NAMESPACE, SETTINGS, START, spec

OURS = Change(kind=ChangeKind.SUBSET, object="reviews", subset="v2", version="v2")
THEIRS = Change(kind=ChangeKind.WEIGHT, object="reviews", subset="v1", original=100)
SECOND = timedelta(seconds=1)


def asked(
    changes: tuple[Change, ...] = (),
    *,
    settings: DomainSettings = SETTINGS,
    identity: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    **record: Any,
) -> Needs:
    """Return what is read for a rollout from v1 to v2 with such a record."""
    under_way = RolloutRecord(**({"version": "v2", "started_at": START} | record))
    seen = CanaryRolloutStatus(**({"stable_version": "v1", "rollout": under_way, "changes": changes} | (status or {})))
    who = Identity(NAMESPACE, "reviews", "uid-1", 1, START, **(identity or {}))
    return needs(spec(), seen, who, START + timedelta(minutes=1), settings)


WEIGHTED: dict[str, Any] = {"weight": 10, "applied_at": START}


class TestEvidence:
    def test_it_is_asked_for_once_a_weight_was_confirmed(self) -> None:
        found = asked(**WEIGHTED)
        assert found.evidence is not None
        assert found.opening is not None
        assert (found.evidence.start, found.evidence.until) == (START + SECOND, None)
        assert (found.evidence.stable, found.evidence.canary, found.evidence.weight) == ("v1", "v2", 10)
        assert (found.opening.start, found.opening.until) == (START - SECOND, START + SECOND)
        assert (found.baseline, found.preflight) == (None, None)

    @pytest.mark.parametrize("record", [{"weight": 10}, {"applied_at": START}, {}])
    def test_there_is_none_without_a_weight_that_was_confirmed(self, record: dict[str, Any]) -> None:
        found = asked(**record)
        assert (found.evidence, found.opening) == (None, None)

    def test_queries_of_the_users_own_go_with_it(self) -> None:
        metrics = [
            {"name": "a", "query": "q", "max": "5"},
            {"name": "b", "query": "q", "baselineQuery": "r", "maxIncrease": "5"},
        ]
        wanted = spec(analysis={"metrics": metrics})
        record = RolloutRecord(version="v2", started_at=START, weight=10, applied_at=START)
        seen = CanaryRolloutStatus(stable_version="v1", rollout=record)
        found = needs(wanted, seen, Identity(NAMESPACE, "reviews", "uid-1", 1, START), START, SETTINGS).evidence
        assert found is not None
        assert found.queries == (OwnQuery("a", "q"), OwnQuery("b", "q", "r"))

    def test_what_counts_as_a_failure_goes_with_it(self) -> None:
        wanted = spec(analysis={"errorRate": {"max": "1%", "grpcServerFaults": [14]}})
        record = RolloutRecord(version="v2", started_at=START, weight=10, applied_at=START)
        seen = CanaryRolloutStatus(stable_version="v1", rollout=record)
        found = needs(wanted, seen, Identity(NAMESPACE, "reviews", "uid-1", 1, START), START, SETTINGS).evidence
        assert found is not None
        assert found.server_faults == (14,)

    def test_there_is_no_opening_where_proxies_are_given_no_time(self) -> None:
        found = asked(settings=DomainSettings(propagation=timedelta()), **WEIGHTED)
        assert found.evidence is not None
        assert found.opening is None


class TestBeforeTraffic:
    def test_the_provider_is_asked_what_it_can_tell(self) -> None:
        found = asked()
        assert found.preflight is not None
        assert (found.preflight.host, found.preflight.stable, found.preflight.since) == (HOST, "v1", START)
        assert found.baseline is not None
        assert (found.baseline.start, found.baseline.until) == (START - SETTINGS.baseline_window, START)

    def test_what_was_measured_is_not_measured_again(self) -> None:
        found = asked(baseline=Baseline(seconds=60, unreached=0))
        assert found.preflight is not None
        assert found.baseline is None

    @pytest.mark.parametrize("record", [WEIGHTED, {"target": Target(weight=10, set_at=START)}, {"promote": True}])
    def test_later_it_is_too_late(self, record: dict[str, Any]) -> None:
        found = asked(**record)
        assert (found.baseline, found.preflight) == (None, None)


class TestReferences:
    """Which VirtualServices name a subset: a listing of all of them, so it is asked for only where it decides."""

    @pytest.mark.parametrize("closing", [{"reason": "Aborted"}, {"version": "v1"}])
    def test_once_our_subsets_are_the_last_that_is_left(self, closing: dict[str, Any]) -> None:
        assert asked((THEIRS, OURS), cleaned_at=START, **closing).references

    @pytest.mark.parametrize("closing", [{"reason": "Aborted"}, {"version": "v1"}])
    def test_not_before_the_destinations_are_gone(self, closing: dict[str, Any]) -> None:
        assert not asked((OURS,), **closing).references

    def test_not_where_no_subset_is_ours(self) -> None:
        assert not asked((THEIRS,), reason="Aborted", cleaned_at=START).references

    def test_before_the_first_weight_for_whom_no_listed_route_covers(self) -> None:
        assert asked().references
        assert not asked(**WEIGHTED).references
        assert not asked(target=Target(weight=10, set_at=START)).references


class TestClosing:
    """A rollout that ends asks the provider nothing."""

    @pytest.mark.parametrize(
        "ending", [{"reason": "Aborted"}, {"version": "v1"}, {"identity": {"deleting": True, "finalizer": True}}]
    )
    def test_its_mesh_and_endpoints_are_enough(self, ending: dict[str, Any]) -> None:
        found = asked(**WEIGHTED, **ending)
        assert (found.mesh, found.endpoints) == (True, True)
        assert (found.evidence, found.opening, found.baseline, found.preflight) == (None, None, None, None)

    def test_what_was_altered_off_the_list_is_read_to_be_taken_back_and_left_alone_after_a_promotion(self) -> None:
        off = Change(kind=ChangeKind.WEIGHT, object="gateway", route="primary", subset="v1")
        scope = asked((off,), reason="Aborted").scope
        assert scope is not None
        assert [ref.name for ref in scope.istio.virtual_services] == ["reviews", "gateway"]
        assert asked((off,), version="v1").scope is None


class TestAtRest:
    def test_endpoints_are_read_where_somebody_contests_the_weights(self) -> None:
        ended: dict[str, Any] = {"reason": "Aborted", "ended_at": START}
        contest = Contest(manager="argocd", not_before=START)
        assert asked(**ended) == Needs(mesh=True)
        assert asked(status={"contest": contest}, **ended) == Needs(mesh=True, endpoints=True)
        assert asked(status={"rollout": None}) == Needs(mesh=True)

    def test_everything_that_tells_the_stable_version_while_it_is_not_known(self) -> None:
        assert asked(status={"stable_version": None}) == Needs(mesh=True, endpoints=True)

    def test_nothing_of_an_object_that_goes_without_us(self) -> None:
        assert asked(identity={"deleting": True}) == Needs()
        assert asked(identity={"deleting": True, "finalizer": True}).mesh
