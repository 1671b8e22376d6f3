"""The faults that `make mutate` puts into the core: small, one at a time, and named so that they can be found again."""

from __future__ import annotations

import ast

import pytest

from tests.mutation.mutants import mutants


def faults(body: str) -> list[str]:
    """Return what the faults of a function are."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return [mutant.key.removeprefix("f: ") for mutant in mutants(f"def f(a: int, b: int) -> int:\n{lines}\n")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b", ["a < b -> a <= b", "a < b -> a > b"]),
        ("return a and b", ["a and b -> b", "a and b -> a"]),
        ("return a or ''", ["a or '' -> ''"]),
        ("return not a", ["not a -> a"]),
        ("return a - 1", ["a - 1 -> a + 1", "a - 1 -> a - 2"]),
        ("return max(a, b)", ["max(a, b) -> min(a, b)"]),
        ("print(a)", ["print(a) -> pass"]),
        ("if a:\n    return b", ["if a: -> if not a:"]),
        ("return g(b, c=True)", ["c=True -> c=False"]),
        ('"""Compare 1 < 2."""', []),
        ("return f'{a:>2}'", []),
    ],
)
def test_each_construct_has_its_faults(body: str, expected: list[str]) -> None:
    assert faults(body) == expected


def test_every_fault_changes_the_module_and_nothing_but_its_place() -> None:
    source = "def f(a, b):\n    x = a < b\n    return x and a == b\n"
    trees = [ast.unparse(mutant.tree()) for mutant in mutants(source)]
    assert len({*trees, source.strip()}) == len(trees) + 1
    assert trees[0] == "def f(a, b):\n    x = a <= b\n    return x and a == b"


def test_a_fault_keeps_its_name_while_lines_move_and_equal_ones_differ() -> None:
    source = "def f(a):\n    g(a + 1)\n    h(a + 1)\n"
    names = [mutant.key for mutant in mutants(source)]
    assert len(set(names)) == len(names)
    assert [mutant.key for mutant in mutants(f"import os\n\n{source}")] == names


def test_a_method_is_told_from_what_runs_at_import() -> None:
    source = "LIMIT = 3\n\n\nclass A:\n    size: int = 1\n\n    def of(self, n=2):\n        return n > 0\n"
    assert {mutant.key: mutant.function for mutant in mutants(source) if " > " not in mutant.key} == {
        "module: LIMIT = 3 -> LIMIT = 4": "",
        "A: size: int = 1 -> size: int = 2": "",
        "of: 2 -> 3": "",
    }
    assert {mutant.function for mutant in mutants(source) if " > " in mutant.key} == {"A.of"}
