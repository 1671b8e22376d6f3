"""Validation rules, each written once for the API server and once for the operator.

The API server refuses a bad object at ``kubectl apply``, with the rule as CEL in the CRD. The operator checks the same
rules again on what it reads, because an object may have been stored before a rule existed. A rule broken there does not
make the spec unreadable: a rollout that is under way must still know which traffic to take back. So models parse
leniently (what the code could not work with is a parse error, everything else is a rule), and `problems` judges.

Both halves of a rule stand side by side, and tests hold them to the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

JsonSchema = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """One rule on a field (as ``Annotated`` metadata) or on a model (in its ``rules``).

    Attributes:
        cel: The rule for the API server; ``self`` is the value.
        message: What the value must be, in words that follow "Invalid value: ...:", with an example.
        holds: The rule for the operator, on the parsed value; ``None`` for a rule on changes (``oldSelf``), which
            only the API server can judge.
        field_path: The member that the error is about, such as ``.hold``, for a rule on a model.
        reason: Reason of the API server's error, ``FieldValueInvalid`` unless told.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None
    field_path: str = ""
    reason: str = ""

    def as_object(self) -> JsonSchema:
        """Return the rule as an entry of ``x-kubernetes-validations``."""
        entry = {"rule": self.cel, "message": self.message}
        if self.field_path:
            entry["fieldPath"] = self.field_path
        if self.reason:
            entry["reason"] = self.reason
        return entry

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the rule to the schema of the annotated type."""
        return with_rules(handler(core_schema), (self,))


@dataclass(frozen=True)
class ListMap:
    """Marks a list whose items are told apart by a key: unique, and merged item by item by server-side apply."""

    key: str

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the list type to the schema of the annotated type."""
        return {**handler(core_schema), "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}


@dataclass(frozen=True)
class ListSet:
    """Marks a list of scalars without duplicates."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the list type to the schema of the annotated type."""
        return {**handler(core_schema), "x-kubernetes-list-type": "set"}


def with_rules(schema: JsonSchema, rules: tuple[Rule, ...]) -> JsonSchema:
    """Return a schema with more rules."""
    entries = [*schema.get("x-kubernetes-validations", ()), *(rule.as_object() for rule in rules)]
    return {**schema, "x-kubernetes-validations": entries} if entries else schema


def cel_string(text: str) -> str:
    """Spell a text as a CEL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def matching(pattern: str, message: str) -> Rule:
    """Return the rule that a string matches a regular expression (of the syntax RE2 and Python share)."""
    compiled = re.compile(pattern)
    return Rule(
        cel=f"self.matches({cel_string(pattern)})",
        message=message,
        holds=lambda value: compiled.fullmatch(value) is not None,
    )


def unchangeable(message: str) -> Rule:
    """Return the rule that a field keeps the value it was created with."""
    return Rule(cel="self == oldSelf", message=message, holds=None)
