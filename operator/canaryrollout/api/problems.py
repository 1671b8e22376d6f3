"""What is wrong with a spec that could be read, in words for the person who wrote it.

The API server refuses most of this already. What it cannot know is checked here alone: whether a full host name lies in
the object's own namespace. What it did not refuse, because the object is older than a rule, is found here again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from fractions import Fraction
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from canaryrollout.api.quantities import format_duration, format_percent
from canaryrollout.api.rules import Rule
from canaryrollout.api.spec import CanaryRolloutSpec


def problems(spec: CanaryRolloutSpec, namespace: str) -> tuple[str, ...]:
    """Return what is wrong with a spec.

    Args:
        spec: The spec as read.
        namespace: Namespace of the object.

    Returns:
        One message per problem, each naming the field, its value and what would be right; empty when all is well.
    """
    return (*_broken_rules(spec, "spec"), *_duplicates(spec), *_host_problems(spec.host, namespace))


def describe(path: str, value: Any, message: str) -> str:
    """Return a problem as a sentence: the field, its value as the API spells it, what would be right."""
    return f"{path} is {_spelled(value)}: {message}"


_LONGEST_VALUE = 200


def _spelled(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, str):
        text = repr(plain)
    else:
        text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=sys.maxsize)
        text = text.removesuffix("...\n").strip()
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def _plain(value: Any) -> Any:
    """Return a value as it stands in YAML."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, Fraction):
        return format_percent(value)
    return value.value if isinstance(value, Enum) else value


def _broken_rules(model: BaseModel, path: str) -> Iterator[str]:
    for rule in getattr(model, "rules", ()):
        if rule.holds is not None and not rule.holds(model):
            yield describe(path + rule.field_path, _member(model, rule.field_path), rule.message)
    for name, field in type(model).model_fields.items():
        rules = tuple(m for m in field.metadata if isinstance(m, Rule))
        yield from _broken(getattr(model, name), field.annotation, rules, f"{path}.{field.alias or name}")


def _member(model: BaseModel, field_path: str) -> Any:
    names = {field.alias: name for name, field in type(model).model_fields.items()}
    return getattr(model, names[field_path.removeprefix(".")]) if field_path else model


def _broken(value: Any, annotation: Any, rules: tuple[Rule, ...], path: str) -> Iterator[str]:
    """Check a value against the rules on its type, and its members against those on theirs."""
    if value is None:
        return
    annotation, inner = _unwrapped(annotation)
    for rule in (*inner, *rules):
        if rule.holds is not None and not rule.holds(value):
            yield describe(path, value, rule.message)
    if isinstance(value, BaseModel):
        yield from _broken_rules(value, path)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _broken(item, get_args(annotation)[0], (), f"{path}[{index}]")


def _unwrapped(annotation: Any) -> tuple[Any, tuple[Rule, ...]]:
    """Return a type without ``Annotated`` and ``| None`` around it, and the rules found on the way."""
    rules: tuple[Rule, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *metadata = get_args(annotation)
            rules = (*(m for m in metadata if isinstance(m, Rule)), *rules)
            continue
        members = [member for member in get_args(annotation) if member is not type(None)]
        if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
            annotation = members[0]
            continue
        return annotation, rules


def _duplicates(spec: CanaryRolloutSpec) -> Iterator[str]:
    references = spec.istio.virtual_services
    yield from _repeated("spec.istio.virtualServices", "name", [reference.name for reference in references])
    for index, reference in enumerate(references):
        yield from _repeated(f"spec.istio.virtualServices[{index}].routes", "", list(reference.routes))
    yield from _repeated("spec.analysis.metrics", "name", [metric.name for metric in spec.analysis.metrics])


def _repeated(path: str, key: str, names: list[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        if name in names[:index]:
            member = f".{key}" if key else ""
            yield describe(f"{path}[{index}]{member}", name, "must not be listed twice")


def _host_problems(host: str, namespace: str) -> Iterator[str]:
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
        yield describe("spec.host", host, f"Istio does not resolve names of this form; {short}")
    elif len(labels) > 3 and labels[2] == "svc" and owner != namespace:
        yield describe(
            "spec.host", host, f"must be a service of the rollout's own namespace {namespace}, not of {owner}; {short}"
        )
