"""Queries of users' own on a Prometheus that many share: what is sent, and the proof that it reads one namespace only.

Who may write a CanaryRollout makes the operator ask queries with the operator's rights. An administrator who does not
want that to reach other namespaces lets a provider answer no such queries, or enforces a matcher on the namespace in
every selector. The latter is only worth something if it cannot be got around, so it is not a rewrite but a proof:

1. The query is written anew in the plainest spelling: double quotes, the fewest escapes, no comments. Where two parsers
   of PromQL could disagree on what was written, they agree on that.
2. It is parsed. Each function in it has to be one that reads nothing but its arguments; ``info()``, which reads series
   that no selector names, and functions that the parser does not know are refused. So are ``or`` between matchers,
   which only some servers know, and a matcher that asks for another namespace by name and could never match.
3. The matcher is put into every selector of the text, in front of the user's own, which stay: all of them have to hold.
4. The result is parsed again. It has to be the first one, tree by tree, but for one more matcher in each selector.

Whatever does not come out of this is refused with the reason. Where queries are allowed as they are none of this is
done: the server knows its own dialect best, and says itself what it does not understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Final

import promql_parser as ast

from canaryrollout.adapters.prometheus_provider import CustomQueries
from canaryrollout.adapters.promql_text import Kind, QueryRefused, Token, fill, literal, meaning, shorten, tokens
from canaryrollout.api.quantities import format_duration
from canaryrollout.domain.evidence import EvidenceRequest

__all__ = ["QueryRefused", "check", "enforce", "fill", "own_query", "variables_of"]

MAX_TOKENS: Final = 500
"""How many tokens a query may have that is parsed: the parser's stack, and the time it takes, grow with nesting."""

# fmt: off
FUNCTIONS: Final = frozenset({
    "abs", "absent", "absent_over_time", "acos", "acosh", "asin", "asinh", "atan", "atanh", "avg_over_time", "ceil",
    "changes", "clamp", "clamp_max", "clamp_min", "cos", "cosh", "count_over_time", "day_of_month", "day_of_week",
    "day_of_year", "days_in_month", "deg", "delta", "deriv", "double_exponential_smoothing", "end", "exp",
    "first_over_time", "floor", "histogram_avg", "histogram_count", "histogram_fraction", "histogram_quantile",
    "histogram_quantiles", "histogram_stddev", "histogram_stdvar", "histogram_sum", "holt_winters", "hour", "idelta",
    "increase", "irate", "label_join", "label_replace", "last_over_time", "ln", "log10", "log2", "mad_over_time",
    "max_over_time", "min_over_time", "minute", "month", "pi", "predict_linear", "present_over_time",
    "quantile_over_time", "rad", "range", "rate", "resets", "round", "scalar", "sgn", "sin", "sinh", "sort",
    "sort_by_label", "sort_by_label_desc", "sort_desc", "sqrt", "start", "stddev_over_time", "stdvar_over_time",
    "step", "sum_over_time", "tan", "tanh", "time", "timestamp", "ts_of_first_over_time", "ts_of_last_over_time",
    "ts_of_max_over_time", "ts_of_min_over_time", "vector", "year",
})
# fmt: on
"""Functions of Prometheus that read nothing but their arguments."""

_LABEL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NAME: Final = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_LISTS: Final = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
"""Words before a list of labels."""
_KEYWORDS: Final = _LISTS | {"and", "or", "unless", "atan2", "bool", "offset", "start", "end", "inf", "nan"}
"""Words that are no metric where they stand alone; a metric of such a name needs ``{__name__="..."}``."""
_GROUPINGS: Final = frozenset({"by", "without"})
_MARKS: Final = frozenset("(){}[],=!~<>+-*/%^@:") | {"=~", "!~", "!=", "==", "<=", ">="}

Shape = tuple[object, ...]
"""A parsed query as something that can be compared."""


def own_query(
    query_text: str, variables: Mapping[str, str], policy: CustomQueries, namespace_label: str, field: str
) -> str:
    """Return a query of the user's own as it is sent.

    Args:
        query_text: The query as the user wrote it.
        variables: Values of its variables, see `variables_of`.
        policy: What the administrator allows on this provider.
        namespace_label: The label that enforced matchers are put on.
        field: The field that the query is from, such as ``analysis.metrics[failures].query``.

    Returns:
        The query with its variables filled in, and with the matcher where it is enforced.

    Raises:
        QueryRefused: If it is not sent; the message names field and query and says what would be right.
    """
    where = f"{field} ({shorten(query_text)})"
    if policy is CustomQueries.FORBIDDEN:
        raise QueryRefused(
            f"{where} is not asked: the administrator lets this provider answer the built-in gates only; "
            "remove the metric or name another provider"
        )
    prepared = _prepared(query_text, tuple(sorted(variables.items())), policy, namespace_label)
    if isinstance(prepared, QueryRefused):
        raise QueryRefused(f"{where} {prepared}")
    return prepared


