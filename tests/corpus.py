"""Specs that somebody may write to reach what is not theirs, to be expensive, or by mistake; none of them can be used.

Written by hand: each has a name that says what it is after. `tests.hostile` makes many more by putting junk into every
place of a good spec.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.hostile import CONTROL, nested, put, rollout

GOOD: Final[dict[str, Any]] = rollout()["spec"]
NOT_NAMES: Final = {
    "of another namespace": "kube-system/reviews",
    "that climbs": "../../kube-system/virtualservices/reviews",
    "with a query": "reviews?fieldManager=istio",
    "with a fragment": "reviews#x",
    "that is escaped": "reviews%2f..%2fother",
    "of dots": "..",
    "in capitals": "Reviews",
    "with a look-alike letter": "rеviews",  # noqa: RUF001 - Cyrillic
    "with control characters": CONTROL,
    "with a second line": "reviews\nlevel=error",
    "that is empty": "",
    "that is too long": "r" * 254,
    "of spaces": "   ",
    "that is a template": "{{ .Values.name }}",
    "that is a lookup": "${jndi:ldap://169.254.169.254/a}",
    "that is markup": "<script>alert(1)</script>",
    "that is a format": "%s%s%n",
    "that is a number": 7,
    "that is a list": ["reviews"],
}
NOT_HOSTS: Final = {
    "of another namespace": "reviews.kube-system.svc.cluster.local",
    "of the API server": "kubernetes.default.svc",
    "of every service": "*",
    "of a whole domain": "*.local",
    "with a port": "reviews:80",
    "that is an address": "http://169.254.169.254/latest",
    "half a name": "reviews.hostile",
    "with a dot at the end": "reviews.hostile.svc.cluster.local.",
    "with a user": "root@reviews",
}
NOT_TIMES: Final[tuple[Any, ...]] = (
    "-1s",
    "1y",
    "1e9s",
    "0x1s",
    "1s;",
    "999999999999h",
    "9" * 400 + "s",
    "\u0661s",
    "1 s",
    "",
    5,
    1.5,
    True,
    {},
)
NOT_SHARES: Final[tuple[Any, ...]] = (
    "1",
    "101%",
    "-1%",
    "1e3%",
    "NaN%",
    "%",
    "0.00000000001%",
    "1/0",
    1,
    0.01,
    [],
    "1%\n",
    "\u0661%",
)
NOT_DECIMALS: Final[tuple[Any, ...]] = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e5",
    "0x10",
    "1_000",
    "1,5",
    "",
    "9" * 500,
    {},
    "1;drop",
)
NOT_VERSIONS: Final[tuple[Any, ...]] = (
    "",
    "v 2",
    "../v2",
    "-v2",
    "v2-",
    "v" * 64,
    "v2\n",
    "\u202ev2",
    "{v2}",
    "v2\x00",
    "v2'\"",
    2,
    ["v2"],
    None,
)
NOT_WEIGHTS: Final[tuple[Any, ...]] = (0, -1, 101, 10**18, 10.5, "ten", "", None, [], {}, 1e300)
QUERY: Final = {"name": "own", "query": "vector(1)", "max": "1"}


def hand_written() -> Iterator[tuple[str, Any]]:
    """What each is after, and the spec."""
    yield from _whole()
    yield from _elsewhere()
    yield from _steps()
    yield from _analysis()
    yield from _expensive()


def _changed(*at: str | int, to: Any) -> Any:
    return put(GOOD, at, to)


def _whole() -> Iterator[tuple[str, Any]]:
    for what in (None, "a text", 7, True, [], [GOOD], {}, {"spec": GOOD}):
        yield f"no spec but {str(what)[:20]}", what
    for name in ("version", "host", "istio"):
        yield f"no {name}", {key: value for key, value in GOOD.items() if key != name}
    for number, version in enumerate(NOT_VERSIONS):
        yield f"version {number}", _changed("version", to=version)
    for number, label in enumerate(("", "a/b/c", "-", "a b", "/x", "x/", "ü", CONTROL, "a" * 400)):
        yield f"label {number}", GOOD | {"versionLabel": label}
    for field, value in (("paused", "maybe"), ("paused", 7), ("onDeadline", "Explode"), ("onDeadline", 0)):
        yield f"{field} {value}", GOOD | {field: value}


def _elsewhere() -> Iterator[tuple[str, Any]]:
    for what, name in NOT_NAMES.items():
        yield f"VirtualService {what}", _changed("istio", "virtualServices", 0, "name", to=name)
        yield f"DestinationRule {what}", _changed("istio", "destinationRule", "name", to=name)
        yield f"provider {what}", _changed("analysis", to=GOOD["analysis"] | {"provider": name})
        yield f"host {what}", _changed("host", to=name)
    for what, host in NOT_HOSTS.items():
        yield f"service {what}", _changed("host", to=host)
    for what, provider in {
        "address": "http://169.254.169.254",
        "file": "file:///etc/passwd",
        "Secret": "s3cret/key",
    }.items():
        yield f"provider that is a {what}", _changed("analysis", to=GOOD["analysis"] | {"provider": provider})
    for what, route in {
        "hidden": "prim\u200bary",
        "turned": "\u202eyramirp",
        "of spaces": "  ",
        "lines": "a\nb",
    }.items():
        yield f"route {what}", _changed("istio", "virtualServices", 0, to={"name": "reviews", "routes": [route]})
    yield "VirtualService twice", _changed("istio", "virtualServices", to=[{"name": "reviews"}, {"name": "reviews"}])
    yield "no VirtualService", _changed("istio", "virtualServices", to=[])


def _steps() -> Iterator[tuple[str, Any]]:
    for number, weight in enumerate(NOT_WEIGHTS):
        yield f"weight {number}", _changed("steps", 0, "weight", to=weight)
    for what, weights in {
        "falling": (50, 10, 100),
        "repeated": (10, 10, 100),
        "short of 100": (10, 50),
        "none": (),
    }.items():
        yield f"steps {what}", _changed("steps", to=[{"weight": weight} for weight in weights])
    for number, time in enumerate(NOT_TIMES):
        yield f"hold {number}", _changed("steps", 0, "hold", to=time)
        yield f"interval {number}", _changed("analysis", "interval", to=time)
        yield f"deadline {number}", _changed("progressDeadline", to=time)
    yield "hold without end", GOOD | {"hold": "87600h"}
    yield "deadline before the first look", GOOD | {"progressDeadline": "1s"}
    for number, ready in enumerate((0, -1, "0%", "101%", "half", 1.5, "1e3%", {}, 2**70)):
        yield f"ready {number}", _changed("readiness", "minReady", to=ready)


def _analysis() -> Iterator[tuple[str, Any]]:
    for number, share in enumerate(NOT_SHARES):
        yield f"error rate {number}", _changed("analysis", "errorRate", "max", to=share)
        yield f"slow share {number}", _changed("analysis", "latency", "maxSlow", to=share)
        yield f"confidence {number}", _changed("analysis", to=GOOD["analysis"] | {"confidence": share})
    for number, limit in enumerate(NOT_DECIMALS):
        yield f"limit {number}", _changed("analysis", "metrics", 0, "max", to=limit)
    for number, fault in enumerate((0, 17, -1, "two", 2**40, {})):
        yield f"fault {number}", _changed("analysis", "errorRate", "grpcServerFaults", 0, to=fault)
    for name in ("latency", "errorRate", "Own", "a b", CONTROL, "x" * 64):
        yield f"metric named {name[:10]!r}", _changed("analysis", "metrics", 0, "name", to=name)
    for number, least in enumerate((0, -1, 2**63, 1e300, "many")):
        yield f"requests {number}", _changed("analysis", "minRequests", to=least)
    yield "interval of a millisecond", _changed("analysis", "interval", to="1ms")
    yield "no query", _changed("analysis", "metrics", 0, "query", to="")
    yield "no limit", _changed("analysis", "metrics", 0, to={"name": "own", "query": "vector(1)"})
    yield "min above max", _changed("analysis", "metrics", 0, to=QUERY | {"min": "2"})
    yield "relative to nothing", _changed("analysis", "metrics", 0, to=QUERY | {"maxRelative": "120%"})
    yield "metric twice", _changed("analysis", "metrics", to=[QUERY, QUERY])


def _expensive() -> Iterator[tuple[str, Any]]:
    yield "many steps", _changed("steps", to=[{"weight": n % 101} for n in range(20_000)])
    yield "many VirtualServices", _changed("istio", "virtualServices", to=[{"name": f"v{n}"} for n in range(21)])
    yield (
        "many routes",
        _changed("istio", "virtualServices", 0, to={"name": "v", "routes": [f"r{n}" for n in range(51)]}),
    )
    yield "many metrics", _changed("analysis", "metrics", to=[QUERY | {"name": f"m{n}"} for n in range(21)])
    yield "long query", _changed("analysis", "metrics", 0, "query", to="vector(1) or " * 400)
    yield "very long query", _changed("analysis", "metrics", 0, "query", to="(" * 900_000)
    yield "deep", _changed("steps", to=nested(100))
    yield "wide", {f"field{n}": CONTROL * 3 for n in range(10_000)}
    yield "large", GOOD | {"padding": "x" * 900_000, "version": CONTROL}
    yield "long version", _changed("version", to="v" * 900_000)
    yield "long words", _changed("analysis", to=GOOD["analysis"] | {"provider": "\u202e" * 200_000})
