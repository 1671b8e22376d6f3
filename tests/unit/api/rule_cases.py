"""Every rule on a CanaryRollout, with values that keep it and values that break it.

One table for both judges: the unit tests hold the operator to it, the cluster tests the API server.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

SPEC: dict[str, Any] = {
    "version": "v2",
    "initialStableVersion": "v1",
    "host": "reviews",
    "versionLabel": "version",
    "istio": {
        "virtualServices": [{"name": "reviews", "routes": ["primary", "secondary"]}, {"name": "reviews-gateway"}],
        "destinationRule": {"name": "reviews"},
    },
    "steps": [{"weight": 10}, {"weight": 50, "hold": "2m", "approval": "Required"}, {"weight": 100}],
    "hold": "1m",
    "readiness": {"minReady": "50%", "unreadyGrace": "10s"},
    "analysis": {
        "provider": "default",
        "mode": "Threshold",
        "confidence": "95%",
        "assurance": "Standard",
        "failureLimit": 0,
        "consecutive": 1,
        "requireConvergence": "NotRequired",
        "interval": "10s",
        "minRequests": 100,
        "errorRate": {"max": "1%", "maxRelative": "150%", "grpcServerFaults": [2, 13]},
        "latency": {"threshold": "500ms", "maxSlow": "1%", "maxRelative": "150%"},
        "metrics": [
            {"name": "checkout", "query": "up", "max": "5", "min": "-0.5", "failureLimit": 2, "onNoData": "Rollback"},
            {
                "name": "b",
                "query": "up",
                "min": "1",
                "baselineQuery": "up",
                "maxRelative": "120%",
                "maxIncrease": "5",
            },
        ],
        "onNoData": "Hold",
    },
    "progressDeadline": "2h",
    "onDeadline": "Rollback",
    "paused": False,
}
"""A spec that names every field."""


class Removed(Enum):
    """In place of a value: the field is left out. An enum, so that every process names the test alike."""

    REMOVED = "removed"


REMOVED = Removed.REMOVED


@dataclass(frozen=True)
class RuleCase:
    """One rule.

    Attributes:
        path: The field that the error names.
        message: How the message of the API server begins, or a part that tells it.
        good: Values of the field that keep the rule.
        bad: Values that break it.
        by_schema: Whether it is a plain bound of the schema, which both sides word in their own way.
        operator: A part of the operator's message, where it differs.
    """

    path: str
    message: str
    good: tuple[Any, ...]
    bad: tuple[Any, ...]
    by_schema: bool = False
    operator: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message[:32]}"


def spec_with(path: str, value: Any) -> dict[str, Any]:
    """Return a copy of `SPEC` with one field, such as ``spec.steps[0].weight``, set to a value or left out."""
    root: dict[str, Any] = {"spec": copy.deepcopy(SPEC)}
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]
    place: Any = root
    for part in parents:
        place = place[part]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    spec: dict[str, Any] = root["spec"]
    return spec


_DURATIONS = ("30s", "1h30m", "500ms", "1m30s500ms", "00010s")
_NO_DURATIONS = ("", "5", "5x", "1.5m", "-1s", "1d", "s", "100000s", "1h 30m", "1s1s1s1s1s")
_SHARES = ("0%", "1%", "0.5%", "99.999999%", "100%", "100.0%")
_NO_SHARES = ("", "1", "%", "-1%", "101%", "100.5%", "1.%", ".5%", "1e2%", "0.0000001%", " 1%")
_RATIOS = ("100%", "150%", "101.5%", "999999%")
_NO_RATIOS = ("", "1.5", "99%", "99.9%", "050%", "-150%", "1000000%", "150")
_DECIMALS = ("5", "0.25", "-3", "-0.5", "123456789012345")
_NO_DECIMALS = ("", "5%", "1e3", "abc", "--1", "1.", ".5", "NaN")
_LABEL = "a" * 63
_VERSIONS = ("v2", "1.4.2", "2024-01-31_rc.1", "A", _LABEL)
_NO_VERSIONS = ("", "-v2", "v2.", "v/2", "v 2", "vé", "a:b")
_OBJECTS = ("reviews", "a.b-c.d", "0")
_NO_OBJECTS = ("", "shop/reviews", "Reviews", "-a", "a..b", "a_b", "a" * 64)


def _duration(path: str, low: str, high: str, *, good: tuple[str, ...], bad: tuple[str, ...]) -> tuple[RuleCase, ...]:
    return (
        RuleCase(path, "must be a duration, such as 30s", good, _NO_DURATIONS),
        RuleCase(path, f"must be between {low} and {high}", (*good[:1], low, high), bad),
    )


CASES: tuple[RuleCase, ...] = (
    RuleCase("spec.version", "must be a value that a label can have", _VERSIONS, _NO_VERSIONS),
    RuleCase("spec.initialStableVersion", "must be a value that a label can have", (*_VERSIONS, "v2"), _NO_VERSIONS),
    RuleCase(
        "spec.host",
        "must be the name of a service",
        ("reviews", "reviews.shop.svc.cluster.local", "api.example.com"),
        (
            "",
            "http://reviews",
            "reviews:8080",
            "reviews/path",
            "Reviews",
            "*.shop.svc.cluster.local",
            "reviews.",
            "a..b",
            "re views",
            "user@reviews",
            "a" * 64,
        ),
    ),
    RuleCase(
        "spec.versionLabel",
        "must be the key of a label",
        ("version", "app.kubernetes.io/version", "A_b.c"),
        ("", "/version", "a/b/c", "version=", "-version", "Example.com/version", "x/" + "a" * 64),
    ),
    RuleCase(
        "spec.istio",
        "must have exactly one kind of router",
        ({"virtualServices": [{"name": "a"}], "destinationRule": {"name": "b"}},),
        (REMOVED,),
        operator="is missing",
    ),
    RuleCase("spec.istio.virtualServices[0].name", "must be the name of an object in the same", _OBJECTS, _NO_OBJECTS),
    RuleCase("spec.istio.destinationRule.name", "must be the name of an object in the same", _OBJECTS, _NO_OBJECTS),
    RuleCase(
        "spec.istio.virtualServices[0].routes", "must name at least one http route", (["a"], ["a", "b"], REMOVED), ([],)
    ),
    RuleCase(
        "spec.istio.virtualServices[0].routes[0]",
        "must be the name of an http route",
        ("primary", "a b", "/weird:name*", "r"),
        ("", " ", " a", "a "),
    ),
    RuleCase(
        "spec.steps",
        "weights must rise from step to step",
        ([{"weight": 100}], [{"weight": weight} for weight in range(51, 101)]),
        (
            [{"weight": 10}, {"weight": 50}, {"weight": 30}, {"weight": 100}],
            [{"weight": 10}, {"weight": 10}, {"weight": 100}],
            [{"weight": 100}, {"weight": 100}],
        ),
    ),
    RuleCase(
        "spec.steps",
        "the last step must have weight 100",
        ([{"weight": 100}], [{"weight": 1}, {"weight": 100}]),
        ([{"weight": 50}], [{"weight": 1}, {"weight": 99}]),
    ),
    *_duration("spec.steps[1].hold", "0s", "720h", good=_DURATIONS, bad=("721h", "720h1ms")),
    *_duration("spec.hold", "0s", "720h", good=_DURATIONS, bad=("721h", "99999h")),
    RuleCase("spec.progressDeadline", "must be a duration, such as 30s", ("30s", "1h30m"), _NO_DURATIONS),
    # The shortest, 1s, would be shorter than the interval.
    RuleCase("spec.progressDeadline", "must be between 1s and 720h", ("10s", "720h"), ("0s", "999ms", "721h")),
    *_duration("spec.readiness.unreadyGrace", "0s", "1h", good=_DURATIONS[:1], bad=("1h1s", "61m")),
    *_duration("spec.analysis.interval", "1s", "1h", good=("5s", "1m30s"), bad=("0s", "500ms", "61m")),
    *_duration("spec.analysis.latency.threshold", "1ms", "1h", good=("500ms", "2s500ms"), bad=("0s", "0ms", "2h")),
    RuleCase(
        "spec.readiness.minReady",
        "must be a count of 1 or more, or a percentage",
        (1, 3, 100000, "1%", "50%", "100%"),
        (0, -1, 100001, "0%", "101%", "50", "x", "", "1.5%"),
    ),
    RuleCase(
        "spec.analysis.provider",
        "must be the name of a provider",
        ("default", "prometheus-2"),
        ("", "http://prometheus:9090", "Default", "a.b", "-a"),
    ),
    RuleCase(
        "spec.analysis.confidence",
        "must be a percentage between 0% and 100%",
        ("50%", "95%", "99.9%", "99.999999%"),
        _NO_SHARES,
    ),
    RuleCase(
        "spec.analysis.confidence",
        "must be a percentage from 50% to below 100%, such as 95%",
        ("50%", "50.0%", "95%", "99.999999%"),
        ("0%", "49%", "49.999999%", "5%", "100%", "100.0%"),
    ),
    RuleCase("spec.analysis.errorRate.max", "must be a percentage between 0% and 100%", _SHARES, _NO_SHARES),
    RuleCase("spec.analysis.latency.maxSlow", "must be a percentage between 0% and 100%", _SHARES, _NO_SHARES),
    RuleCase("spec.analysis.errorRate.maxRelative", "must be a percentage of what the stable", _RATIOS, _NO_RATIOS),
    RuleCase("spec.analysis.latency.maxRelative", "must be a percentage of what the stable", _RATIOS, _NO_RATIOS),
    RuleCase(
        "spec.analysis.errorRate",
        "must have a limit: set max (such as 1%)",
        ({"max": "1%"}, {"maxRelative": "150%"}, {"max": "1%", "maxRelative": "150%"}),
        ({},),
    ),
    RuleCase(
        "spec.analysis.latency",
        "must have a limit: set maxSlow",
        ({"threshold": "1s", "maxSlow": "1%"}, {"threshold": "1s", "maxRelative": "150%"}),
        ({"threshold": "1s"},),
    ),
    RuleCase("spec.analysis.metrics[0].name", "must be a name of lower case", ("a", "x-1"), ("", "A", "a b", "a_b")),
    RuleCase(
        "spec.analysis.metrics[0].name",
        "must not be the name of a built-in gate",
        ("latency-p99", "late", "error-rate", "errorrate"),
        ("latency", "errorRate"),
    ),
    RuleCase("spec.analysis.metrics[0].max", "must be a decimal number in quotes", ("5", "0.25", "-0.5"), _NO_DECIMALS),
    RuleCase("spec.analysis.metrics[1].min", "must be a decimal number in quotes", _DECIMALS, _NO_DECIMALS),
    RuleCase("spec.analysis.metrics[1].maxRelative", "must be a percentage of what the stable", _RATIOS, _NO_RATIOS),
    RuleCase("spec.analysis.metrics[1].maxIncrease", "must be a decimal number in quotes", _DECIMALS, _NO_DECIMALS),
    RuleCase(
        "spec.analysis.metrics[0]",
        "must have a limit: set max, min, maxRelative (such as 120%) or maxIncrease",
        (
            {"name": "a", "query": "x", "max": "1"},
            {"name": "a", "query": "x", "min": "1"},
            {"name": "a", "query": "x", "baselineQuery": "y", "maxRelative": "120%"},
            {"name": "a", "query": "x", "baselineQuery": "y", "maxIncrease": "0"},
            {"name": "a", "query": "x", "baselineQuery": "y", "maxRelative": "120%", "maxIncrease": "5", "max": "9"},
        ),
        ({"name": "a", "query": "x"}, {"name": "a", "query": "x", "failureLimit": 1}),
    ),
    RuleCase(
        "spec.analysis.metrics[0].baselineQuery", "must be set together with maxRelative or maxIncrease", (), ("up",)
    ),
    RuleCase(
        "spec.analysis.metrics[1].baselineQuery",
        "must be set together with maxRelative or maxIncrease",
        ("up", "up offset 1d"),
        (REMOVED,),
    ),
    RuleCase("spec.analysis.metrics[0].min", "must not be above max", ("5", "4.9", "-7"), ("5.1", "6"), operator=""),
    RuleCase("spec.progressDeadline", "must not be shorter than analysis.interval", ("10s", "1m"), ("9s", "9999ms")),
    # Bounds that the schema itself states.
    RuleCase(
        "spec.steps[0].weight",
        "should be greater than or equal to 1",
        (1, 49),
        (0, -5),
        by_schema=True,
        operator="must be 1 or more",
    ),
    RuleCase(
        "spec.steps[2].weight",
        "should be less than or equal to 100",
        (100,),
        (101,),
        by_schema=True,
        operator="must be 100 or less",
    ),
    RuleCase("spec.steps", "should have at least 1 items", (), ([],), by_schema=True, operator="must not be empty"),
    RuleCase(
        "spec.steps",
        "must have at most 50 items",
        (),
        ([{"weight": weight} for weight in range(50, 101)],),
        by_schema=True,
        operator="must have at most 50 items",
    ),
    RuleCase(
        "spec.istio.virtualServices",
        "should have at least 1 items",
        ([{"name": "a"}],),
        ([],),
        by_schema=True,
        operator="must not be empty",
    ),
    RuleCase(
        "spec.istio.virtualServices",
        "must have at most 20 items",
        ([{"name": f"v{number}"} for number in range(20)],),
        ([{"name": f"v{number}"} for number in range(21)],),
        by_schema=True,
        operator="must have at most 20 items",
    ),
    RuleCase(
        "spec.istio.virtualServices[1].name",
        "Duplicate value",
        ("other",),
        ("reviews",),
        by_schema=True,
        operator="must not be listed twice",
    ),
    RuleCase(
        "spec.istio.virtualServices[0].routes[1]",
        "Duplicate value",
        ("other",),
        ("primary",),
        by_schema=True,
        operator="must not be listed twice",
    ),
    RuleCase(
        "spec.analysis.metrics[1].name",
        "Duplicate value",
        ("other",),
        ("checkout",),
        by_schema=True,
        operator="must not be listed twice",
    ),
    RuleCase(
        "spec.analysis.metrics",
        "must have at most 20 items",
        ([], [{"name": f"m{number}", "query": "up", "max": "1"} for number in range(20)]),
        ([{"name": f"m{number}", "query": "up", "max": "1"} for number in range(21)],),
        by_schema=True,
        operator="must have at most 20 items",
    ),
    RuleCase(
        "spec.analysis.metrics[0].query",
        "should be at least 1 chars long",
        ("up",),
        ("",),
        by_schema=True,
        operator="must not be empty",
    ),
    RuleCase(
        "spec.analysis.minRequests",
        "should be greater than or equal to 1",
        (1, 1_000_000),
        (0, -1),
        by_schema=True,
        operator="must be 1 or more",
    ),
    RuleCase(
        "spec.analysis.minRequests",
        "should be less than or equal to 1000000",
        (1_000_000,),
        (1_000_001,),
        by_schema=True,
        operator="must be 1000000 or less",
    ),
    RuleCase(
        "spec.onDeadline",
        "supported values",
        ("Hold", "Rollback"),
        ("hold", ""),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase(
        "spec.analysis.onNoData",
        "supported values",
        ("Hold", "Rollback"),
        ("Ignore",),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase(
        "spec.analysis.failureLimit",
        "should be greater than or equal to 0",
        (0, 1000),
        (-1,),
        by_schema=True,
        operator="must be 0 or more",
    ),
    RuleCase(
        "spec.analysis.failureLimit",
        "should be less than or equal to 1000",
        (),
        (1001,),
        by_schema=True,
        operator="must be 1000 or less",
    ),
    RuleCase(
        "spec.analysis.consecutive",
        "should be greater than or equal to 1",
        (1, 1000),
        (0, -1),
        by_schema=True,
        operator="must be 1 or more",
    ),
    RuleCase(
        "spec.analysis.consecutive",
        "should be less than or equal to 1000",
        (),
        (1001,),
        by_schema=True,
        operator="must be 1000 or less",
    ),
    RuleCase(
        "spec.analysis.metrics[0].failureLimit",
        "should be greater than or equal to 0",
        (0, 100),
        (-1,),
        by_schema=True,
        operator="must be 0 or more",
    ),
    RuleCase(
        "spec.analysis.metrics[0].failureLimit",
        "should be less than or equal to 100",
        (),
        (101,),
        by_schema=True,
        operator="must be 100 or less",
    ),
    RuleCase(
        "spec.analysis.metrics[0].onNoData",
        "supported values",
        ("Hold", "Rollback"),
        ("Fail",),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase(
        "spec.analysis.metrics[1].baselineQuery",
        "should be at least 1 chars long",
        (),
        ("",),
        by_schema=True,
        operator="must not be empty",
    ),
    RuleCase(
        "spec.analysis.metrics[0].query",
        "may not be more than 4096 bytes",
        ("u" * 4096,),
        ("u" * 4097,),
        by_schema=True,
        operator="at most 4096 characters",
    ),
    RuleCase(
        "spec.analysis.metrics[1].baselineQuery",
        "may not be more than 4096 bytes",
        ("u" * 4096,),
        ("u" * 4097,),
        by_schema=True,
        operator="at most 4096 characters",
    ),
    RuleCase(
        "spec.analysis.errorRate.grpcServerFaults",
        "should have at least 1 items",
        ([1], list(range(1, 17))),
        ([],),
        by_schema=True,
        operator="must not be empty",
    ),
    RuleCase(
        "spec.analysis.errorRate.grpcServerFaults[0]",
        "should be greater than or equal to 1",
        (1,),
        (0, -1),
        by_schema=True,
        operator="must be 1 or more",
    ),
    RuleCase(
        "spec.analysis.errorRate.grpcServerFaults[0]",
        "should be less than or equal to 16",
        (16,),
        (17,),
        by_schema=True,
        operator="must be 16 or less",
    ),
    RuleCase(
        "spec.analysis.errorRate.grpcServerFaults[1]",
        "Duplicate value",
        (3,),
        (2,),
        by_schema=True,
        operator="must not be listed twice",
    ),
    RuleCase(
        "spec.analysis.assurance",
        "supported values",
        ("Standard", "Strict"),
        ("Sure", ""),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase(
        "spec.analysis.requireConvergence",
        "supported values",
        ("Required", "NotRequired"),
        ("Yes",),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase(
        "spec.analysis.mode",
        "supported values",
        ("Threshold", "Sequential"),
        ("Magic",),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase(
        "spec.steps[1].approval",
        "supported values",
        ("Required", "NotRequired"),
        ("Yes",),
        by_schema=True,
        operator="must be one of",
    ),
    RuleCase("spec.version", "Required value", (), (REMOVED,), by_schema=True, operator="is missing"),
    RuleCase("spec.host", "Required value", (), (REMOVED,), by_schema=True, operator="is missing"),
    RuleCase("spec.steps[0].weight", "Required value", (), (REMOVED,), by_schema=True, operator="is missing"),
    RuleCase("spec.istio.destinationRule", "Required value", (), (REMOVED,), by_schema=True, operator="is missing"),
    RuleCase(
        "spec.version",
        "may not be more than 63 bytes",
        (),
        ("a" * 64,),
        by_schema=True,
        operator="at most 63 characters",
    ),
)
