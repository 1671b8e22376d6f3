from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, Field

from canaryrollout.api import crd
from canaryrollout.api.rules import ListMap, ListSet, Rule
from canaryrollout.api.spec import ApiModel

REPOSITORY = Path(__file__).resolve().parents[3]


class Inner(ApiModel):
    """An inner object."""

    name: str = "x"
    """Its name."""
    count: int = 3


class Sample(ApiModel):
    """A model with what pydantic spells differently.

    And a second
    paragraph with ``code``.
    """

    plain: str
    """Words on
    two lines."""
    optional: str | None = None
    exact: Annotated[int, Field(gt=0, lt=10)] = 5
    share: Annotated[float, Field(gt=0)] | None = None
    count_or_percent: int | str = 1
    inner: Inner = Inner()
    more: tuple[Inner, ...] = ()
    keyed: Annotated[tuple[Inner, ...], ListMap("name")] = ()
    names: Annotated[tuple[str, ...], ListSet()] = ("a",)
    by_name: dict[str, Inner] = Field(default_factory=dict)
    ruled: Annotated[str, Rule("self != ''", "must not be empty", bool)] | None = None

    rules = (Rule("has(self.optional)", "must have optional", lambda _: True, field_path=".optional"),)


def sample() -> dict[str, Any]:
    return crd.model_schema(Sample)


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}.*")


def test_the_committed_definition_is_fresh() -> None:
    committed = (REPOSITORY / crd.DEFAULT_OUTPUT).read_text(encoding="utf-8")

    assert committed == crd.render(), "run `make generate`"


def test_nothing_of_json_schema_is_left_that_the_api_server_refuses() -> None:
    foreign = {"$ref", "$defs", "anyOf", "allOf", "oneOf", "const", "title", "prefixItems", "exclusiveMinimum"}
    schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    for path, node in (*nodes(schema), *nodes(sample())):
        assert not foreign & node.keys() or node.get("exclusiveMinimum") is True, path


def test_references_are_resolved_and_the_field_describes_itself_better_than_its_type() -> None:
    inner = sample()["properties"]["inner"]

    assert inner["type"] == "object"
    assert inner["description"] == "An inner object."
    assert inner["properties"]["name"] == {"type": "string", "description": "Its name.", "default": "x"}


def test_optional_fields_have_neither_null_nor_default() -> None:
    assert sample()["properties"]["optional"] == {"type": "string"}
    assert sample()["required"] == ["plain"]


def test_exclusive_bounds() -> None:
    assert sample()["properties"]["exact"] == {
        "type": "integer",
        "format": "int64",
        "minimum": 1,
        "maximum": 9,
        "default": 5,
    }
    assert sample()["properties"]["share"] == {"type": "number", "minimum": 0, "exclusiveMinimum": True}


def test_int_or_string() -> None:
    assert sample()["properties"]["countOrPercent"] == {"x-kubernetes-int-or-string": True, "default": 1}


def test_an_object_defaults_to_the_defaults_of_its_members_and_a_list_item_has_none() -> None:
    properties = sample()["properties"]

    assert properties["inner"]["default"] == {}
    assert properties["names"]["default"] == ["a"]
    for name in ("more", "keyed"):
        assert "default" not in properties[name]
        assert all("default" not in node for _, node in nodes(properties[name]["items"]))


def test_lists_say_how_they_merge() -> None:
    properties = sample()["properties"]

    assert properties["more"]["x-kubernetes-list-type"] == "atomic"
    assert properties["keyed"]["x-kubernetes-list-type"] == "map"
    assert properties["keyed"]["x-kubernetes-list-map-keys"] == ["name"]
    assert properties["names"]["x-kubernetes-list-type"] == "set"


def test_mappings_describe_their_values() -> None:
    by_name = sample()["properties"]["byName"]

    assert by_name["type"] == "object"
    assert by_name["additionalProperties"]["properties"].keys() == {"name", "count"}


def test_rules_of_a_type_and_of_a_model() -> None:
    assert sample()["properties"]["ruled"]["x-kubernetes-validations"] == [
        {"rule": "self != ''", "message": "must not be empty"}
    ]
    assert sample()["x-kubernetes-validations"] == [
        {"rule": "has(self.optional)", "message": "must have optional", "fieldPath": ".optional"}
    ]


def test_prose_loses_line_breaks_and_keeps_paragraphs() -> None:
    assert sample()["properties"]["plain"]["description"] == "Words on two lines."
    assert sample()["description"].endswith("differently.\n\nAnd a second paragraph with `code`.")


class Pair(BaseModel):
    """A tuple of different things."""

    both: tuple[int, str]


class Choice(BaseModel):
    """A union of objects."""

    either: Inner | Pair


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Pair, "Pair.both: a structural schema has no 'prefixItems'"),
        (Choice, "Choice.either: a structural schema cannot choose among 2 types"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_path(model: type[BaseModel], message: str) -> None:
    with pytest.raises(crd.UnsupportedSchemaError) as refusal:
        crd.model_schema(model)

    assert str(refusal.value) == message


def test_constants_become_an_enumeration_of_one() -> None:
    assert crd.lower({"const": "a", "title": "A"}, {}, "x") == {"enum": ["a"]}


def test_generate_writes_and_check_tells_whether_it_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "crd.yaml"

    assert crd.main(["--check", "--output", str(output)]) == 1
    assert crd.main(["--output", str(output)]) == 0
    assert crd.main(["--check", "--output", str(output)]) == 0
    assert yaml.safe_load(output.read_text(encoding="utf-8")) == crd.definition()

    capsys.readouterr()
    output.write_text(output.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    assert crd.main(["--check", "--output", str(output)]) == 1
    assert capsys.readouterr().err == f"{output} is stale: run `make generate`\n"


def test_every_field_is_described() -> None:
    schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    # Scalars in lists and maps are described by the field they are in.
    described = [
        (path, node)
        for path, node in nodes(schema)
        if path.startswith((".spec", ".status")) and not (path.endswith(("[]", ".*")) and node.get("type") != "object")
    ]

    assert len(described) > 100
    assert [path for path, node in described if len(node.get("description", "")) < 10] == []
