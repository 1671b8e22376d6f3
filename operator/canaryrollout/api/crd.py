"""The CustomResourceDefinition, written from the models.

The API server takes *structural* schemas only, which are a dialect of OpenAPI 3.0 with rules of its own; pydantic emits
JSON Schema 2020-12. `lower` translates the one into the other and refuses what it does not know, so that a new kind of
field fails here, with its path, and not at ``kubectl apply``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from canaryrollout.api.quantities import format_duration, format_percent
from canaryrollout.api.rules import JsonSchema
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus

GROUP: Final = "canaryrollout.io"
VERSION: Final = "v1alpha1"
KIND: Final = "CanaryRollout"
PLURAL: Final = "canaryrollouts"
API_VERSION: Final = f"{GROUP}/{VERSION}"
DEFAULT_OUTPUT: Final = Path("deploy/crds/canaryrollouts.yaml")

DESCRIPTION: Final = (
    "CanaryRollout declares which version of a service should serve. The operator moves its Istio traffic there step "
    "by step, judges each step on the evidence of Prometheus, and takes the traffic back when the evidence says so."
)
_HEADER: Final = "# Generated from operator/canaryrollout/api by `make generate`. Do not edit.\n"

# Taken over as they are: they mean the same on both sides.
_PLAIN: Final = frozenset(
    {
        "type",
        "description",
        "format",
        "pattern",
        "enum",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "maxProperties",
        "x-kubernetes-validations",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    }
)
_TRANSLATED: Final = frozenset(
    {
        "const",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "default",
        "x-kubernetes-int-or-string",
    }
)
_DROPPED: Final = frozenset({"title", "$defs"})


class UnsupportedSchemaError(ValueError):
    """A model emits something that no structural schema can say."""


def definition() -> JsonSchema:
    """Return the CustomResourceDefinition as an object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["cro"],
                "categories": ["canaryrollout", "progressive-delivery"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _printer_columns(),
                    "schema": {"openAPIV3Schema": _root_schema()},
                }
            ],
        },
    }


def render() -> str:
    """Return the CustomResourceDefinition as YAML, the content of the generated file."""
    return _HEADER + yaml.safe_dump(definition(), sort_keys=False, width=120, allow_unicode=True)


def _printer_columns() -> list[JsonSchema]:
    def column(name: str, kind: str, path: str, description: str, **extra: Any) -> JsonSchema:
        return {"name": name, "type": kind, "jsonPath": path, "description": description, **extra}

    return [
        column("Phase", "string", ".status.phase", "Where the rollout stands."),
        column("Step", "string", ".status.step", "The step in force, and how many there are."),
        column("Weight", "integer", ".status.weight", "Share of requests that go to the canary, in percent."),
        column("Stable", "string", ".status.stableVersion", "The version that serves."),
        column("Canary", "string", ".status.canaryVersion", "The version that is on its way to serve."),
        column("Verdict", "string", ".status.verdict", "What the evidence says about the canary."),
        column("Age", "date", ".metadata.creationTimestamp", "Time since the object was created."),
        column("Evidence", "string", ".status.evidence", "The numbers behind the verdict, in short.", priority=1),
        column("Message", "string", ".status.message", "What the rollout does or waits for.", priority=1),
    ]


def _root_schema() -> JsonSchema:
    return {
        "type": "object",
        "description": DESCRIPTION,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Version of the API: {API_VERSION}."},
            "kind": {"type": "string", "description": f"Kind of the object: {KIND}."},
            "metadata": {"type": "object"},
            "spec": _spec_schema(),
            "status": without_defaults(model_schema(CanaryRolloutStatus)),
        },
    }


def _spec_schema() -> JsonSchema:
    schema = model_schema(CanaryRolloutSpec)
    # A union, like a volume's source: a rule asks for exactly one router, so that others can follow.
    schema["required"] = [name for name in schema["required"] if name != "istio"]
    return with_default_texts(schema)


