"""Whoever meets a reason in a status finds it in docs/reasons.md, and finds none there that is gone.

A reason is a text that the code gives for a parameter or field called ``reason`` of the core (``domain`` and
``api/status.py``), whoever calls it: ``draft.move``, ``draft.note``, ``rollback.begin``, ``Refused``, ``GateResult``,
``Event``... The text is followed from there, without running anything, through names, tuples, conditions, constants,
enumerations and what functions return. What another ``reason`` hands on was found where that one came from. A value
that cannot be followed fails the test, so that no word comes in unseen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "operator" / "canaryrollout"
PAGE: Final = ROOT / "docs" / "reasons.md"
REASON: Final = "reason"
GATES: Final = "Gates"
"""The section of the page about `status.gates`; its words are those of the modules that judge."""
JUDGING: Final = frozenset(
    f"domain/{name}.py" for name in ("gates", "metric_gates", "rates", "results", "sequential", "threshold")
) | {"adapters/promql_values.py", "adapters/prometheus_own.py"}
HANDED_ON: Final = {
    ("domain/draft.py", "_condition"): "gets as a tuple what `move` and `condition` were given, and both are followed"
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """A source file, with what its names may stand for."""

    name: str
    tree: ast.Module
    constants: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    slots: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Position and name of the argument that is a reason, by what is called."""

    @property
    def is_core(self) -> bool:
        return self.name.startswith("domain/") or self.name == "api/status.py"


@dataclass(frozen=True)
class Place:
    """Where an expression stands: its module, and the functions around it, outermost first."""

    module: Module
    functions: tuple[Function, ...] = ()


