"""Small faults for a module, one at a time: what a slip of the pen or of the mind would leave behind.

Comparisons are turned or moved by one, conditions negated, ``and`` and ``or`` exchanged, numbers changed by one, sums
and differences exchanged, and calls whose result nobody uses left out. Tests that stay green on such a module did not
look there.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

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


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one fault.

    Attributes:
        line: Where it is.
        before: The expression or statement as it was.
        after: As it is now.
        tree: The module.
    """

    line: int
    before: str
    after: str
    tree: ast.Module

    @property
    def key(self) -> str:
        """Return a name that stays while lines move."""
        return f"{_short(self.before)} -> {_short(self.after)}"


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, from top to bottom; type annotations and docstrings are left alone."""
    places = list(_places(ast.parse(source)))
    for index, place in enumerate(places):
        for change in _changes(place):
            tree = ast.parse(source)
            node = list(_places(tree))[index]
            before = ast.unparse(node)
            after = change(copy.deepcopy(node))
            _Replace(node, after).visit(tree)
            ast.fix_missing_locations(tree)
            line = getattr(place, "lineno", 0)
            yield Mutant(line, before, ast.unparse(after), tree)


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs, in order: annotations, docstrings and texts say nothing that could go wrong."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params") or isinstance(tree, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _places(child)


def _changes(node: ast.AST) -> Iterator[Callable[[ast.AST], ast.AST]]:
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARISONS[type(op)]:
                yield partial(_with, ops=[other()])
        case ast.BoolOp(op=op):
            yield lambda n: _with(n, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not()):
            yield lambda n: n.operand  # type: ignore[attr-defined]
        case ast.If() | ast.IfExp():
            if not isinstance(node.test, ast.Compare | ast.UnaryOp) and not _is_typing(node.test):
                yield lambda n: _with(n, test=ast.UnaryOp(ast.Not(), n.test))  # type: ignore[attr-defined]
        case ast.Constant(value=bool() as truth):
            yield lambda n: ast.Constant(not truth)
        case ast.Constant(value=int() as number):
            yield lambda n: ast.Constant(number + 1)
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC and not isinstance(node.left, ast.JoinedStr):
            yield lambda n: _with(n, op=_ARITHMETIC[type(op)]())
        case ast.Expr(value=ast.Call()):
            yield lambda n: ast.Pass()


def _is_typing(test: ast.AST) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _with(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _short(text: str) -> str:
    first = text.splitlines()[0]
    return first if len(first) <= 100 else f"{first[:97]}..."


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else super().generic_visit(node)
