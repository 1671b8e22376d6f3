"""The API client against a server on loopback that answers what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientTimeout, web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration
from prometheus_client import CollectorRegistry

from canaryrollout import __version__
from canaryrollout.adapters.kube import ApiError, Invalid, KubeClient, Request, Resource
from canaryrollout.adapters.kube_answers import read_answer
from canaryrollout.engine.ports import Conflict, Gone, Later

SERVICES = Resource("", "v1", "services")
ROUTES = Resource("networking.istio.io", "v1", "virtualservices")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(
    handler: Handler, registry: CollectorRegistry | None = None, **options: Any
) -> AsyncIterator[KubeClient]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application, host="127.0.0.1") as server:
        configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
        async with KubeClient(configuration, registry or CollectorRegistry(), **options) as client:
            yield client


def answering(status: int, body: dict[str, Any]) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    return handler


def status(code: int, message: str, **more: Any) -> Handler:
    return answering(code, {"kind": "Status", "message": message, "code": code, **more})


async def test_an_object_that_does_not_exist_reads_as_none() -> None:
    async with serving(status(404, 'services "x" not found')) as client:
        assert await client.get(SERVICES, "shop", "x") is None


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (status(404, "not found"), Gone),
        (status(409, "the object has been modified"), Conflict),
        (status(422, "the server rejected our request due to an error in our request"), Conflict),
        (status(422, "is invalid", details={"causes": [{"field": "spec.hosts"}]}), Invalid),
        (status(400, 'admission webhook "validation.istio.io" denied the request: weight sum'), Invalid),
        (status(401, "Unauthorized"), ApiError),
        (status(403, "forbidden"), ApiError),
        (status(500, "etcd is gone"), ApiError),
    ],
)
async def test_every_refusal_of_a_patch_has_its_own_error(handler: Handler, kind: type[Exception]) -> None:
    async with serving(handler) as client:
        with pytest.raises(kind) as caught:
            await client.json_patch(ROUTES, "shop", "reviews", [{"op": "test", "path": "/a", "value": 1}])
    assert type(caught.value) is kind
    assert "virtualservices.networking.istio.io shop/reviews" in str(caught.value)


async def test_a_patch_says_what_it_is_and_who_writes() -> None:
    seen: list[tuple[str, str, str, str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, request.query_string, request.content_type, await request.json()))
        return web.json_response({"metadata": {}})

    async with serving(handler) as client:
        await client.json_patch(ROUTES, "shop", "reviews", [], subresource="status")
        await client.merge_patch(SERVICES, "shop", "reviews", {"a": 1})
        await client.create(SERVICES, "shop", {"metadata": {"name": "x"}})
        await client.replace(SERVICES, "shop", "x", {"metadata": {"name": "x"}})
    path = "/apis/networking.istio.io/v1/namespaces/shop/virtualservices/reviews/status"
    manager = "fieldManager=canaryrollout"
    assert seen[0] == ("PATCH", path, manager, "application/json-patch+json", [])
    service = "/api/v1/namespaces/shop/services"
    assert seen[1] == ("PATCH", f"{service}/reviews", manager, "application/merge-patch+json", {"a": 1})
    assert [entry[:4] for entry in seen[2:]] == [
        ("POST", service, manager, "application/json"),
        ("PUT", f"{service}/x", manager, "application/json"),
    ]


async def test_the_audit_log_can_tell_replicas_apart() -> None:
    agents = []

    async def handler(request: web.Request) -> web.Response:
        agents.append(request.headers["user-agent"])
        return web.json_response({"metadata": {}})

    for replica in ("canaryrollout-0_4f2a", ""):
        async with serving(handler, replica=replica) as client:
            await client.get(SERVICES, "shop", "x")
    assert agents == [f"canaryrollout/{__version__} (canaryrollout-0_4f2a)", f"canaryrollout/{__version__}"]


async def test_a_list_follows_its_pages() -> None:
    pages = {"": ("one", "two"), "two": ("three", "")}
    queries: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        name, token = pages[request.query.get("continue", "")]
        return web.json_response({"metadata": {"continue": token}, "items": [{"metadata": {"name": name}}]})

    async with serving(handler) as client:
        found = await client.list(SERVICES, "shop", labels={"b": "2", "a": "1"})
    assert [item["metadata"]["name"] for item in found] == ["one", "three"]
    assert queries[0] == {"limit": "500", "labelSelector": "a=1,b=2"}
    assert queries[1] == {**queries[0], "continue": "two"}


async def test_a_list_that_went_stale_between_pages_is_asked_for_at_once() -> None:
    async def handler(request: web.Request) -> web.Response:
        if "continue" in request.query:
            return web.json_response({"message": "expired", "code": 410}, status=410)
        if "limit" in request.query:
            return web.json_response({"metadata": {"continue": "next"}, "items": [{"n": 1}]})
        return web.json_response({"metadata": {}, "items": [{"n": 1}, {"n": 2}]})

    async with serving(handler) as client:
        assert await client.list(SERVICES) == [{"n": 1}, {"n": 2}]


async def test_versions_are_discovered_once_and_a_missing_group_again() -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path.endswith("istio.io"):
            return web.json_response({"versions": [{"version": "v1"}, {"version": "v1beta1"}]})
        return web.json_response({"message": "no such group"}, status=404)

    async with serving(handler) as client:
        for _ in range(2):
            assert await client.served_versions("networking.istio.io") == ("v1", "v1beta1")
            assert await client.served_versions("absent.example") == ()
    assert asked == ["/apis/networking.istio.io", "/apis/absent.example", "/apis/absent.example"]


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return web.json_response({})

    async with serving(handler, timeout=ClientTimeout(total=0.05)) as client:
        with pytest.raises(ApiError, match=r"services shop/x: .* did not answer within 0\.05 s") as caught:
            await client.get(SERVICES, "shop", "x")
        release.set()
    assert caught.value.status == 0


async def test_a_server_that_is_not_there_is_named_in_words() -> None:
    async with KubeClient(Configuration(host="http://127.0.0.1:1"), CollectorRegistry()) as client:
        with pytest.raises(ApiError, match="cannot be reached"):
            await client.get(SERVICES, "shop", "x")


async def test_requests_are_counted_and_shown_to_the_hook() -> None:
    registry = CollectorRegistry()
    seen: list[Request] = []
    async with serving(status(409, "exists"), registry, on_request=seen.append) as client:
        with pytest.raises(Conflict):
            await client.create(SERVICES, "shop", {"metadata": {"name": "x"}})
    assert seen == [Request("create", "services", "shop", "x", "conflict")]
    labels = {"verb": "create", "resource": "services", "outcome": "conflict"}
    assert registry.get_sample_value("canaryrollout_kubernetes_requests_total", labels) == 1


@pytest.mark.parametrize(("code", "header", "seconds"), [(429, "7", 7), (503, "1", 1)])
async def test_a_busy_server_says_for_how_long_to_leave_it_alone(code: int, header: str, seconds: float) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"message": "too many requests"}, status=code, headers={"Retry-After": header})

    async with serving(handler) as client:
        with pytest.raises(Later, match="too many requests") as caught:
            await client.get(SERVICES, "shop", "x")
    assert caught.value.seconds == seconds
    assert isinstance(caught.value, ApiError)


@pytest.mark.parametrize(("code", "header"), [(429, ""), (429, "0"), (429, "-1"), (429, "soon"), (500, "7")])
def test_an_error_without_a_wait_that_makes_sense_asks_for_none(code: int, header: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_answer("get", code, b"{}", "services shop/x", header)
    assert not isinstance(caught.value, Later)


async def test_rejected_credentials_are_renewed_before_the_next_request() -> None:
    tokens: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("authorization"))
        fresh = tokens[-1] == "bearer new"
        return web.json_response({"message": "Unauthorized"}, status=200 if fresh else 401)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application, host="127.0.0.1") as server:
        configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
        configuration.api_key["BearerToken"] = "bearer old"

        async def login() -> None:
            configuration.api_key["BearerToken"] = "bearer new"

        async with KubeClient(configuration, CollectorRegistry(), login=login) as client:
            with pytest.raises(ApiError, match="credentials are not accepted"):
                await client.get(SERVICES, "shop", "x")
            assert await client.get(SERVICES, "shop", "x") is not None
    assert tokens == ["bearer old", "bearer new"]


async def test_a_kubeconfig_gives_address_and_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("authorization"))
        return web.json_response({"metadata": {}})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application, host="127.0.0.1") as server:
        path = tmp_path / ".kube" / "config"
        path.parent.mkdir()
        path.write_text(
            json.dumps(
                {
                    "current-context": "lab",
                    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
                    "clusters": [{"name": "lab", "cluster": {"server": str(server.make_url("")).rstrip("/")}}],
                    "users": [{"name": "me", "user": {"token": "secret"}}],
                }
            )
        )
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        for kubeconfig in (str(path), None):
            async with await KubeClient.connect(CollectorRegistry(), kubeconfig=kubeconfig) as client:
                assert await client.get(SERVICES, "shop", "x") is not None
    assert seen == ["Bearer secret"] * 2


async def test_missing_credentials_say_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"no credentials .* kubeconfig .*nowhere"):
        await KubeClient.connect(CollectorRegistry(), kubeconfig=str(tmp_path / "nowhere"))
