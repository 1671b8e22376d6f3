"""Who meets the canary past the listed routes, for every shape in which people route."""

from __future__ import annotations

from typing import Any

import pytest

from canaryrollout.adapters.istio_coverage import Listed, uncovered

HOST = "reviews.shop.svc.cluster.local"
SUBSETS = {"v1": "v1", "v2": "v2", "v3": "v3", "all": None}
UNBOUND = "the mesh: no listed VirtualService is bound to it"
PUBLIC = ["istio-ingress/public"]
ANY = "every version, as it names no subset"


def to(subset: str | None = "v1", weight: int | None = None, host: str = "reviews") -> dict[str, Any]:
    target = {"host": host} | ({"subset": subset} if subset else {})
    return {"destination": target} | ({} if weight is None else {"weight": weight})


def route(*entries: dict[str, Any], name: str = "", **more: Any) -> dict[str, Any]:
    return ({"name": name} if name else {}) | ({"route": list(entries)} if entries else {}) | more


def service(name: str, *http: dict[str, Any], namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    routes = {"http": list(http)} if http else {}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"hosts": ["reviews"], **routes, **spec}}


def found(
    *documents: dict[str, Any], everywhere: bool = True, host: str = HOST, **listed: tuple[str, ...]
) -> list[str]:
    """Return what is uncovered; ``reviews`` is listed, with its only route, where nothing is said."""
    asked = Listed(host, "shop", "v2", listed or {"reviews": ()}, SUBSETS)
    return list(uncovered(documents, asked, everywhere=everywhere))


PINNED = service("reviews", route(to("v1")))


class TestMesh:
    """Callers in the mesh use what is bound to ``mesh`` and names the host, else the plain Service."""

    @pytest.mark.parametrize(
        "spec",
        [
            {},
            {"gateways": None},
            {"gateways": ["mesh"]},
            {"gateways": ["public", "mesh"]},
            {"hosts": ["Reviews.shop.svc.cluster.local."]},
            {"hosts": ["shop.example.com", "reviews.shop"]},
            {"hosts": ["*.shop.svc.cluster.local"]},
            {"hosts": ["*.svc.cluster.local"]},
            {"exportTo": ["*"]},
            {"exportTo": []},
            {"exportTo": [".", "*"]},
        ],
    )
    def test_it_is_covered(self, spec: dict[str, Any]) -> None:
        assert found(service("reviews", route(to(None)), **spec)) == []

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"gateways": ["public"]}, UNBOUND),
            ({"gateways": PUBLIC, "hosts": ["*"]}, UNBOUND),
            ({"exportTo": ["~"]}, UNBOUND),
            (
                {"hosts": ["shop.example.com"]},
                f"the mesh: no listed VirtualService that is bound to it has {HOST} among",
            ),
            ({"hosts": ["*.reviews.shop.svc.cluster.local"]}, f"that is bound to it has {HOST} among its hosts"),
            ({"exportTo": ["."]}, "the mesh outside shop: exportTo of VirtualService shop/reviews leaves it out"),
            ({"exportTo": ["web", "."]}, "the mesh outside shop, web: exportTo of VirtualService shop/reviews leaves"),
        ],
    )
    def test_it_is_not(self, spec: dict[str, Any], words: str) -> None:
        said = found(service("reviews", route(to("v1")), **spec))
        assert len(said) == 1
        assert words in said[0]

    def test_nothing_listed_is_there(self) -> None:
        assert found() == [UNBOUND]

    def test_a_second_listed_one_covers_it(self) -> None:
        edge = service("edge", route(to("v1")), gateways=PUBLIC)
        assert found(PINNED, edge, reviews=(), edge=()) == []
        assert found(edge, edge=()) == [UNBOUND]

    def test_one_that_is_not_listed_and_names_stable_keeps_callers_from_the_canary(self) -> None:
        edge = service("edge", route(to("v1")), gateways=PUBLIC)
        assert found(edge, PINNED, edge=()) == []

    def test_each_exports_to_its_own(self) -> None:
        web = service("web", route(to("v1", host=HOST)), namespace="web", hosts=[HOST], exportTo=["."])
        own = service("reviews", route(to("v1")), exportTo=["."])
        words = "the mesh outside shop, web: exportTo of VirtualService shop/reviews and web/web leaves it out"
        assert found(own, web) == [words]

    def test_tcp_routes_alone_carry_no_requests(self) -> None:
        assert found(service("reviews", tcp=[route(to("v1"))])) == [
            "the mesh: no listed VirtualService that is bound to it has reviews.shop.svc.cluster.local among its hosts"
        ]

    def test_a_host_of_a_service_entry_is_a_host_like_any(self) -> None:
        entry = "reviews.example.com"
        own = service("reviews", route(to("v1", host=entry)), hosts=[entry])
        assert found(own, host=entry) == []
        assert found(service("reviews", route(to("v1", host=entry)), hosts=["*.example.com"]), host=entry) == []
        past = service("past", route(to(None, host=entry)), namespace="web", hosts=["web.example.com"])
        assert found(own, past, host=entry) == [
            f"the mesh: VirtualService web/past is not listed and sends requests to {ANY}"
        ]


