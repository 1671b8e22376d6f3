"""Small faults for a module, one at a time: what a slip of the pen or of the mind would leave behind.

Comparisons are turned or moved by one, conditions negated, one side of an ``and`` or ``or`` left out, numbers changed
by one, sums and differences, smallest and largest, any and all exchanged, and calls whose result nobody uses left out.
Tests that stay green on such a module did not look there.
"""

from __future__ import annotations

import ast
import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
}
_OPPOSITES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_TELLING: Final = (ast.expr, ast.keyword, ast.Assign, ast.AnnAssign)
"""What is shown of a fault in a number: a number alone says nothing."""
_SILENT: Final = ("annotation", "returns", "decorator_list", "type_params", "cause")
"""Fields of the syntax tree in which nothing can go wrong while a program runs."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one fault.

    Attributes:
        function: Qualified name of the function with the fault; empty where it runs at import.
        statement: Line in which the statement with the fault begins.
        line: Where the fault is.
        key: What it is, named so that it stays the same while lines move.
        around: Text of the outermost function, or of the statement where it runs at import; lines in it say nothing.
        source: Text of the module without the fault.
        place: Which of its places has the fault.
        change: Which of the changes to that place it is.
    """

    function: str
    statement: int
    line: int
    key: str
    around: str
    source: str
    place: int
    change: int

    def tree(self) -> ast.Module:
        """Return the module with the fault."""
        tree = ast.parse(self.source)
        place = list(_places(tree))[self.place]
        place.put(list(_changes(place.node))[self.change](copy.deepcopy(place.node)))
        return ast.fix_missing_locations(tree)


@dataclass(frozen=True, slots=True)
class _Place:
    node: ast.AST
    parents: tuple[ast.AST, ...]
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        """Put another node here."""
        if self.index is None:
            setattr(self.parents[-1], self.field, node)
        else:
            getattr(self.parents[-1], self.field)[self.index] = node

    @property
    def function(self) -> str:
        """Return the function that runs this, named like the outermost one with a class before it."""
        names: list[str] = []
        for parent, child in zip(self.parents, (*self.parents[1:], self.node), strict=True):
            if isinstance(parent, ast.ClassDef):
                names.append(parent.name)
            elif isinstance(parent, ast.FunctionDef):
                return ".".join([*names, parent.name]) if child in parent.body else ""
        return ""

    @property
    def definition(self) -> str:
        """Return the name of the function or class that has this in its head or among its fields."""
        named = (node.name for node in reversed(self.parents) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        return next(named, "module")

    @property
    def around(self) -> ast.AST:
        """Return what has to stay as it is for a result to hold: the outermost function, else the statement."""
        functions = (node for node in (*self.parents, self.node) if isinstance(node, ast.FunctionDef))
        return next(functions, None) or self._statement

    @property
    def _statement(self) -> Any:
        return next(node for node in (self.node, *reversed(self.parents)) if isinstance(node, ast.stmt))

    @property
    def statement(self) -> int:
        """Return the line in which the statement begins."""
        return int(self._statement.lineno)


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, from top to bottom; type annotations, docstrings and texts are left alone."""
    names: Counter[str] = Counter()
    text = functools.cache(ast.unparse)
    for index, place in enumerate(_places(ast.parse(source))):
        function, statement, around = place.function, place.statement, text(place.around)
        for number, change in enumerate(_changes(place.node)):
            shown = _shown(place)
            before = _short(ast.unparse(shown))
            after = change(copy.deepcopy(place.node))
            place.put(after)
            changed = _short(ast.unparse(after if shown is place.node else shown))
            name = f"{function or place.definition}: {before} -> {changed}"
            place.put(place.node)
            names[name] += 1
            key = name if names[name] == 1 else f"{name} ({names[name]})"
            line = getattr(place.node, "lineno", statement)
            yield Mutant(function, statement, line, key, around, source, index, number)


def _shown(place: _Place) -> ast.AST:
    """Return what is shown of a fault."""
    around = place.parents[-1]
    return around if isinstance(place.node, ast.Constant) and isinstance(around, _TELLING) else place.node


def _places(tree: ast.AST, parents: tuple[ast.AST, ...] = ()) -> Iterator[_Place]:
    """Walk what runs, in order."""
    above = (*parents, tree)
    for name, value in ast.iter_fields(tree):
        if name in _SILENT or isinstance(tree, ast.JoinedStr):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield _Place(child, above, name, index)
                yield from _places(child, above)


def _changes(node: ast.AST) -> Iterator[Callable[[Any], ast.AST]]:
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARISONS[type(op)]:
                yield partial(_with, ops=[other()])
        case ast.BoolOp(values=values):
            for index, value in enumerate(values):
                if not isinstance(value, ast.Constant):  # what a default is for, the type checker knows
                    yield partial(_without, index=index)
        case ast.If() | ast.IfExp():
            if not isinstance(node.test, ast.Compare | ast.UnaryOp) and not _is_typing(node.test):
                yield lambda n: _with(n, test=ast.UnaryOp(ast.Not(), n.test))
        case _:
            yield from _small_changes(node)


def _small_changes(node: ast.AST) -> Iterator[Callable[[Any], ast.AST]]:
    match node:
        case ast.UnaryOp(op=ast.Not()):
            yield lambda n: n.operand
        case ast.Constant(value=bool() as truth):
            yield lambda n: ast.Constant(not truth)
        case ast.Constant(value=int() as number):
            yield lambda n: ast.Constant(number + 1)
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC and not isinstance(node.left, ast.JoinedStr):
            yield lambda n: _with(n, op=_ARITHMETIC[type(op)]())
        case ast.Call(func=ast.Name(id=name)) if name in _OPPOSITES:
            yield lambda n: _with(n, func=ast.Name(_OPPOSITES[name], ast.Load()))
        case ast.Expr(value=ast.Call()):
            yield lambda n: ast.Pass()


def _is_typing(test: ast.AST) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _with(node: Any, **fields: object) -> Any:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _without(node: Any, index: int) -> Any:
    rest = [value for at, value in enumerate(node.values) if at != index]
    return rest[0] if len(rest) == 1 else _with(node, values=rest)


def _short(text: str) -> str:
    first = text.splitlines()[0]
    return first if len(first) <= 100 else f"{first[:97]}..."
