"""Queries of users' own as hypothesis makes them up: every construct of PromQL, every spelling, hostile values.

Shared by the tests that hold the operator's own parser to its promises and those that ask a real Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

NASTY = (
    "",
    '"',
    "'",
    "`",
    "\\",
    "\n",
    "{",
    "}",
    '",namespace="other',
    '"} or secret{a="',
    "#",
    "$1",
    "é",
    "🦀",
    "\\d+",
)
"""Values that break out of a string literal where somebody was careless."""


@dataclass(frozen=True)
class Query:
    """A query, and how many selectors it has by construction."""

    text: str
    selectors: int


def spelled(value: str) -> st.SearchStrategy[str]:
    """Return string literals that mean ``value``, in every quotation that can."""
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n")
    spellings = [f'"{escaped.replace(chr(34), chr(92) + chr(34))}"', "'" + escaped.replace("'", "\\'") + "'"]
    spellings.append('"' + "".join(_numbered(char) for char in value) + '"')
    if "`" not in value:
        spellings.append(f"`{value}`")
    return st.sampled_from(spellings)


def _numbered(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_gaps = st.sampled_from(["", " ", "\n\t", ' # {a="b"} or "c\n', "  "])
_names = st.sampled_from(["up", "x:y_z", ":a", "http_requests_total", "rate", "sum", "time", "infinity", "_"])
_labels = st.sampled_from(["a", "job", "by", "le", "on", '"my.label"'])
_durations = st.sampled_from(["5m", "1h30m", "500ms", "1y2w", "30"])


@st.composite
def _matchers(draw: st.DrawFn) -> str:
    values = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["C"]), max_size=5))
    label, operator = draw(_labels), draw(st.sampled_from(["=", "!=", "=~", "!~"]))
    value = draw(st.sampled_from(["v2", "a|b", ".*", "x{1,3}", "\\.5"]) if "~" in operator else values)
    return draw(_gaps).join((label, operator, draw(spelled(value))))


@st.composite
def _selectors(draw: st.DrawFn) -> Query:
    some = draw(st.lists(_matchers(), max_size=3))
    if draw(st.booleans()):
        name = draw(_names)
        braces = draw(st.booleans()) or bool(some)
        text = name + draw(_gaps) + "{" + ",".join(some) + "}" if braces else name
    else:
        named = draw(st.sampled_from(['__name__=~"a|b"', "__name__='up'", '"up"', 'z!=""']))
        text = (
            "{"
            + draw(_gaps)
            + f"{draw(_gaps)},{draw(_gaps)}".join((named, *some))
            + draw(st.sampled_from(["", ","]))
            + "}"
        )
    return Query(text, 1)


@st.composite
def _modified(draw: st.DrawFn, what: str) -> str:
    parts = [what]
    if draw(st.booleans()):
        parts.append(draw(st.sampled_from(["offset 5m", "OFFSET -1h", "@ start()", "@ end()", "@ 1609746000.5"])))
    return " ".join(parts)


@st.composite
def _ranges(draw: st.DrawFn, inner: st.SearchStrategy[Query]) -> Query:
    if draw(st.booleans()):
        selector = draw(_selectors())
        return Query(draw(_modified(f"{selector.text}[{draw(_durations)}]")), selector.selectors)
    query = draw(inner)
    step = draw(st.sampled_from(["", "30s"]))
    return Query(draw(_modified(f"({query.text})[{draw(_durations)}:{step}]")), query.selectors)


@st.composite
def _calls(draw: st.DrawFn, inner: st.SearchStrategy[Query]) -> Query:
    query = draw(inner)
    shape = draw(
        st.sampled_from(
            (
                "abs({})",
                "absent({})",
                "clamp_min({}, 0)",
                'label_replace({}, "dst", "$1", "src", "(.*)")',
                "label_join({}, 'dst', `,`, \"a\", 'b')",
                "histogram_quantile(0.9, {})",
                "vector(scalar({}))",
                "sort_desc({})",
                "round({}, 0.1)",
            )
        )
    )
    return Query(shape.format(query.text), query.selectors)


@st.composite
def _over_time(draw: st.DrawFn, inner: st.SearchStrategy[Query]) -> Query:
    query = draw(_ranges(inner))
    shape = draw(
        st.sampled_from(
            (
                "rate({})",
                "sum_over_time({})",
                "absent_over_time({})",
                "quantile_over_time(0.5, {})",
                "last_over_time({})",
            )
        )
    )
    return Query(shape.format(query.text), query.selectors)


@st.composite
def _aggregations(draw: st.DrawFn, inner: st.SearchStrategy[Query]) -> Query:
    query = draw(inner)
    labels = ", ".join(draw(st.lists(st.sampled_from(["a", "job", "by", '"my.label"']), max_size=2)))
    by = f"{draw(st.sampled_from(['by', 'without', 'BY']))}{draw(_gaps)}({labels})"
    call, selectors = draw(
        st.sampled_from(
            (
                (f"({query.text})", 0),
                (f"(2, {query.text})", 1),
                (f'("v", {query.text})', 2),
                (f"(scalar(k), {query.text})", 3),
            )
        )
    )
    name = {0: "sum", 1: "topk", 2: "count_values", 3: "quantile"}[selectors]
    text = draw(st.sampled_from((f"{name} {by} {call}", f"{name}{call} {by}", f"{name.upper()}{call}")))
    return Query(text, query.selectors + (selectors == 3))


@st.composite
def _binaries(draw: st.DrawFn, inner: st.SearchStrategy[Query]) -> Query:
    left, right = draw(inner), draw(inner)
    operator = draw(
        st.sampled_from(
            (
                *("+", "-", "*", "/", "%", "^", "atan2", "==", "> bool", "and", "or", "UNLESS"),
                *("+ on(a)", "/ ignoring(job, le)", "* on(a) group_left(job)", "- on () group_right()", "and on(a)"),
            )
        )
    )
    gap = draw(st.sampled_from([" ", "\n", " #\n"]))
    return Query(f"({left.text}){gap}{operator}{gap}({right.text})", left.selectors + right.selectors)


def _more(inner: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    wrapped = inner.map(lambda query: Query(f"-({query.text})", query.selectors))
    return st.one_of(_calls(inner), _over_time(inner), _aggregations(inner), _binaries(inner), wrapped)


@st.composite
def _instants(draw: st.DrawFn) -> Query:
    selector = draw(_selectors())
    return Query(draw(_modified(selector.text)), selector.selectors)


queries: st.SearchStrategy[Query] = st.recursive(_instants(), _more, max_leaves=6)
"""Well-formed queries that give a vector, of what servers of Prometheus 2.45 and later know."""