class _ApiJsonSchema(GenerateJsonSchema):
    """Spells defaults as the API does; pydantic's own way is ISO 8601 with a duration, and ``19/20`` with a share."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, timedelta):
            return format_duration(dft)
        return format_percent(dft) if isinstance(dft, Fraction) else super().encode_default(dft)


def model_schema(model: type[BaseModel]) -> JsonSchema:
    """Return the structural schema of a model."""
    emitted = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_ApiJsonSchema)
    return lower(emitted, emitted.get("$defs", {}), model.__name__)


def lower(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> JsonSchema:
    """Translate what pydantic emits into a structural schema.

    Args:
        schema: A JSON Schema of pydantic's.
        definitions: Its ``$defs``, which structural schemas have no counterpart of.
        path: Where in the model we are, for errors.

    Returns:
        The same as a structural schema: references resolved, optional fields without null, exclusive bounds and
        constants spelled as OpenAPI 3.0 does, no defaults in list items.

    Raises:
        UnsupportedSchemaError: If there is no counterpart; the message names path and keyword.
    """
    source = _resolved(schema, definitions, path)
    result: JsonSchema = {}
    for keyword, value in source.items():
        if keyword in _PLAIN:
            result[keyword] = _prose(value) if keyword == "description" else value
        elif keyword not in _TRANSLATED and keyword not in _DROPPED:
            raise UnsupportedSchemaError(f"{path}: a structural schema has no {keyword!r}")
    if "const" in source:
        result["enum"] = [source["const"]]
    _lower_bounds(source, result, path)
    _lower_members(source, definitions, result, path)
    _lower_default(source, result)
    return result


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> JsonSchema:
    """Replace a reference, an optional type and int-or-string by what they stand for; keywords beside them win."""
    merged = dict(schema)
    while merged.keys() & {"$ref", "anyOf", "allOf"}:
        if "$ref" in merged:
            inner: Mapping[str, Any] = definitions[merged.pop("$ref").rpartition("/")[2]]
        elif "allOf" in merged:
            inner = _only(merged.pop("allOf"), path)
        else:
            choices = [choice for choice in merged.pop("anyOf") if choice.get("type") != "null"]
            if sorted(str(choice.get("type")) for choice in choices) == ["integer", "string"]:
                inner = {"x-kubernetes-int-or-string": True}
            else:
                inner = _only(choices, path)
        rules = [*inner.get("x-kubernetes-validations", ()), *merged.get("x-kubernetes-validations", ())]
        merged = {**inner, **merged}
        if rules:
            merged["x-kubernetes-validations"] = rules
    return merged


def _only(choices: list[Mapping[str, Any]], path: str) -> Mapping[str, Any]:
    if len(choices) != 1:
        raise UnsupportedSchemaError(f"{path}: a structural schema cannot choose among {len(choices)} types")
    return choices[0]


def _lower_bounds(source: Mapping[str, Any], result: JsonSchema, path: str) -> None:
    for exclusive, inclusive, towards in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if exclusive not in source:
            continue
        if source.get("type") == "integer":
            result[inclusive] = source[exclusive] + towards
        elif inclusive in source:
            raise UnsupportedSchemaError(f"{path}: {inclusive} and {exclusive} together")
        else:
            result[inclusive], result[exclusive] = source[exclusive], True
    if source.get("type") == "integer":
        result.setdefault("format", "int64")


def _lower_members(source: Mapping[str, Any], definitions: Mapping[str, Any], result: JsonSchema, path: str) -> None:
    if source.get("x-kubernetes-int-or-string"):
        result["x-kubernetes-int-or-string"] = True
    if "properties" in source:
        result["properties"] = {
            name: lower(member, definitions, f"{path}.{name}") for name, member in source["properties"].items()
        }
        if source.get("required"):
            result["required"] = sorted(source["required"])
    if isinstance(source.get("additionalProperties"), Mapping):
        result["additionalProperties"] = lower(source["additionalProperties"], definitions, f"{path}.*")
    if source.get("type") == "array":
        if "items" not in source:
            raise UnsupportedSchemaError(f"{path}: a list needs one type of items")
        result["items"] = without_defaults(lower(source["items"], definitions, f"{path}[]"))
        result.setdefault("x-kubernetes-list-type", "atomic")


def _lower_default(source: Mapping[str, Any], result: JsonSchema) -> None:
    """Take over a default that says something: of an object, that its members have theirs; never null or empty."""
    default = source.get("default")
    if "properties" in result and isinstance(default, Mapping):
        result["default"] = {}
    elif default is not None and default != []:
        result["default"] = _without_null(default)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_null(member) for member in value]
    return value


def without_defaults(schema: JsonSchema) -> JsonSchema:
    """Return a schema without defaults at any depth.

    Defaults in list items keep Argo CD out of sync for ever, as it compares lists as a whole; a status is the
    operator's own.
    """
    result = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in result:
        result["properties"] = {name: without_defaults(member) for name, member in result["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in result:
            result[key] = without_defaults(result[key])
    return result


def with_default_texts(schema: JsonSchema) -> JsonSchema:
    """Return a schema whose descriptions end with the default of a scalar: ``kubectl explain`` shows no defaults."""
    result = dict(schema)
    default = schema.get("default")
    if isinstance(default, str | int):
        spelled = json.dumps(default) if isinstance(default, bool) else default
        result["description"] = f"{schema['description']} Default: {spelled}."
    if "properties" in schema:
        result["properties"] = {name: with_default_texts(member) for name, member in schema["properties"].items()}
    return result


def _prose(text: str) -> str:
    """Join the lines of each paragraph: kubectl breaks lines itself. Markup becomes what a terminal shows."""
    paragraphs = text.replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main(arguments: list[str] | None = None) -> int:
    """Write the generated file, or with ``--check`` tell whether it is stale (exit status 1)."""
    parser = argparse.ArgumentParser(prog="python -m canaryrollout.api.crd", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="file to write (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the file is stale")
    options = parser.parse_args(arguments)
    content = render()
    if not options.check:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(content, encoding="utf-8")
        return 0
    if options.output.is_file() and options.output.read_text(encoding="utf-8") == content:
        return 0
    sys.stderr.write(f"{options.output} is stale: run `make generate`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
