"""One Prometheus server, asked with care: prometheus-api-client behind deadlines, a bounded executor and single flight.

The library is synchronous, has no timeout by default, sleeps between retries of its own, puts queries into URLs and
returns results without their type and warnings. Here it is given a session that sends queries as a form, never follows
redirects or retries and keeps each answer's whole envelope, and it runs in a few threads that belong to this server
alone. Two callers with the same question at the same time share one request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_client import CollectorRegistry, Counter, Histogram
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from canaryrollout.adapters.prometheus_counts import milliseconds_of
from canaryrollout.adapters.prometheus_queries import Labels

CONNECT_TIMEOUT: Final = timedelta(seconds=3)
GRACE: Final = timedelta(seconds=1)
"""How much longer than the server's own timeout the client waits, so that the server's words arrive."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A Prometheus that the administrator defined.

    Attributes:
        name: What ``analysis.provider`` calls it.
        url: Base URL, without ``/api/v1``.
        timeout: How long a query may take on the server.
        lag: How long after a block's end its counts can be read: scrape interval plus ingestion.
        scrape_interval: How often it scrapes the proxies.
        concurrency: How many queries it is asked at once.
        reporter: Value of the label ``reporter`` to count by: ``source`` also sees requests that reached no workload.
        version_label: Label of its Istio metrics that holds the version of the workload that answered.
        service_label: Label that holds the fully qualified host.
        headers: Headers of every request, such as a tenant.
        bearer_token_file: File with a token, read anew for every request, because projected tokens rotate.
        ca_file: Certificates to trust instead of the system's.
    """

    name: str
    url: str
    timeout: timedelta = timedelta(seconds=10)
    lag: timedelta = timedelta(seconds=17)
    scrape_interval: timedelta = timedelta(seconds=15)
    concurrency: int = 4
    reporter: str = "source"
    version_label: str = "destination_version"
    service_label: str = "destination_service"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    bearer_token_file: Path | None = None
    ca_file: Path | None = None

    @property
    def labels(self) -> Labels:
        """Return how its Istio metrics are labeled."""
        return Labels(reporter=self.reporter, version=self.version_label, service=self.service_label)


class QueryFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A query that was not answered.

    Attributes:
        outcome: ``Timeout``, ``Unreachable``, ``Refused`` (credentials), ``BadQuery`` (it can never succeed),
            ``ServerError`` or ``BadAnswer``.
    """

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Answer:
    """A result with its type, and the warnings that came with it."""

    result_type: str
    result: Any
    warnings: tuple[str, ...] = ()


