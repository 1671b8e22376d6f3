"""One Prometheus server, asked with care: prometheus-api-client behind deadlines, a bounded executor and single flight.

The library is synchronous, has no timeout by default, sleeps between retries of its own, puts queries into URLs and
returns results without their type and warnings. Here it is given a session that sends queries as a form, never follows
redirects or retries and keeps each answer's whole envelope, and it runs in a few threads that belong to this server
alone. Two callers with the same question at the same time share one request.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_client import CollectorRegistry, Counter, Histogram
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from canaryrollout.adapters.prometheus_counts import milliseconds_of
from canaryrollout.adapters.prometheus_credentials import Credentials, Trust, words_of
from canaryrollout.adapters.prometheus_provider import Provider, QueryFailed
from canaryrollout.api.quantities import format_duration
from canaryrollout.api.text import plain

__all__ = ["Answer", "Metrics", "PrometheusClient", "Provider", "QueryFailed"]

CONNECT_TIMEOUT: Final = timedelta(seconds=3)
GRACE: Final = timedelta(seconds=1)
"""How much longer than the server's own timeout the client waits, so that the server's words arrive."""
MOST_APART: Final = timedelta(seconds=15)
"""How far a provider's clock may be from ours: evidence is asked for by our times, and would be of another weight's."""
_ABOUT: Final = timedelta(seconds=30)
LONGEST_ANSWER: Final = 16 << 20
"""Bytes, unpacked, of the longest answer that is read; two thousand blocks of a service with many codes have 6 MiB."""
MOST_WARNINGS: Final = 10
LONGEST_WARNING: Final = 500
_PIECE: Final = 1 << 16
_UNUSABLE: Final = (
    PrometheusApiClientException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
)  # fmt: skip
"""What becomes of an answer that is no result; OSError covers all that requests raises."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A result with its type, and the warnings that came with it."""

    result_type: str
    result: Any
    warnings: tuple[str, ...] = ()


class _Session(requests.Session):
    """Sends queries as a form, follows no redirects, and keeps the last response of each thread."""

    def __init__(self, provider: Provider) -> None:
        super().__init__()
        self.trust_env = False  # asked as the administrator defined it: no proxy, netrc or bundle of the environment
        self.verify = not provider.insecure_skip_verify
        self.credentials = Credentials(provider)
        self._trust = Trust(provider)
        self._parameters = {
            name: [value] if isinstance(value, str) else list(value)
            for name, value in provider.query_parameters.items()
        }
        self._answered = threading.local()
        self._patience = (CONNECT_TIMEOUT + provider.timeout + GRACE).total_seconds()

    def request(self, method: str | bytes, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        self._answered.response = None
        kwargs["headers"] = self.credentials.headers()
        kwargs["data"] = self._parameters | (kwargs.pop("params", None) or {})
        deadline = time.monotonic() + self._patience
        response = super().request(method, url, allow_redirects=False, stream=True, **kwargs)
        _compare_clocks(response, datetime.now(UTC))
        self._read(response, deadline)
        self._answered.response = response
        return response

    def _read(self, response: requests.Response, deadline: float) -> None:
        """Read the body up to a size, and only for so long: a server may send without end, or a byte now and then."""
        body = bytearray()
        for piece in response.iter_content(_PIECE):
            body += piece
            if len(body) > LONGEST_ANSWER:
                response.close()
                raise QueryFailed("BadAnswer", f"the answer has more than {LONGEST_ANSWER >> 20} MiB; ask for less")
            if time.monotonic() > deadline:
                response.close()
                raise requests.ReadTimeout
        response._content = bytes(body)  # where requests itself keeps what it has read

    def close(self) -> None:
        """Release all connections."""
        super().close()
        self._trust.close()

    def get_adapter(self, url: str | bytes) -> HTTPAdapter:
        """Return connections with the certificates that are on disk now."""
        del url  # it is always the provider's
        return self._trust.adapter()

    def answered(self) -> requests.Response | None:
        """Return the response to this thread's last request; ``None`` when there was none."""
        response: requests.Response | None = getattr(self._answered, "response", None)
        return response


def _compare_clocks(response: requests.Response, now: datetime) -> None:
    """Refuse an answer of a server whose clock is not ours; one that does not tell the time is trusted."""
    try:
        apart = parsedate_to_datetime(response.headers.get("Date", "")).astimezone(UTC) - now
    except (ValueError, TypeError, OverflowError):
        return
    if response.status_code == 200 and abs(apart) > MOST_APART:
        response.close()
        about = format_duration(max(round(abs(apart) / _ABOUT), 1) * _ABOUT)
        told = f"its clock is about {about} {'ahead of' if apart > timedelta() else 'behind'} the operator's"
        raise QueryFailed("ClocksApart", f"{told}, so its evidence would be of other times than asked for")


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
        self._session = _Session(provider)
        self._connect = PrometheusConnect(
            url=provider.url.rstrip("/"), retry=Retry(total=0), session=self._session, method="POST"
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
            result = self._session.credentials.hide_in(send())
        except requests.Timeout as error:
            raise QueryFailed("Timeout", f"no answer within {self._timeouts()[1]:g} s") from error
        except _UNUSABLE as error:
            response = self._session.answered()
            hide = self._session.credentials.hide
            if response is None:
                message = hide(f"cannot ask {self.provider.url}: {_cause(error)}")
                raise QueryFailed("Unreachable", message) from None  # what the error itself holds is not shown
            failure = _failure(response, self.provider)
            raise QueryFailed(failure.outcome, hide(str(failure)), retry_after=failure.retry_after) from None
        return _answer(result, self._session.answered(), self._session.credentials.hide)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _cause(error: BaseException) -> str:
    """Return the innermost reason, which says more than the layers around it."""
    while True:
        inner = (getattr(error, "reason", None), *reversed(error.args))
        reason = next((found for found in inner if isinstance(found, BaseException)), None)
        if reason is None:
            return words_of(error) if isinstance(error, ssl.SSLError) else str(error)
        error = reason


_INFO: Final = "PromQL info:"
"""How remarks begin that doubt no number; some servers put them among the warnings."""


def _answer(result: Any, response: requests.Response | None, hide: Callable[[str], str]) -> Answer:
    envelope = _envelope(response)
    data = envelope.get("data")
    result_type = data.get("resultType") if isinstance(data, dict) else None
    warnings = envelope.get("warnings")
    said = [warning for warning in warnings if not str(warning).startswith(_INFO)] if isinstance(warnings, list) else []
    shown = said[:MOST_WARNINGS]
    told = tuple(plain(hide(str(warning)), LONGEST_WARNING) for warning in shown)
    return Answer(hide(str(result_type)), result, told)


def _envelope(response: requests.Response | None) -> dict[str, Any]:
    try:
        envelope = response.json() if response is not None else {}
    except (ValueError, RecursionError):
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
        return QueryFailed("ServerError", f"{provider.url} answers {code}: {said}", retry_after=_patience(response))
    return QueryFailed("BadAnswer", f"{provider.url} answers with something that is no Prometheus result")


def _patience(response: requests.Response) -> float | None:
    """Return for how many seconds a server that has too much to do asks to be left alone."""
    wish = response.headers.get("Retry-After", "")
    if response.status_code not in {429, 503} or not wish:
        return None
    try:
        return Retry(total=0).parse_retry_after(wish)
    except (InvalidHeader, ValueError, OverflowError):
        return None
