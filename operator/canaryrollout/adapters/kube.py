"""The one way to the Kubernetes API server.

Every adapter speaks to the API server through `KubeClient`, so that the habits which keep an operator safe are kept in
one place: an explicit time limit and content type on every request, one field manager, errors that say what happened in
words, no hidden retries (the engine decides what to try again), and a count of every request.

Objects are plain JSON documents. A typed model would drop fields it does not know, and this operator promises to leave
alone what others wrote.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import ClientError, ClientTimeout
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from prometheus_client import CollectorRegistry, Counter

from canaryrollout import __version__
from canaryrollout.adapters.kube_answers import ApiError, Invalid, outcome_of, read_answer
from canaryrollout.api.text import plain
from canaryrollout.engine.ports import Conflict, Gone

__all__ = [
    "FIELD_MANAGER",
    "ApiError",
    "Document",
    "Invalid",
    "KubeClient",
    "Request",
    "RequestHook",
    "Resource",
    "log_in",
]

FIELD_MANAGER: Final = "canaryrollout"
TIMEOUT: Final = ClientTimeout(total=10, connect=3)
PAGE: Final = 500
EXPIRED: Final = 410

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

_NOT_IN_NAMES: Final = frozenset("/%?#\\\0")
"""What no name of an object has, and what a URL takes for the beginning of something else."""

Document = dict[str, Any]
Page = list[Document]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, as its path names it.

    Attributes:
        group: API group; empty for the core group.
        version: API version, such as ``v1``.
        plural: Plural name, lower case.
    """

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, an object, or a subresource.

        Args:
            namespace: Namespace; ``None`` for cluster-wide lists and cluster-scoped objects.
            name: Object name; empty for the collection.
            subresource: Such as ``status``.

        Raises:
            Gone: If namespace or name can be none, and would lead to another place instead.
        """
        for part in (namespace or "", name):
            if part in {".", ".."} or _NOT_IN_NAMES & set(part):
                raise Gone(f"{plain(part, 64)!r} can be no name of an object or a namespace")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.plural}{tail}"

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was answered, or was not, for whoever counts them.

    Attributes:
        verb: Kubernetes verb: get, list, create, update, patch, delete, discover.
        resource: What it was about, such as ``virtualservices.networking.istio.io``.
        namespace: Namespace, or empty.
        name: Object name, or empty.
        outcome: One of ok, not_found, conflict, invalid, denied, unanswered, error, canceled.
    """

    verb: str
    resource: str
    namespace: str
    name: str
    outcome: str


RequestHook = Callable[[Request], None]