class Reasons:
    """Finds the reasons in source files, given by their paths below the package."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.unclear: set[str] = set()
        self.handed_on: set[tuple[str, str]] = set()
        self._modules = [Module(name, ast.parse(text, name)) for name, text in sources.items()]
        self._following: list[ast.expr] = []
        self._enums: dict[str, dict[str, str]] = {}
        self._enum_fields: dict[str, set[str]] = {}
        for module in self._modules:
            self._take_in(module)
        for module in self._modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    self._enum_fields.setdefault(node.target.id, set()).update(self._members(node.annotation))

    def words(self) -> dict[str, set[str]]:
        """Return the reasons that each module gives; fills `unclear` with the places that could not be followed."""
        while True:
            known = sum(len(module.slots) for module in self._modules)
            self.unclear = set()
            found = {module.name: set(self._given(module.tree, Place(module))) - {""} for module in self._modules}
            if known == sum(len(module.slots) for module in self._modules):
                return found

    def _take_in(self, module: Module) -> None:
        for statement in module.tree.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(text))):
                    module.constants[name] = text
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                module.functions[node.name] = node
                names = _parameters(node)
                if module.is_core and REASON in names:
                    module.slots[node.name] = names.index(REASON), REASON
            elif isinstance(node, ast.ClassDef):
                annotated = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
                fields = [target.id for target in annotated if isinstance(target, ast.Name)]
                if module.is_core and REASON in fields:
                    module.slots[node.name] = fields.index(REASON), REASON
                if any(isinstance(base, ast.Name) and base.id == "StrEnum" for base in node.bases):
                    self._enums[node.name] = _members(node)

    def _members(self, annotation: ast.expr) -> set[str]:
        return set(self._enums.get(annotation.id, {}).values()) if isinstance(annotation, ast.Name) else set()

    def _slot(self, name: str, module: Module) -> tuple[int, str] | None:
        """Return which argument is the reason: of what the module itself defines, else of what the core does."""
        everywhere = [other for other in self._modules if other.is_core and not name.startswith("_")]
        return next((found.slots[name] for found in (module, *everywhere) if name in found.slots), None)

    def _given(self, node: ast.AST, place: Place) -> Iterator[str]:
        """Yield every reason that is given in a piece of code."""
        if isinstance(node, Function):
            place = Place(place.module, (*place.functions, node))
        for default in _defaults(node, place.module):
            yield from self._values(default, place)
        if isinstance(node, ast.Call):
            for given in self._arguments(node, place.module):
                yield from self._values(given, place)
        for child in ast.iter_child_nodes(node):
            yield from self._given(child, place)

    def _arguments(self, call: ast.Call, module: Module) -> Iterator[ast.expr]:
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        position, keyword = self._slot(name, module) or (len(call.args), REASON if module.is_core else "")
        if position < len(call.args):
            yield call.args[position]
        yield from (given.value for given in call.keywords if given.arg == keyword)

    def _values(self, node: ast.expr, place: Place, index: int | None = None) -> Iterator[str]:
        """Yield what an expression may be; with an index, what that part of a tuple may be."""
        match node:
            case ast.Constant(value=None) | ast.Attribute(attr="reason"):
                return
            case ast.Constant(value=str(word)) if index is None:
                yield word
            case ast.Tuple(elts=parts) if index is not None:
                yield from self._values(parts[index], place)
            case ast.IfExp(body=one, orelse=other):
                yield from self._values(one, place, index)
                yield from self._values(other, place, index)
            case ast.BoolOp(values=choices):
                for choice in choices:
                    yield from self._values(choice, place, index)
            case ast.Attribute(attr="value", value=member):
                yield from self._values(member, place)
            case ast.Attribute(value=ast.Name(id=name), attr=member) if name in self._enums:
                yield self._enums[name][member]
            case ast.Attribute(attr=name) if self._enum_fields.get(name):
                yield from self._enum_fields[name]
            case ast.Call(func=ast.Name(id=name)):
                yield from self._returned(name, node, place, index)
            case ast.Name(id=name):
                yield from self._named(name, node, place, index)
            case _:
                self._give_up(node, place)

    def _returned(self, name: str, node: ast.expr, place: Place, index: int | None) -> Iterator[str]:
        function = place.module.functions.get(name)
        if name in self._enums:
            yield from self._enums[name].values()
        elif function is None:
            self._give_up(node, place)
        else:
            for part in ast.walk(function):
                if isinstance(part, ast.Return) and part.value is not None:
                    yield from self._values(part.value, Place(place.module, (function,)), index)

    def _named(self, name: str, node: ast.expr, place: Place, index: int | None) -> Iterator[str]:
        for function in reversed(place.functions):
            handed = name in _parameters(function) and index is None
            if handed:
                place.module.slots.setdefault(function.name, (_parameters(function).index(name), name))
            assigned = list(_assigned(function, name))
            for value, part in assigned:
                if part is not None and index is not None:
                    self._give_up(node, place)
                elif value not in self._following:
                    self._following.append(value)
                    yield from self._values(value, place, part if index is None else index)
                    self._following.remove(value)
            if handed or assigned:
                return
        constant = self._constant(name, place.module)
        if constant is None:
            self._give_up(node, place)
        else:
            yield constant

    def _constant(self, name: str, module: Module) -> str | None:
        if name in module.constants:
            return module.constants[name]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and any((known.asname or known.name) == name for known in node.names):
                path = (node.module or "").removeprefix("canaryrollout.").replace(".", "/") + ".py"
                return next((other.constants.get(name) for other in self._modules if other.name == path), None)
        return None

    def _give_up(self, node: ast.expr, place: Place) -> None:
        allowed = {(place.module.name, function.name) for function in place.functions} & HANDED_ON.keys()
        self.handed_on |= allowed
        if not allowed:
            self.unclear.add(f"{place.module.name}:{node.lineno}: cannot tell which words `{ast.unparse(node)}` may be")


def _parameters(function: Function) -> list[str]:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _defaults(node: ast.AST, module: Module) -> Iterator[ast.expr]:
    """Yield what a reason is where nothing is given for it."""
    if isinstance(node, ast.ClassDef) and node.name in module.slots:
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and part.value is not None]
        yield from (f.value for f in fields if f.value and isinstance(f.target, ast.Name) and f.target.id == REASON)
    elif isinstance(node, Function) and node.name in module.slots:
        arguments, (_, reason) = node.args, module.slots[node.name]
        positional = [*arguments.posonlyargs, *arguments.args]
        given = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
        given += [
            (argument, value)
            for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if value
        ]
        yield from (value for argument, value in given if argument.arg == reason)


def _members(enum: ast.ClassDef) -> dict[str, str]:
    return {
        target.id: node.value.value
        for node in enum.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def _assigned(function: Function, name: str) -> Iterator[tuple[ast.expr, int | None]]:
    """Yield what a local name is assigned, with its place where a tuple is taken apart."""
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        match node:
            case ast.Assign():
                targets = node.targets
            case ast.AnnAssign() | ast.NamedExpr():
                targets = [node.target]
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            for part, one in enumerate(parts):
                if isinstance(one, ast.Name) and one.id == name and (value := getattr(node, "value", None)) is not None:
                    yield value, part if isinstance(target, ast.Tuple) else None


@dataclass(frozen=True)
class Row:
    """A row of a table of reasons."""

    section: str
    words: tuple[str, ...]
    meaning: str


def rows(page: str) -> Iterator[Row]:
    """Yield the rows of every table that has a column `reason`."""
    section, header = "", list[str]()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if not cells:
            header = []
        elif not header:
            header = cells
        elif REASON in header and set(line) - set("|- "):
            assert len(cells) == len(header), f"{len(header)} cells are wanted in: {line}"
            told = dict(zip(header, cells, strict=True))
            yield Row(section, tuple(re.findall(r"`(\w+)`", told[REASON])), told["what it means"])


def sources() -> dict[str, str]:
    paths = [path for part in ("api", "domain", "engine", "adapters", "shell") for path in (SOURCE / part).glob("*.py")]
    return {path.relative_to(SOURCE).as_posix(): path.read_text() for path in sorted(paths)}


@pytest.fixture(scope="module")
def found() -> Reasons:
    return Reasons(sources())


@pytest.fixture(scope="module")
def given(found: Reasons) -> Mapping[str, set[str]]:
    return found.words()


@pytest.fixture(scope="module")
def table() -> tuple[Row, ...]:
    return tuple(rows(PAGE.read_text()))


def among(given: Mapping[str, set[str]], gates: bool) -> set[str]:
    return set().union(*(words for module, words in given.items() if (module in JUDGING) is gates))


def explained(table: tuple[Row, ...], gates: bool) -> set[str]:
    return {word for row in table if (row.section == GATES) is gates for word in row.words}


@pytest.mark.parametrize("gates", [False, True], ids=["outside of Gates", "under Gates"])
def test_every_reason_that_a_user_can_meet_is_explained(
    given: Mapping[str, set[str]], table: tuple[Row, ...], gates: bool
) -> None:
    missing = among(given, gates) - explained(table, gates)
    places = {word: sorted(module for module in given if word in given[module]) for word in sorted(missing)}
    assert not missing, f"docs/reasons.md has no row for these, {'under' if gates else 'outside of'} Gates: {places}"


@pytest.mark.parametrize("gates", [False, True], ids=["outside of Gates", "under Gates"])
def test_no_reason_is_explained_that_is_gone(
    given: Mapping[str, set[str]], table: tuple[Row, ...], gates: bool
) -> None:
    gone = explained(table, gates) - among(given, gates)
    where = "under" if gates else "outside of"
    assert not gone, f"docs/reasons.md explains, {where} Gates, what no code gives there: {sorted(gone)}"


def test_every_value_of_a_reason_can_be_followed(found: Reasons, given: Mapping[str, set[str]]) -> None:
    assert given
    assert not found.unclear, "\n".join(sorted(found.unclear))
    assert found.handed_on == HANDED_ON.keys(), "an exception that nothing needs any more"


def test_a_reason_is_one_word(given: Mapping[str, set[str]]) -> None:
    odd = {word for words in given.values() for word in words if not re.fullmatch(r"[A-Z][A-Za-z]+", word)}
    assert not odd


def test_no_row_is_without_a_meaning_and_no_section_has_a_reason_twice(table: tuple[Row, ...]) -> None:
    assert [row for row in table if not row.meaning] == []
    told = [(row.section, row.meaning, word) for row in table for word in row.words]
    assert len(told) == len(set(told))


CORE = """
class Refused:
    reason: str
    message: str
