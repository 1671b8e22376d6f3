"""What is wrong with a spec that could be read, in words for the person who wrote it.

The API server refuses most of this already. What it cannot know is checked here alone: whether a full host name lies in
the object's own namespace. What it did not refuse, because the object is older than a rule, is found here again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from canaryrollout.api.rules import Rule
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.text import is_plain

Problem = tuple[str, str]
"""Path of the field, and what would be right."""

_LONGEST_VALUE: Final = 200
_WIDEST: Final = 20
_DEEPEST: Final = 5
_CUT: Final = "..."


def problems(spec: CanaryRolloutSpec, namespace: str) -> tuple[str, ...]:
    """Return what is wrong with a spec.

    Args:
        spec: The spec as read.
        namespace: Namespace of the object.

    Returns:
        One message per problem, each naming the field, its value and what would be right; empty when all is well.
    """
    found = (
        *_broken_rules(spec, "spec"),
        *_duplicates(spec),
        *_host_problems(spec.host, namespace),
        *_invisible(spec),
    )
    if not found:
        return ()
    written = {"spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
    return tuple(describe(path, _value_at(path, written), message) for path, message in found)


def is_elsewhere(host: str, namespace: str) -> bool:
    """Return whether a host is that of a Service of another namespace, and no rollout of this one has a say in it."""
    labels = host.split(".")
    return len(labels) > 2 and labels[2] == "svc" and labels[1] != namespace


def describe(path: str, value: Any, message: str) -> str:
    """Return a problem as a sentence: the field, its value as YAML has it, what would be right."""
    text = _as_yaml(value)
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "..."
    return f"{path} is {text}: {message}"


def _as_yaml(value: Any) -> str:
    """Spell a value on one line, a text always in quotes; what is nothing of YAML's as Python shows it."""
    if isinstance(value, str):
        return repr(value[: _LONGEST_VALUE + 1])
    value = _abridged(value, _DEEPEST)
    try:
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=sys.maxsize)
    except yaml.representer.RepresenterError:
        return repr(value)
    return text.removesuffix("...\n").strip()


def _abridged(value: Any, depth: int) -> Any:
    """Return as much of a value as is shown: what somebody wrote past the schema may be deep, wide or long."""
    if isinstance(value, str):
        return value[:_LONGEST_VALUE]
    if not isinstance(value, Mapping | list | tuple):
        return value
    if not depth:
        return _CUT
    if isinstance(value, Mapping):
        shown = {str(key)[:_LONGEST_VALUE]: _abridged(item, depth - 1) for key, item in islice(value.items(), _WIDEST)}
        return shown | ({_CUT: _CUT} if len(value) > _WIDEST else {})
    return [_abridged(item, depth - 1) for item in value[:_WIDEST]] + [_CUT] * (len(value) > _WIDEST)


def _value_at(path: str, written: Any) -> Any:
    for part in re.findall(r"[^.\[\]]+", path):
        written = written[int(part)] if isinstance(written, list) else written.get(part)
    return written


@dataclass(frozen=True)
class _Kind:
    """What the type of a field says: its rules, and the kind of its items where it is a list."""

    rules: tuple[Rule, ...]
    items: _Kind | None


def _broken_rules(model: BaseModel, path: str) -> Iterator[Problem]:
    for rule in getattr(model, "rules", ()):
        if rule.holds is not None and not rule.holds(model):
            yield path + rule.field_path, rule.message
    for name, alias, kind in _fields(type(model)):
        yield from _broken(getattr(model, name), kind, f"{path}.{alias}")


def _broken(value: Any, kind: _Kind, path: str) -> Iterator[Problem]:
    """Check a value against the rules on its type, and its members against those on theirs."""
    if value is None:
        return
    for rule in kind.rules:
        if rule.holds is not None and not rule.holds(value):
            yield path, rule.message
    if isinstance(value, BaseModel):
        yield from _broken_rules(value, path)
    elif kind.items is not None:
        for index, item in enumerate(value):
            yield from _broken(item, kind.items, f"{path}[{index}]")


@cache
def _fields(model: type[BaseModel]) -> tuple[tuple[str, str, _Kind], ...]:
    """Return name, name in YAML and kind of each field."""
    return tuple(
        (name, field.alias or name, _kind(field.annotation, field.metadata))
        for name, field in model.model_fields.items()
    )


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> _Kind:
    """Look through ``Annotated`` and ``| None`` around a type."""
    rules = tuple(entry for entry in metadata if isinstance(entry, Rule))
    while True:
        members = [member for member in get_args(annotation) if member is not type(None)]
        if get_origin(annotation) is Annotated:
            annotation, *outer = members
            rules = (*(entry for entry in outer if isinstance(entry, Rule)), *rules)
        elif get_origin(annotation) in (Union, UnionType) and len(members) == 1:
            annotation = members[0]
        else:
            return _Kind(rules, _kind(members[0]) if get_origin(annotation) is tuple else None)


def _duplicates(spec: CanaryRolloutSpec) -> Iterator[Problem]:
    references = spec.istio.virtual_services
    yield from _repeated("spec.istio.virtualServices", "name", [reference.name for reference in references])
    for index, reference in enumerate(references):
        yield from _repeated(f"spec.istio.virtualServices[{index}].routes", "", list(reference.routes))
    yield from _repeated("spec.analysis.metrics", "name", [metric.name for metric in spec.analysis.metrics])
    if spec.analysis.error_rate is not None:
        faults = list(spec.analysis.error_rate.grpc_server_faults)
        yield from _repeated("spec.analysis.errorRate.grpcServerFaults", "", faults)


def _repeated(path: str, key: str, names: Sequence[object]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        if name in names[:index]:
            member = f".{key}" if key else ""
            yield f"{path}[{index}]{member}", "must not be listed twice"


def _invisible(spec: CanaryRolloutSpec) -> Iterator[Problem]:
    """Find names of routes that look like another or like nothing; all other names have patterns that exclude them."""
    for index, reference in enumerate(spec.istio.virtual_services):
        for number, route in enumerate(reference.routes):
            if not is_plain(route):
                path = f"spec.istio.virtualServices[{index}].routes[{number}]"
                yield path, "must be of printable characters only; rename the route in the VirtualService"


def _host_problems(host: str, namespace: str) -> Iterator[Problem]:
    """Check that a host with dots is a full name, and of a service in the object's own namespace.

    Istio resolves names without a dot only; ``reviews.shop`` would be taken as it stands. A name under ``svc`` tells
    its namespace; any other is that of a ServiceEntry, which the operator looks for in the object's namespace.
    """
    labels = host.split(".")
    if len(labels) == 1:
        return
    service, owner = labels[:2]
    short = f"write {service}" if owner == namespace else f"create the CanaryRollout in namespace {owner}"
    if (len(labels) == 2 and owner == namespace) or labels[2:] == ["svc"]:
        yield "spec.host", f"Istio does not resolve names of this form; {short}"
    elif is_elsewhere(host, namespace):
        yield "spec.host", f"must be a service of the rollout's own namespace {namespace}, not of {owner}; {short}"