class KubeClient:
    """Requests for JSON documents, each made once and within a time limit.

    Make one per process with `connect`, and close it.
    """

    def __init__(
        self,
        configuration: Configuration,
        registry: CollectorRegistry,
        *,
        login: Callable[[], Awaitable[None]] | None = None,
        on_request: RequestHook | None = None,
        field_manager: str = FIELD_MANAGER,
        timeout: ClientTimeout = TIMEOUT,
        replica: str = "",
    ) -> None:
        """Prepare a client; nothing is sent.

        Args:
            configuration: Where the API server is, and who we are.
            registry: Where the counter of requests is registered.
            login: Renews the credentials in ``configuration``; called before the request that follows a 401.
            on_request: Called after every request.
            field_manager: Who writes, in the eyes of managedFields.
            timeout: Limit of one request.
            replica: Name of this process; the audit log of the API server shows it.
        """
        self.field_manager = field_manager
        self._api = ApiClient(configuration)
        self._api.user_agent = user_agent(replica)
        self._login = login
        self._rejected = False
        self._timeout = timeout
        self._on_request = on_request
        self._served: dict[str, tuple[str, ...]] = {}
        self._requests = Counter(
            "canaryrollout_kubernetes_requests",
            "Requests to the Kubernetes API server.",
            ("verb", "resource", "outcome"),
            registry=registry,
        )

    @classmethod
    async def connect(
        cls,
        registry: CollectorRegistry,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        on_request: RequestHook | None = None,
        field_manager: str = FIELD_MANAGER,
        connections: int = 64,
        replica: str = "",
    ) -> KubeClient:
        """Make a client from the service account in a Pod, or from a kubeconfig elsewhere.

        Args:
            registry: Where the counter of requests is registered.
            kubeconfig: Path of a kubeconfig; ``None`` means ``KUBECONFIG`` where that is set, else the service account
                of the Pod we run in, else ``~/.kube/config``.
            context: Context of the kubeconfig; ``None`` for its current one.
            on_request: Called after every request.
            field_manager: Who writes, in the eyes of managedFields.
            connections: How many requests may be under way at a time.
            replica: Name of this process; the audit log of the API server shows it.

        Raises:
            ApiError: If neither gives credentials.
        """
        configuration = Configuration()
        configuration.connection_pool_maxsize = connections

        async def login() -> None:
            await log_in(configuration, kubeconfig, context)

        await login()
        return cls(
            configuration, registry, login=login, on_request=on_request, field_manager=field_manager, replica=replica
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def served_versions(self, group: str) -> tuple[str, ...]:
        """Return the versions of an API group, the server's preferred one first; empty where it is not served.

        What was found is remembered: a group that has been served keeps its versions until the process ends.
        """
        if group not in self._served:
            try:
                answer = await self._send("discover", Resource(group, "", ""), None, "", f"/apis/{group}")
            except Gone:
                return ()
            self._served[group] = tuple(version["version"] for version in answer["versions"])
        return self._served[group]

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Document | None:
        """Read one object; ``None`` when it does not exist.

        Raises:
            ApiError: If it could not be read.
        """
        try:
            return await self._send("get", resource, namespace, name, resource.path(namespace, name))
        except Gone:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        metadata_only: bool = False,
    ) -> list[Document]:
        """Read all objects of a kind, page by page.

        Args:
            resource: The kind.
            namespace: Namespace; ``None`` for all of them.
            labels: Labels that the objects must have.
            metadata_only: Leave everything but metadata out of the answer.

        Raises:
            ApiError: If they could not be read.
            Gone: If the kind is not served.
        """
        try:
            return [item async for page in self.pages(resource, namespace, labels, metadata_only) for item in page]
        except ApiError as error:
            if error.status != EXPIRED:
                raise
        # The list went stale between two pages: ask for all at once.
        return [item async for page in self.pages(resource, namespace, labels, metadata_only, limit=0) for item in page]

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        metadata_only: bool = False,
        limit: int = PAGE,
    ) -> AsyncIterator[Page]:
        """Read all objects of a kind, ``limit`` (0: all) at a time; arguments and errors as for `list`."""
        query = [("limit", str(limit))] if limit else []
        if labels:
            query.append(("labelSelector", ",".join(f"{key}={value}" for key, value in sorted(labels.items()))))
        accept = _METADATA_ONLY if metadata_only else _JSON
        path, token = resource.path(namespace), ""
        while True:
            page = [*query, ("continue", token)] if token else query
            answer = await self._send("list", resource, namespace, "", path, query=page, accept=accept)
            yield answer.get("items") or []
            token = answer.get("metadata", {}).get("continue") or ""
            if not token:
                return

    async def json_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        subresource: str = "",
    ) -> Document:
        """Apply a JSON Patch (RFC 6902), all of it or nothing.

        Returns:
            The object as written.

        Raises:
            Conflict: If the resourceVersion in the patch is stale, or a ``test`` does not hold.
            Gone: If the object does not exist.
            Invalid: If the object that results is refused.
            ApiError: If the server did not answer, or refused for another reason.
        """
        path = resource.path(namespace, name, subresource)
        return await self._send("patch", resource, namespace, name, path, list(operations), content=JSON_PATCH)

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Mapping[str, Any], *, subresource: str = ""
    ) -> Document:
        """Apply a JSON merge patch (RFC 7386), guarded where it holds ``metadata.resourceVersion``. Errors as above."""
        path = resource.path(namespace, name, subresource)
        return await self._send("patch", resource, namespace, name, path, dict(patch), content=MERGE_PATCH)

    async def create(self, resource: Resource, namespace: str | None, document: Mapping[str, Any]) -> Document:
        """Create an object; raises `Conflict` when it exists. Other errors as for `json_patch`."""
        name = str(document.get("metadata", {}).get("name", ""))
        return await self._send("create", resource, namespace, name, resource.path(namespace), dict(document))

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        document: Mapping[str, Any],
        *,
        subresource: str = "",
    ) -> Document:
        """Replace an object, guarded by its ``metadata.resourceVersion``. Errors as for `json_patch`."""
        path = resource.path(namespace, name, subresource)
        return await self._send("update", resource, namespace, name, path, dict(document))

    async def delete(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Delete an object; one that does not exist is as good."""
        with suppress(Gone):
            await self._send("delete", resource, namespace, name, resource.path(namespace, name))

    async def _send(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str,
        path: str,
        body: object = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        content: str = _JSON,
        accept: str = _JSON,
    ) -> Document:
        outcome = "canceled"
        try:
            answer = await self._exchange(verb, path, body, query, content, accept, _subject(resource, namespace, name))
        except (Gone, Conflict, ApiError) as error:
            outcome = outcome_of(error)
            raise
        else:
            outcome = "ok"
            return answer
        finally:
            self._requests.labels(verb, str(resource), outcome).inc()
            if self._on_request is not None:
                self._on_request(Request(verb, str(resource), namespace or "", name, outcome))

    async def _exchange(
        self,
        verb: str,
        path: str,
        body: object,
        query: Sequence[tuple[str, str]],
        content: str,
        accept: str,
        subject: str,
    ) -> Document:
        if self._rejected and self._login is not None:
            await self._login()
        parameters = list(query)
        if verb in ("create", "update", "patch"):
            parameters.append(("fieldManager", self.field_manager))
        try:
            method, url, headers, data, _ = await self._api.param_serialize(
                _METHODS[verb],
                path,
                query_params=parameters,
                header_params={"Accept": accept, "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(method, url, headers, data, _request_timeout=self._timeout)
            text = await response.read()
        except TimeoutError as error:
            limit = f"{self._timeout.total:g} s"
            raise ApiError(0, f"{subject}: the Kubernetes API server did not answer within {limit}") from error
        except (ClientError, OSError) as error:
            raise ApiError(0, f"{subject}: the Kubernetes API server cannot be reached: {error}") from error
        self._rejected = response.status == 401
        return read_answer(verb, response.status, text, subject, response.headers.get("Retry-After", ""))


_METHODS: Final = {
    "get": "GET",
    "list": "GET",
    "discover": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


def user_agent(replica: str = "") -> str:
    """Return what the API server's audit log knows a replica by: ``canaryrollout/VERSION (REPLICA)``."""
    name = f"{FIELD_MANAGER}/{__version__}"
    return f"{name} ({replica})" if replica else name


async def log_in(configuration: Configuration, kubeconfig: str | None = None, context: str | None = None) -> None:
    """Put address and credentials of the API server into the configuration; raises `ApiError` when there are none."""
    path = kubeconfig or os.environ.get("KUBECONFIG")
    if path is None and context is None and _in_cluster(configuration):
        return
    path = path or "~/.kube/config"
    try:
        await load_kube_config(
            config_file=path, context=context, client_configuration=configuration, persist_config=False
        )
    except (ConfigException, OSError) as error:
        raise ApiError(0, f"no credentials for the Kubernetes API server in kubeconfig {path}: {error}") from error


def _in_cluster(configuration: Configuration) -> bool:
    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException:
        return False
    return True


def _subject(resource: Resource, namespace: str | None, name: str) -> str:
    place = "/".join(part for part in (namespace, name) if part)
    return f"{resource} {place}".strip()
