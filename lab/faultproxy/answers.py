"""Errors as the API server words them, so that a client meets what it would meet in a cluster.

Texts are those of k8s.io/apimachinery's ``api/errors`` and, for 429, of the API server's own flow control, which
answers in plain text (``k8s.io/apiserver/pkg/server/filters/priority-and-fairness.go``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from lab.faultproxy.calls import Call

JSON: Final = "application/json"
_PLAIN: Final = "text/plain; charset=utf-8"
_TOO_MANY: Final = 429
_SECOND: Final = 1
EXPIRED: Final = 410

_WORDS: Final[dict[int, tuple[str, str]]] = {
    400: ("BadRequest", "the server rejected our request for an unknown reason"),
    401: ("Unauthorized", "Unauthorized"),
    403: ("Forbidden", '{subject} is forbidden: User "operator" cannot {verb} resource'),
    404: ("NotFound", "{subject} not found"),
    409: (
        "Conflict",
        "Operation cannot be fulfilled on {subject}: the object has been modified; please apply your changes to the "
        "latest version and try again",
    ),
    EXPIRED: ("Expired", "too old resource version: 1 (2)"),
    422: ("Invalid", "the server rejected our request due to an error in our request"),
    500: ("InternalError", "Internal error occurred: etcdserver: leader changed"),
    502: ("InternalError", "an error on the server has prevented the request from succeeding"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: (
        "Timeout",
        "the server was unable to return a response in the time allotted, but may still be processing the request",
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that does not come from the API server."""

    code: int
    headers: dict[str, str]
    body: bytes


def status(
    code: int, call: Call, reason: str = "", message: str = "", retry_after: int | None = None
) -> dict[str, Any]:
    """Return a ``Status`` object.

    Args:
        code: HTTP status.
        call: What is answered; its verb and subject go into the message.
        reason: Machine-readable word; the usual one for the code where empty.
        message: Text for people; the usual one for the code where empty.
        retry_after: Seconds to wait, for ``details.retryAfterSeconds``.
    """
    usual_reason, usual_message = _WORDS.get(code, ("Unknown", "an error that the fault proxy made"))
    if code == 409 and call.verb == "create":
        usual_reason, usual_message = "AlreadyExists", "{subject} already exists"
    details: dict[str, Any] = {"name": call.name, "group": call.group, "kind": call.resource.partition("/")[0]}
    if retry_after is not None:
        details["retryAfterSeconds"] = retry_after
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message or usual_message.format(subject=call.subject, verb=call.verb),
        "reason": reason or usual_reason,
        "details": {key: value for key, value in details.items() if value},
        "code": code,
    }


def answer(code: int, call: Call, reason: str = "", message: str = "", retry_after: int | None = None) -> Answer:
    """Return a whole answer; arguments as for `status`. A 429 asks for a second where nothing else is said."""
    if code == _TOO_MANY:
        wait = _SECOND if retry_after is None else retry_after
        text = (message or "Too many requests, please try again later.") + "\n"
        return Answer(code, {"Retry-After": str(wait), "Content-Type": _PLAIN}, text.encode())
    headers = {"Content-Type": JSON} | ({} if retry_after is None else {"Retry-After": str(retry_after)})
    return Answer(code, headers, json.dumps(status(code, call, reason, message, retry_after)).encode())


def gone_event(call: Call) -> bytes:
    """Return the line by which a watch says that it cannot go on: history is no longer there."""
    return json.dumps({"type": "ERROR", "object": status(EXPIRED, call)}).encode() + b"\n"
