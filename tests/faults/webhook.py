"""A validating webhook, registered with the real API server, that lets a namespace's mesh be written or not.

Istio itself validates its objects this way, and so do policy engines; what an operator is told when one of them
refuses, is down or does not answer is the API server's own wording. The webhook is a small HTTPS server on loopback.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from lab.mesh import Lab
from lab.ports import LOOPBACK
from tests.loopback import QuietHandler, serving
from tests.tlsstub import Authority

GROUP: Final = "networking.istio.io"
TIMEOUT_SECONDS: Final = 10
"""The API server's own patience with it: the usual one, and longer than that of the operator."""
MESSAGE: Final = "weights may not change without a ticket"
_LONGEST_HANG_SECONDS: Final = 60.0


class Mood(Enum):
    """What it does with writes that concern it."""

    ALLOWS = auto()
    DENIES = auto()
    FAILS = auto()
    """Closes the connection: the API server answers 500, as it does when nobody listens."""
    HANGS = auto()


@dataclass(frozen=True)
class Review:
    """A write that came for review: when (seconds since the epoch), of what, and the object as it would be."""

    at: float
    resource: str
    name: str
    document: Mapping[str, Any]


class Webhook:
    """The webhook.

    Attributes:
        name: What the API server calls it.
        mood: What it does with writes that concern it.
        concerns: Which writes do.
        reviews: What came.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.mood = Mood.ALLOWS
        self.concerns: Callable[[Review], bool] = lambda _: True
        self.reviews: list[Review] = []
        self._let_go = threading.Event()

    def refuse(self, mood: Mood, concerns: Callable[[Review], bool] = lambda _: True) -> None:
        """Begin to keep writes from being done."""
        self._let_go.clear()
        self.concerns, self.mood = concerns, mood

    def allow(self) -> float:
        """Let everything be written from now on; return when that was."""
        self.mood = Mood.ALLOWS
        self._let_go.set()
        return time.time()

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the verdict on a write; ``None`` for none."""
        review = Review(time.time(), request["resource"]["resource"], request["name"], request["object"])
        self.reviews.append(review)
        mood = self.mood if self.concerns(review) else Mood.ALLOWS
        if mood is Mood.HANGS:
            self._let_go.wait(_LONGEST_HANG_SECONDS)
        if mood in (Mood.FAILS, Mood.HANGS):
            return None
        denied = {"status": {"code": 403, "message": MESSAGE}} if mood is Mood.DENIES else {}
        return {"uid": request["uid"], "allowed": not denied, **denied}


@contextmanager
def webhook(lab: Lab, namespace: str, directory: Path) -> Iterator[Webhook]:
    """Run a webhook for all updates of VirtualServices and DestinationRules in a namespace."""
    hook = Webhook(f"tickets.{namespace}.example")
    authority = Authority(directory / "webhook")
    with _serving(hook, authority) as url:
        lab.apply(_configuration(hook, namespace, url, authority.ca_file.read_bytes()))
        try:
            yield hook
        finally:
            hook.allow()
            lab.kubectl("delete", "validatingwebhookconfiguration", hook.name)


def _configuration(hook: Webhook, namespace: str, url: str, authority: bytes) -> dict[str, Any]:
    rule = {
        "apiGroups": [GROUP],
        "apiVersions": ["*"],
        "operations": ["UPDATE"],
        "resources": ["virtualservices", "destinationrules"],
    }
    entry = {
        "name": hook.name,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT_SECONDS,
        "failurePolicy": "Fail",
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "clientConfig": {"url": url, "caBundle": base64.b64encode(authority).decode()},
        "rules": [rule],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": hook.name},
        "webhooks": [entry],
    }


@contextmanager
def _serving(hook: Webhook, authority: Authority) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(LOOPBACK))

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            review = json.loads(self.body())
            response = hook.answer(review["request"])
            if response is None:
                return
            envelope = {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
            body = json.dumps(envelope).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler, context) as server:
        yield f"{server.url}/"