@lru_cache(maxsize=256)
def _prepared(
    text: str, variables: tuple[tuple[str, str], ...], policy: CustomQueries, namespace_label: str
) -> str | QueryRefused:
    """Return a query as it is sent, or why it is not: the same ones are asked every few seconds, refused ones too."""
    values = dict(variables)
    try:
        filled = fill(text, values)
        if policy is CustomQueries.NAMESPACE_ENFORCED:
            return enforce(filled, namespace_label, values.get("namespace", ""))
    except QueryRefused as refusal:
        return QueryRefused(*refusal.args)  # without the traceback
    return filled


def variables_of(request: EvidenceRequest) -> dict[str, str]:
    """Return the values of the variables of a query.

    Args:
        request: The evidence that the query is part of.
    """
    return {
        "namespace": request.namespace,
        "host": request.host,
        "stable": request.stable,
        "canary": request.canary,
        "interval": format_duration(request.interval),
        "weight": str(request.weight),
    }


def check(text: str) -> None:
    """See that a query, its variables filled in, is PromQL.

    Raises:
        QueryRefused: If it is not, or not as far as the parser knows; newer servers may know more functions.
    """
    plain = _text(_plain(text))
    with _trouble():
        ast.parse(plain)


def enforce(text: str, label: str, namespace: str) -> str:
    """Return a query that reads no series but those of one namespace.

    Args:
        text: The query, its variables filled in.
        label: The label that holds the namespace.
        namespace: The namespace.

    Returns:
        The query in plain spelling, with the matcher in every selector.

    Raises:
        QueryRefused: If that cannot be proved.
    """
    if _LABEL.fullmatch(label) is None or label == "__name__":
        raise QueryRefused(f"is not asked: the provider's namespaceLabel {label!r} is no label that can be matched")
    if _NAMESPACE.fullmatch(namespace) is None:
        raise QueryRefused(f"is not asked: {namespace!r} is no namespace")
    plain = _plain(text)
    guarded = _text(_with_matcher(plain, f"{label}={literal(namespace)}"))
    with _trouble():
        before = ast.parse(_text(plain))
        _reads_only_selectors(before)
        _asks_for_no_other(before, label, namespace)
        if not _guards(ast.parse(guarded), before, (str(ast.MatchOp.Equal), label, namespace)):
            raise QueryRefused(
                f"is not asked: it cannot be proved that it reads namespace {namespace} only. "
                'Spell metrics whose names are words of PromQL as {__name__="..."}'
            )
    return guarded


def _plain(text: str) -> tuple[Token, ...]:
    """Spell a query so that every parser of PromQL reads the same."""
    found = []
    for token in tokens(text):
        if token.kind is Kind.STRING:
            found.append(Token(Kind.STRING, literal(meaning(token.text))))
        elif token.silent:
            found.append(Token(Kind.SPACE, " "))
        elif token.kind is Kind.VARIABLE or (token.kind is Kind.MARK and token.text not in _MARKS):
            raise QueryRefused(f"has {token.text!r} outside of quotes, which is no PromQL")
        else:
            found.append(token)
    if sum(not token.silent for token in found) > MAX_TOKENS:
        raise QueryRefused(f"has more than {MAX_TOKENS} names, numbers and signs; make it shorter")
    return tuple(found)


def _text(found: Iterable[Token]) -> str:
    return "".join(token.text for token in found).strip()


