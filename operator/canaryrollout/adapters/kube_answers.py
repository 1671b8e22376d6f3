"""What the answers of the Kubernetes API server mean.

A status code alone does not tell: 422 is what a failed ``test`` of a JSON Patch gets, which calls for another look,
and also what an invalid object gets, which no repetition will cure. Messages are for people, and say what was asked.
"""

from __future__ import annotations

import json
from typing import Any, Final

from canaryrollout.engine.ports import Conflict, Gone, Later

_BUSY: Final = frozenset({429, 503})
_OUTCOMES: Final = {401: "denied", 403: "denied"}


class ApiError(RuntimeError):
    """The API server did not do what was asked.

    Attributes:
        status: HTTP status; 0 where there was no answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Throttled(ApiError, Later):  # noqa: N818 - a state of affairs, not a mistake
    """The API server is busy, and says for how long to leave it alone."""

    def __init__(self, status: int, message: str, seconds: float) -> None:
        super().__init__(status, message)
        self.seconds = seconds


class Invalid(ApiError):  # noqa: N818 - the API's own word
    """The API server or an admission webhook refuses the object that a write would make; trying again is in vain."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


def outcome_of(error: Exception) -> str:
    """Name what became of a request, in the words in which requests are counted."""
    match error:
        case Gone():
            return "not_found"
        case Conflict():
            return "conflict"
        case Invalid():
            return "invalid"
        case ApiError(status=0):
            return "unanswered"
        case ApiError(status=status):
            return _OUTCOMES.get(status, "error")
    return "error"


def read_answer(verb: str, status: int, text: bytes, subject: str, retry_after: str = "") -> dict[str, Any]:
    """Turn an answer into the object it holds, or into the error it means.

    Args:
        verb: Kubernetes verb of the request.
        status: HTTP status of the answer.
        text: Its body.
        subject: What the request was about, for people.
        retry_after: Its header of this name, if it has one.

    Raises:
        Gone: There is no such object, or no such kind.
        Conflict: Somebody wrote in between, the object exists already, or a ``test`` of a JSON Patch does not hold.
        Invalid: The object that a write would make is refused.
        Throttled: The API server is busy, and says for how long.
        ApiError: Anything else.
    """
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    if 200 <= status < 300:
        return answer
    reason = str(answer.get("message") or text[:200].decode(errors="replace") or "no reason given")
    message = f"{verb} {subject}: {reason}"
    if status == 404:
        raise Gone(message)
    if status == 409:
        raise Conflict(message)
    if "admission webhook" in reason and "denied the request" in reason:
        raise Invalid(message)
    if status == 422:
        # A failed ``test`` of a JSON Patch comes as a bare rejection; validation names the fields that are at fault.
        raise Invalid(message) if (answer.get("details") or {}).get("causes") else Conflict(message)
    seconds = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0
    if seconds and status in _BUSY:
        raise Throttled(status, _advice(status, message), seconds)
    raise ApiError(status, _advice(status, message))


def _advice(status: int, message: str) -> str:
    match status:
        case 401:
            return f"{message} (the credentials are not accepted; is the token or kubeconfig still valid?)"
        case 403:
            return f"{message} (the operator's Role does not allow this)"
        case 429:
            return f"{message} (the API server asks for fewer requests)"
    return f"{message} (HTTP {status})"