class TestNotListed:
    """Another VirtualService is uncovered where it reaches the canary, whoever it is bound to."""

    @pytest.mark.parametrize(
        ("entries", "whom"),
        [
            ([to(None)], ANY),
            ([to(None, 0)], ANY),
            ([to("v1", 90), to(None, 10)], ANY),
            ([to("v2")], "v2 (subset 'v2')"),
            ([to("v1", 50), to("v2", 50)], "v2 (subset 'v2')"),
            ([to("v2", 50), to(None, 50)], f"v2 (subset 'v2') and {ANY}"),
            ([to("all")], "subset 'all', which tells no version"),
        ],
    )
    def test_it_reaches_the_canary(self, entries: list[dict[str, Any]], whom: str) -> None:
        extra = service("extra", route(*entries), gateways=PUBLIC)
        words = f"gateway istio-ingress/public: VirtualService shop/extra is not listed and sends requests to {whom}"
        assert found(PINNED, extra) == [words]

    @pytest.mark.parametrize(
        "http",
        [
            route(to("v1")),
            route(to("v3")),
            route(to("v1", 100), to(None, 0), to("v2", 0)),
            route(to("v1", 100), to("v2")),
            route(to(None, 0), to("v2", 0)),
            route(to(None, host="ratings")),
            route(to("gone")),
            route(to("v1"), mirror={"host": "reviews"}),
            route(redirect={"uri": "/"}),
            route(directResponse={"status": 404}),
        ],
    )
    def test_it_does_not(self, http: dict[str, Any]) -> None:
        assert found(PINNED, service("extra", http, gateways=PUBLIC)) == []

    def test_its_host_belongs_to_its_own_namespace(self) -> None:
        short = service("web", route(to(None)), namespace="web", gateways=PUBLIC)
        full = service("web", route(to(None, host=HOST)), namespace="web", gateways=PUBLIC)
        assert found(PINNED, short) == []
        assert found(PINNED, full) == [
            f"gateway istio-ingress/public: VirtualService web/web is not listed and sends requests to {ANY}"
        ]

    def test_one_of_the_same_name_elsewhere_is_not_the_listed_one(self) -> None:
        other = service("reviews", route(to(None, host=HOST)), namespace="web", gateways=PUBLIC)
        assert found(PINNED, other) == [
            f"gateway istio-ingress/public: VirtualService web/reviews is not listed and sends requests to {ANY}"
        ]

    @pytest.mark.parametrize(
        ("gateways", "callers"),
        [
            (["public"], "gateway web/public"),
            (["./public"], "gateway web/public"),
            (["public.istio-ingress.svc.cluster.local"], "gateway istio-ingress/public"),
            (["b/two", "mesh", "a/one"], "the mesh and gateway a/one and gateway b/two"),
            (None, "the mesh"),
        ],
    )
    def test_its_callers_are_named(self, gateways: list[str] | None, callers: str) -> None:
        web = service("web", route(to(None, host=HOST)), namespace="web", hosts=["web.example"], gateways=gateways)
        assert found(PINNED, web) == [f"{callers}: VirtualService web/web is not listed and sends requests to {ANY}"]

    def test_nobody_uses_one_that_is_exported_nowhere(self) -> None:
        assert found(PINNED, service("extra", route(to(None)), gateways=PUBLIC, exportTo=["~"])) == []

    @pytest.mark.parametrize("kind", ["tcp", "tls"])
    def test_connections_count_as_well(self, kind: str) -> None:
        connections: dict[str, Any] = {kind: [route(to(None))]}
        extra = service("extra", gateways=PUBLIC, **connections)
        assert found(PINNED, extra) == [
            f"gateway istio-ingress/public: VirtualService shop/extra is not listed and sends requests to {ANY}"
        ]

    def test_what_it_does_several_times_is_said_once(self) -> None:
        extra = service("extra", route(to(None)), route(to(None)), route(to("v2")), gateways=PUBLIC)
        words = f"gateway istio-ingress/public: VirtualService shop/extra is not listed and sends requests to {ANY}"
        assert found(PINNED, extra) == [f"{words} and v2 (subset 'v2')"]