@contextmanager
def _trouble() -> Iterator[None]:
    """Turn what the parser raises, and trees too deep to look at, into a refusal."""
    try:
        yield
    except QueryRefused:
        raise
    except RecursionError as error:
        raise QueryRefused("is nested too deeply; make it shorter") from error
    except (ValueError, OverflowError) as error:
        raise QueryRefused(f"cannot be read as PromQL: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a panic of the parser, which is Rust, arrives here
            raise
        raise QueryRefused(f"cannot be read as PromQL: {error}") from None


def _guards(after: ast.Expr, before: ast.Expr, mine: Shape) -> bool:
    """Tell whether a query is another with one more matcher in every selector.

    The parser's own walk looks for a selector without it as well, so that a node overlooked here is found there.
    """

    def guarded(node: ast.Expr) -> bool:
        return not isinstance(node, ast.VectorSelector) or (
            mine in map(_matcher, node.matchers.matchers) and not node.matchers.or_matchers
        )

    return ast.walk(after, guarded) and _shape(after) == _shape(before, (mine,))


def _with_matcher(plain: Sequence[Token], matcher: str) -> Iterator[Token]:
    """Put a matcher in front of every selector's own."""
    words = [(at, token.text) for at, token in enumerate(plain) if not token.silent]
    following = {at: text for (at, _), (_, text) in pairwise(words)}
    braces, labels, previous = 0, False, ""
    for at, token in enumerate(plain):
        yield token
        if token.silent:
            continue
        text, follows = token.text, following.get(at, "")
        if text == "{":
            braces += 1
            yield Token(Kind.WORD, matcher if follows == "}" else f"{matcher},")
        elif text == "}":
            braces -= 1
        elif text == "(" and previous.lower() in _LISTS:
            labels = True
        elif text == ")":
            labels = False
        elif token.kind is Kind.WORD and not braces and not labels and _is_metric(text, follows):
            yield Token(Kind.WORD, f"{{{matcher}}}")
        previous = text


def _is_metric(word: str, follows: str) -> bool:
    """Tell whether a word outside of braces and lists of labels is a metric without braces of its own."""
    if _NAME.fullmatch(word) is None or word.lower() in _KEYWORDS:
        return False
    return follows not in {"{", "("} and follows.lower() not in _GROUPINGS


def _children(node: ast.Expr) -> tuple[ast.Expr, ...]:
    """Return the expressions right inside another.

    Raises:
        QueryRefused: If it is of a kind that is not known here.
    """
    match node:
        case ast.VectorSelector() | ast.NumberLiteral() | ast.StringLiteral():
            return ()
        case ast.MatrixSelector():
            return (node.vector_selector,)
        case ast.SubqueryExpr() | ast.ParenExpr() | ast.UnaryExpr():
            return (node.expr,)
        case ast.AggregateExpr():
            return (node.expr,) if node.param is None else (node.param, node.expr)
        case ast.BinaryExpr():
            return (node.lhs, node.rhs)
        case ast.Call():
            return tuple(node.args)
    raise QueryRefused(f"has a {type(node).__name__}, of which it is not known what it reads")


def _nodes(node: ast.Expr) -> Iterator[ast.Expr]:
    """Return an expression and all inside it."""
    rest = [node]
    while rest:
        node = rest.pop()
        yield node
        rest += _children(node)


def _selectors(node: ast.Expr) -> Iterator[ast.VectorSelector]:
    return (found for found in _nodes(node) if isinstance(found, ast.VectorSelector))


def _matcher(matcher: ast.Matcher) -> Shape:
    return (str(matcher.op), matcher.name, matcher.value)


def _shape(node: ast.Expr, more: tuple[Shape, ...] = ()) -> Shape:
    """Return all that an expression says, with more matchers in front of those of every selector."""
    own: Shape
    match node:
        case ast.VectorSelector():
            matchers = (*more, *map(_matcher, node.matchers.matchers))
            own = (node.name, matchers, len(node.matchers.or_matchers), node.offset, str(node.at))
        case ast.MatrixSelector():
            own = (node.range,)
        case ast.SubqueryExpr():
            own = (node.range, node.step, node.offset, str(node.at))
        case ast.AggregateExpr():
            own = (str(node.op), str(node.modifier))
        case ast.BinaryExpr():
            own = (str(node.op), str(node.modifier))
        case ast.Call():
            own = (node.func.name,)
        case ast.NumberLiteral():
            own = (str(node),)
        case ast.StringLiteral():
            own = (node.val,)
        case _:
            own = ()
    return (type(node).__name__, own, *(_shape(child, more) for child in _children(node)))


def _reads_only_selectors(query: ast.Expr) -> None:
    """See that a query reads no series but those that its selectors name.

    Raises:
        QueryRefused: If it may.
    """
    for node in _nodes(query):
        if isinstance(node, ast.Call) and node.func.name not in FUNCTIONS:
            raise QueryRefused(
                f"is not asked: {node.func.name}() may read more than its arguments, "
                "and this provider shows each namespace its own series only"
            )
        if isinstance(node, ast.VectorSelector) and node.matchers.or_matchers:
            raise QueryRefused("is not asked: it has an or between matchers; put the or between two selectors")


def _asks_for_no_other(query: ast.Expr, label: str, namespace: str) -> None:
    """See that no selector asks for another namespace by name: it would find nothing, and nobody would know why."""
    for selector in _selectors(query):
        for matcher in selector.matchers.matchers:
            if matcher.name == label and matcher.op == ast.MatchOp.Equal and matcher.value != namespace:
                raise QueryRefused(
                    f'is not asked: it selects {label}="{matcher.value}", and this provider shows rollouts in '
                    f'namespace {namespace} its own series only; write {label}="$namespace" or leave it out'
                )