class _FileToken(AuthBase):
    """Bearer authentication with a token that is read from its file for every request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._path.read_text().strip()}"
        return request


class _Session(requests.Session):
    """Sends queries as a form, follows no redirects, and keeps the last response of each thread."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # asked as the administrator defined it: no proxy, netrc or bundle of the environment
        self._answered = threading.local()

    def request(self, method: str | bytes, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        self._answered.response = None
        kwargs["data"] = kwargs.pop("params", None)
        response = super().request(method, url, allow_redirects=False, **kwargs)
        self._answered.response = response
        return response

    def answered(self) -> requests.Response | None:
        """Return the response to this thread's last request; ``None`` when there was none."""
        response: requests.Response | None = getattr(self._answered, "response", None)
        return response


class Metrics:
    """Counts and durations of queries, by provider."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queries = Counter(
            "canaryrollout_prometheus_queries",
            "Queries sent to Prometheus.",
            ("provider", "outcome"),
            registry=registry,
        )
        self.duration = Histogram(
            "canaryrollout_prometheus_query_duration_seconds",
            "How long Prometheus took to answer.",
            ("provider",),
            registry=registry,
        )


class PrometheusClient:
    """Asks one server. Its methods belong to one event loop and never block it."""

    def __init__(self, provider: Provider, metrics: Metrics) -> None:
        self.provider = provider
        self._metrics = metrics
        self._session = _Session()
        if provider.ca_file is not None:
            self._session.verify = str(provider.ca_file)
        self._connect = PrometheusConnect(
            url=provider.url.rstrip("/"),
            headers=dict(provider.headers),
            auth=_FileToken(provider.bearer_token_file) if provider.bearer_token_file is not None else None,
            retry=Retry(total=0),
            session=self._session,
            method="POST",
        )
        self._executor = ThreadPoolExecutor(provider.concurrency, thread_name_prefix=f"prometheus-{provider.name}")
        self._places = asyncio.Semaphore(provider.concurrency)
        self._flights: dict[tuple[Any, ...], asyncio.Task[Answer]] = {}

    async def at(self, query: str, time: datetime) -> Answer:
        """Evaluate a query at one time.

        Raises:
            QueryFailed: If there is no answer.
        """
        params = {"time": _seconds(milliseconds_of(time)), **self._limits()}
        send = partial(self._connect.custom_query, query, params=params, timeout=self._timeouts())
        return await self._fly((query, params["time"]), send)

    async def over(self, query: str, first: datetime, last: datetime, step: timedelta) -> Answer:
        """Evaluate a query at ``first`` and every ``step`` after it until ``last``.

        Raises:
            QueryFailed: If there is no answer.
        """
        span = {"start": _seconds(milliseconds_of(first)), "end": _seconds(milliseconds_of(last))}
        width = f"{step.total_seconds():.3f}"
        send = partial(
            self._connect.custom_query_range,
            query,
            first,
            last,
            width,
            params={**span, **self._limits()},  # the library rounds times to seconds; these are exact and win
            timeout=self._timeouts(),
        )
        return await self._fly((query, span["start"], span["end"], width), send)

    async def close(self) -> None:
        """Give up what is under way and release threads and connections."""
        for flight in self._flights.values():
            flight.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _limits(self) -> dict[str, str]:
        return {"timeout": f"{self.provider.timeout / timedelta(milliseconds=1):.0f}ms"}

    def _timeouts(self) -> tuple[float, float]:
        return CONNECT_TIMEOUT.total_seconds(), (self.provider.timeout + GRACE).total_seconds()

    async def _fly(self, key: tuple[Any, ...], send: Callable[[], Any]) -> Answer:
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._ask(send))
            self._flights[key] = flight
            flight.add_done_callback(partial(self._landed, key))
        return await asyncio.shield(flight)

    def _landed(self, key: tuple[Any, ...], flight: asyncio.Task[Answer]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # retrieved here too, where nobody waits for it any more

    async def _ask(self, send: Callable[[], Any]) -> Answer:
        deadline = sum(self._timeouts()) + GRACE.total_seconds()
        async with self._places:
            started, outcome = time.monotonic(), "Success"
            try:
                async with asyncio.timeout(deadline):
                    return await asyncio.get_running_loop().run_in_executor(self._executor, self._send, send)
            except TimeoutError as error:
                outcome = "Timeout"
                raise QueryFailed(outcome, f"no complete answer within {deadline:g} s") from error
            except QueryFailed as error:
                outcome = error.outcome
                raise
            finally:
                self._metrics.queries.labels(self.provider.name, outcome).inc()
                self._metrics.duration.labels(self.provider.name).observe(time.monotonic() - started)

    def _send(self, send: Callable[[], Any]) -> Answer:
        """Send a request and read its whole envelope; runs in a thread of the executor."""
        try:
            result = send()
        except requests.Timeout as error:
            raise QueryFailed("Timeout", f"no answer within {self._timeouts()[1]:g} s") from error
        except (PrometheusApiClientException, OSError, ValueError, KeyError, TypeError) as error:
            response = self._session.answered()  # OSError covers all that requests raises
            if response is None:
                raise QueryFailed("Unreachable", f"cannot ask {self.provider.url}: {_cause(error)}") from error
            raise _failure(response, self.provider) from error
        return _answer(result, self._session.answered())


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _cause(error: BaseException) -> str:
    """Return the innermost reason, which says more than the layers around it."""
    while isinstance(
        reason := getattr(error, "reason", None) or (error.args[0] if error.args else None), BaseException
    ):
        error = reason
    return str(error)


def _answer(result: Any, response: requests.Response | None) -> Answer:
    envelope = _envelope(response)
    data = envelope.get("data")
    result_type = data.get("resultType") if isinstance(data, dict) else None
    warnings = envelope.get("warnings") or ()
    return Answer(str(result_type), result, tuple(str(warning) for warning in warnings))


def _envelope(response: requests.Response | None) -> dict[str, Any]:
    try:
        envelope = response.json() if response is not None else {}
    except ValueError:
        return {}
    return envelope if isinstance(envelope, dict) else {}


def _failure(response: requests.Response, provider: Provider) -> QueryFailed:
    """Say for people what an answer that is no result means."""
    code, envelope = response.status_code, _envelope(response)
    said = str(envelope.get("error") or response.reason or "no reason given")
    if response.is_redirect:
        target = response.headers.get("Location", "elsewhere")
        return QueryFailed("BadAnswer", f"{provider.url} redirects to {target}; set the provider's URL to that")
    if code in {401, 403}:
        return QueryFailed("Refused", f"{provider.url} refuses the operator's credentials ({code} {said})")
    if code == 404:
        return QueryFailed("BadAnswer", f"{provider.url} serves no Prometheus API (404); check the provider's URL")
    if code in {400, 422}:
        return QueryFailed("BadQuery", f"Prometheus cannot run the query: {said}")
    if code != 200:
        return QueryFailed("ServerError", f"{provider.url} answers {code}: {said}")
    return QueryFailed("BadAnswer", f"{provider.url} answers with something that is no Prometheus result")
