"""Requests that nobody sends: a real Prometheus scrapes counters that follow the weights as they are written.

Tests of faults need dozens of rollouts one after the other, and their subject is what the operator writes, not what
Envoy routes. So the mesh is an exporter here: a service has so many requests a second, split as its VirtualService says
at that moment, and a version fails as a test says. What the operator asks is answered by Prometheus itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import yaml

from lab import Lab, probe
from lab.site import Command, Part, Site
from tests.loopback import QuietHandler, serving

REQUESTS_A_SECOND: Final = 200
SCRAPE_SECONDS: Final = 1.0


@dataclass
class Service:
    """The requests of one host.

    Attributes:
        host: Its full name.
        weights: Share of requests by version, in percent.
        error_rate: Share of failing requests, by version.
        fails_from: Weight from which on a version fails altogether, by version.
        left: How many more requests there are while a version has a weight, by both; no end where it says nothing.
        sent: Requests so far, by version and response code.
    """

    host: str
    weights: Mapping[str, int] = field(default_factory=dict)
    error_rate: dict[str, float] = field(default_factory=dict)
    fails_from: dict[str, int] = field(default_factory=dict)
    left: dict[tuple[str, int], float] = field(default_factory=dict)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    _since: float = field(default_factory=time.monotonic)

    def flow(self, weights: Mapping[str, int] | None = None) -> None:
        """Account for the requests up to now, and go on with other weights where some are given."""
        now = time.monotonic()
        requests = REQUESTS_A_SECOND * (now - self._since)
        self._since = now
        for shares in self.weights.items() & self.left.keys():
            requests = min(requests, self.left[shares])
            self.left[shares] -= requests
        for version, weight in self.weights.items():
            broken = weight >= self.fails_from.get(version, 101)
            failing = 1.0 if broken else self.error_rate.get(version, 0.0)
            self.sent[version, "200"] += requests * weight / 100 * (1 - failing)  # type: ignore[assignment]
            self.sent[version, "500"] += requests * weight / 100 * failing  # type: ignore[assignment]
        if weights is not None:
            self.weights = dict(weights)

    def lines(self) -> Iterator[str]:
        """Yield its counters as Prometheus reads them; a version without any request has no series."""
        for (version, code), count in self.sent.items():
            if int(count):
                labels = {
                    "reporter": "source",
                    "destination_service": self.host,
                    "destination_version": version,
                    "response_code": code,
                    "response_flags": "-",
                    "grpc_response_status": "",
                }
                text = ",".join(f'{name}="{value}"' for name, value in labels.items())
                yield f"istio_requests_total{{{text}}} {int(count)}"


class Traffic:
    """All services, and the Prometheus that knows their counters."""

    def __init__(self) -> None:
        self.prometheus_url = ""
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}

    def weigh(self, host: str, weights: Mapping[str, int]) -> None:
        """Split the requests of a host in another way from now on."""
        with self._lock:
            self._services.setdefault(host, Service(host)).flow(weights)

    def fail(self, host: str, version: str, rate: float) -> None:
        """Let a version fail so often from now on."""
        with self._lock:
            service = self._services.setdefault(host, Service(host))
            service.flow()
            service.error_rate[version] = rate

    def fail_from(self, host: str, version: str, weight: int) -> None:
        """Let a version fail whenever it has so much weight or more."""
        with self._lock:
            service = self._services.setdefault(host, Service(host))
            service.flow()
            service.fails_from[version] = weight

    def dry_up(self, host: str, version: str, weight: int, after: int) -> None:
        """Send no more than so many requests while a version has a weight."""
        with self._lock:
            self._services.setdefault(host, Service(host)).left[version, weight] = after

    def flow_again(self, host: str) -> None:
        """Send requests whatever the weights, however many there were."""
        with self._lock:
            service = self._services.setdefault(host, Service(host))
            service.flow()
            service.left.clear()

    def forget(self, host: str) -> None:
        """Send no more requests to a host."""
        with self._lock:
            self._services.pop(host, None)

    def page(self) -> str:
        """What is scraped."""
        with self._lock:
            for service in self._services.values():
                service.flow()
            lines = [line for service in self._services.values() for line in service.lines()]
        return "\n".join(["# TYPE istio_requests_total counter", *lines, ""])


@contextmanager
def running_traffic() -> Iterator[Traffic]:
    """Run an exporter, and a Prometheus that scrapes it once a second."""
    traffic = Traffic()
    with _exporter(traffic.page) as target:
        part = Part("traffic", "prometheus", _command(target), _waiting_for, ("http",), deadline=30, grace=3.0)
        with Lab(f"traffic-{uuid4().hex[:8]}", (), extra=(part,)) as lab:
            traffic.prometheus_url = f"http://{lab.site.address('traffic.http')}"
            yield traffic
        lab.forget()


def _command(target: str) -> Callable[[Site], Command]:
    def command(site: Site) -> Command:
        interval = f"{SCRAPE_SECONDS:g}s"
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": "900ms", "evaluation_interval": interval},
            "scrape_configs": [{"job_name": "mesh", "static_configs": [{"targets": [target]}]}],
        }
        file = site.directory / "traffic.yaml"
        file.write_text(yaml.safe_dump(config))
        return Command(
            (
                str(site.tools["prometheus"]), f"--config.file={file}", f"--storage.tsdb.path={site.data('traffic')}",
                f"--web.listen-address={site.address('traffic.http')}", "--log.level=warn",
            )
        )  # fmt: skip

    return command


def _waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('traffic.http')}/-/ready")


@contextmanager
def _exporter(page: Callable[[], str]) -> Iterator[str]:
    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # a scrape that took too long on a busy machine
                self.end_headers()
                self.wfile.write(body)

    with serving(Handler) as server:
        yield server.address