class State(StrEnum):
    DONE = "Done"
class Finding:
    state: State
AWAY: Final = "Away"
def move(phase: str, reason: str, message: str) -> None: ...
def found(x):
    return None if x else ("Found", "in words")
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(): move('phase', 'Given', 'm')", {"Given"}),
        ("def f(): move('phase', message='m', reason='Given')", {"Given"}),
        ("def f(x): move('phase', 'One' if x else 'Other', '')", {"One", "Other"}),
        ("def f(x): move('phase', x.reason or 'Else', '')", {"Else"}),
        ("def f(): move('phase', AWAY, '')", {"Away"}),
        ("def f(x):\n why, message = ('One', '') if x else (AWAY, '')\n move('phase', why, message)", {"One", "Away"}),
        ("def f(x):\n answer = found(x)\n why, message = answer\n move('phase', why, message)", {"Found"}),
        ("def f(x): move('phase', x.state.value, '')", {"Done"}),
        ("def f(x): return replace(x, reason='Replaced')", {"Replaced"}),
        ("def f(x): return Refused('Refused', 'm')", {"Refused"}),
        ("def f(x, why): move('phase', why, '')\ndef g(x): f(x, 'Handed')", {"Handed"}),
        ("def f(x, why=''):\n why = why or 'Else'\n move('phase', why, '')\ndef g(x): f(x)", {"Else"}),
        ("def f(reason='Default', *, x=1): ...\nclass Other:\n reason: str = 'Usual'", {"Default", "Usual"}),
        ("def f(x): log('Not', reason=x.reason)", set()),
    ],
)
def test_words_are_found_however_they_get_there(code: str, words: set[str]) -> None:
    found = Reasons({"domain/core.py": CORE + code})
    assert (found.words()["domain/core.py"], found.unclear) == (words, set())


def test_a_value_that_cannot_be_followed_is_named() -> None:
    found = Reasons({"domain/core.py": CORE, "engine/a.py": "def f(x):\n move('phase', x['why'], '')"})
    assert found.words()["engine/a.py"] == set()
    assert found.unclear == {"engine/a.py:2: cannot tell which words `x['why']` may be"}
