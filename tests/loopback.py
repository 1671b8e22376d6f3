"""HTTP and HTTPS servers on loopback, each in a thread of its own, for what stands in for a peer in a test.

They say nothing on the terminal: clients that hang up, or that refuse a certificate, are what many tests are about.
Any other error in a handler is the test's own, and is printed.
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lab.ports import LOOPBACK

_POLL_SECONDS = 0.01


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that logs no request."""

    def body(self) -> bytes:
        """The request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class LoopbackServer(ThreadingHTTPServer):
    """A server on loopback; call `begin` and `end`, or use `serving`.

    Args:
        handler: Answers the requests.
        port: Where to listen; 0 for any free port.
        tls: Certificates to serve HTTPS with, or None for HTTP.
    """

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__((LOOPBACK, port), handler)
        self._tls = tls
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,), daemon=True)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{LOOPBACK}:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'http' if self._tls is None else 'https'}://{self.address}"

    def begin(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def end(self) -> None:
        """Close the port, without waiting for what hangs."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread, where a refusal ends nothing else."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about clients that are gone or refuse the certificate."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[LoopbackServer]:
    """Run a server on a free port."""
    server = LoopbackServer(handler, tls=tls)
    server.begin()
    try:
        yield server
    finally:
        server.end()
