"""Probes and metrics over HTTP.

Liveness asks whether the process gets on with its work, and knows nothing of leadership: a follower is as alive as its
leader, and an operator that cannot reach the API server is not helped by a restart. Readiness asks whether it knows
what there is and watches what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Problem = Callable[[], str]
"""Says what is wrong; empty while nothing is."""


def application(registry: CollectorRegistry, stuck: Problem, unready: Problem) -> web.Application:
    """Return the application with ``/healthz``, ``/readyz`` and ``/metrics``."""

    def probe(problem: Problem) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            reason = problem()
            return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

        return answer

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", probe(stuck))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(unready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", metrics)
    return app


class HttpServer:
    """Serves an application until it is closed."""

    def __init__(self, app: web.Application, host: str, port: int) -> None:
        self._runner = web.AppRunner(app, access_log=None)
        self._host = host
        self._port = port

    async def start(self) -> str:
        """Listen, and return the address, as ``127.0.0.1:8080``.

        Raises:
            OSError: If the port is taken.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()