class TestBesideTheListed:
    """A listed VirtualService may have routes that are not listed."""

    def test_a_route_that_is_not_listed(self) -> None:
        own = service(
            "reviews",
            route(to("v2"), name="testers"),
            route(to(None), name="admin"),
            route(to("v1"), name="old"),
            route(to(None)),
            route(to(None), name="primary"),
        )
        assert found(own, reviews=("primary",)) == [
            "route 'testers' of VirtualService reviews is not listed and sends requests to v2 (subset 'v2')",
            f"route 'admin' of VirtualService reviews is not listed and sends requests to {ANY}",
            f"spec.http[3] of VirtualService reviews is not listed and sends requests to {ANY}",
        ]

    def test_the_only_route_is_meant_where_none_is_listed(self) -> None:
        assert found(service("reviews", route(to(None), name="primary"))) == []

    def test_connections_are_never_moved(self) -> None:
        own = service("reviews", route(to("v1")), tcp=[route(to("v1")), route(to(None))], tls=[route(to("v2"))])
        assert found(own) == [
            f"spec.tcp[1] of VirtualService reviews sends connections to {ANY}",
            "spec.tls[0] of VirtualService reviews sends connections to v2 (subset 'v2')",
        ]


class TestDelegates:
    """A VirtualService without hosts is used by those that delegate to it, and by nobody else."""

    DELEGATE = service("reviews", route(to("v1")), hosts=None)

    def root(self, name: str = "reviews", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
        handed = route(delegate={"name": name, **({} if namespace == "web" else {"namespace": namespace})})
        return service("root", handed, namespace="web", hosts=[HOST], **spec)

    def test_its_callers_are_those_of_its_root(self) -> None:
        assert found(self.DELEGATE, self.root()) == []
        assert found(self.DELEGATE, self.root(gateways=PUBLIC)) == [UNBOUND]
        assert found(self.DELEGATE, self.root(exportTo=["."])) == [
            "the mesh outside web: exportTo of VirtualService shop/reviews and web/root leaves it out"
        ]

    def test_without_a_root_nobody_uses_it(self) -> None:
        assert found(self.DELEGATE) == [UNBOUND]
        idle = service("idle", route(to(None)), hosts=[])
        assert found(PINNED, idle) == []

    def test_its_root_may_be_out_of_sight(self) -> None:
        assert found(self.DELEGATE, everywhere=False) == []
        assert found(service("reviews", route(to("v1")), gateways=PUBLIC), everywhere=False) == [UNBOUND]

    def test_one_that_is_not_listed_is_named_with_the_callers_of_its_root(self) -> None:
        other = service("other", route(to(None, host=HOST)), namespace="web", hosts=None)
        assert found(PINNED, other, self.root("other", "web", gateways=PUBLIC)) == [
            f"gateway istio-ingress/public: VirtualService web/other is not listed and sends requests to {ANY}"
        ]

    def test_a_root_delegates_to_nobody_with_hosts_of_its_own(self) -> None:
        edge = service("reviews", route(to("v1")), gateways=PUBLIC)
        assert found(edge, self.root(exportTo=["~"])) == [UNBOUND]
        other = service("other", route(to(None)), gateways=PUBLIC)
        assert found(PINNED, other, self.root("other")) == [
            f"gateway istio-ingress/public: VirtualService shop/other is not listed and sends requests to {ANY}"
        ]


@pytest.mark.parametrize(
    "spec", ["text", ["list"], {"http": "x"}, {"hosts": 3}, {"http": [{"route": [{"weight": -1}]}]}, {"http": [None]}]
)
def test_what_is_misshapen_is_used_by_nobody(spec: Any) -> None:
    assert found(PINNED, {"metadata": {"name": "odd", "namespace": "web"}, "spec": spec}) == []


def test_an_object_without_a_spec() -> None:
    assert found(PINNED, {"metadata": {"name": "odd", "namespace": "web"}}) == []
