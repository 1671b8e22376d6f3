"""From a raw object of the API server to models, whatever it holds.

Reading never raises: an object that an older CRD let in, or that someone wrote past the schema, must be answered with
what is wrong with it rather than with a stack trace in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from canaryrollout.api.problems import describe, is_elsewhere, problems
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus

_MOST: Final = 20
"""How many mistakes are explained; an object may hold as many as fit into it."""


@dataclass(frozen=True, slots=True)
class ReadRollout:
    """A CanaryRollout as read.

    Attributes:
        spec: The spec, or ``None`` when it cannot be read as one. A spec that can be read is here even when it has
            problems: it still tells which traffic to take back. One about a Service of another namespace is not,
            because it never moved any, whatever a status says.
        status: The status; empty when there is none or it cannot be read.
        problems: What is wrong with the spec, for people; empty when nothing is.
        status_problems: What is wrong with the status. Only the operator writes it, so this is a defect or a newer
            version's work; decisions without it start from the mesh.
    """

    spec: CanaryRolloutSpec | None
    status: CanaryRolloutStatus
    problems: tuple[str, ...] = ()
    status_problems: tuple[str, ...] = ()


def read_rollout(body: Mapping[str, Any]) -> ReadRollout:
    """Read a CanaryRollout as the API server returned it; never raises.

    Args:
        body: The object: a mapping with ``metadata``, ``spec`` and ``status``.

    Returns:
        Spec, status and what is wrong with them.
    """
    metadata = body.get("metadata")
    namespace = str(metadata.get("namespace") or "") if isinstance(metadata, Mapping) else ""
    spec, found = read_spec(body.get("spec"), namespace)
    status, status_found = read_status(body.get("status"))
    return ReadRollout(spec, status, found, status_found)


def read_spec(raw: object, namespace: str) -> tuple[CanaryRolloutSpec | None, tuple[str, ...]]:
    """Read a spec and what is wrong with it; ``None`` when it cannot be read; never raises."""
    try:
        spec = CanaryRolloutSpec.model_validate({} if raw is None else raw)
    except ValidationError as error:
        return None, explain(error, "spec")
    return None if is_elsewhere(spec.host, namespace) else spec, problems(spec, namespace)


def read_status(raw: object) -> tuple[CanaryRolloutStatus, tuple[str, ...]]:
    """Read a status and what is wrong with it; an empty one when it cannot be read; never raises."""
    try:
        return CanaryRolloutStatus.model_validate({} if raw is None else raw), ()
    except ValidationError as error:
        return CanaryRolloutStatus(), explain(error, "status")


def explain(error: ValidationError, root: str) -> tuple[str, ...]:
    """Rewrite pydantic's errors for people: the field as YAML names it, its value, what would be right."""
    errors = error.errors(include_url=False)
    found = [_explained(details, root) for details in errors[:_MOST] if not _follows(details, errors)]
    if len(errors) > _MOST:
        found.append(f"{len(errors) - _MOST} more fields of {root} are wrong")
    return tuple(dict.fromkeys(found))


def _follows(details: ErrorDetails, errors: list[ErrorDetails]) -> bool:
    """Tell whether a list is called too short only because its items could not be read."""
    place = details["loc"]
    deeper = (other["loc"] for other in errors if len(other["loc"]) > len(place))
    return details["type"] == "too_short" and any(loc[: len(place)] == place for loc in deeper)


def _explained(details: ErrorDetails, root: str) -> str:
    path = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"])
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "missing":
        return f"{path} is missing: it is required"
    if kind == "value_error":
        return describe(path, value, str(context["error"]))
    if template := _EXPECTED.get(kind):
        return describe(path, value, template.format_map(context))
    return describe(path, value, details["msg"][:1].lower() + details["msg"][1:])


_EXPECTED = {
    "enum": "must be one of {expected}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a text; put it in quotes",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "dict_type": "must be a mapping",
    "datetime_parsing": "must be a time such as 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be a time such as 2026-01-31T12:00:00Z",
}
