"""PromQL as text: tokens, string literals, and filling in the variables of a query of the user's own.

A query is changed only where its tokens are known, never by search and replace: the same ``$canary`` is a value inside
quotes, nothing at all inside a comment, and would be the name of another metric in the open. The tokens are those of
Prometheus' lexer, as far as they matter here: where strings and comments begin and end, and what stands by itself.

This module knows no grammar, so it works for every dialect; `canaryrollout.adapters.promql` proves things on top of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from canaryrollout.api.quantities import DURATION_PATTERN

MAX_LENGTH: Final = 16_384
"""How long a query may be, variables filled in. Servers in front of Prometheus refuse much longer ones."""

VARIABLES: Final[Mapping[str, re.Pattern[str]]] = {
    "namespace": re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"),
    "host": re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"),
    "stable": re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"),
    "canary": re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"),
    "interval": re.compile(DURATION_PATTERN.strip("^$")),
    "weight": re.compile(r"[0-9]{1,3}"),
}
"""The variables, with what their values look like. None of them has a character that can end a string literal."""

IN_THE_OPEN: Final = frozenset({"interval", "weight"})
"""Variables that may stand outside of quotes: a duration and a number."""

_MATCHES: Final = frozenset({"=", "!=", "=~", "!~"})
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<comment>\#[^\r\n]*)
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*'|`[^`]*`)
    |(?P<variable>\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\}))
    |(?P<word>[A-Za-z0-9_.:]+)
    |(?P<mark>=~|!~|!=|==|>=|<=|.)""",
    re.VERBOSE | re.DOTALL,
)
_INSIDE: Final = re.compile(
    r"(?P<before>\\?)\$(?:(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})"
)
_EXPONENT: Final = re.compile(r"[0-9.][0-9A-Za-z_.]*[eE]")
_ESCAPE: Final = re.compile(
    r"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))|(\\)", re.DOTALL
)
_NAMED: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39}


class QueryRefused(ValueError):  # noqa: N818 - reads as what happened
    """A query of the user's own that is not sent; the message says for people what is wrong and what would be right."""


class Kind(StrEnum):
    """What a token is."""

    SPACE = "space"
    COMMENT = "comment"
    STRING = "string"
    VARIABLE = "variable"
    WORD = "word"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a query; all of them together are the query.

    Attributes:
        kind: What it is. A word is a name, a number, a duration, or several of these without anything between.
        text: As written.
    """

    kind: Kind
    text: str

    @property
    def silent(self) -> bool:
        """Return whether it has no meaning."""
        return self.kind in {Kind.SPACE, Kind.COMMENT}


def tokens(text: str) -> tuple[Token, ...]:
    """Cut a query into tokens.

    Raises:
        QueryRefused: If a string is not closed, or the text is not one that can be sent.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryRefused(f"has a character that is no text: {text[error.start : error.end]!r}") from error
    found = tuple(Token(Kind(match.lastgroup or ""), match[0]) for match in _TOKEN.finditer(text))
    for token in found:
        if token.kind is Kind.MARK and token.text in {'"', "'", "`"}:
            raise QueryRefused(f"has a string that is not closed: a {token.text} is missing, or a backslash too many")
    return found


def literal(value: str) -> str:
    """Return the string literal that means ``value`` to every reader of PromQL.

    Raises:
        QueryRefused: If it has a control character other than tab and line break.
    """
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    if any(ord(char) < 32 or ord(char) == 127 for char in escaped):
        raise QueryRefused(f"has a control character in the string {value!r}")
    return f'"{escaped}"'


def meaning(text: str) -> str:
    """Return what a string literal means; the rules are those of Go, and a string in backticks means itself.

    Raises:
        QueryRefused: If it has an escape that Prometheus does not know, or is not UTF-8.
    """
    quote, body = text[0], text[1:-1]
    if quote == "`":
        return body

    def escaped(match: re.Match[str]) -> bytes:
        name, hexadecimal, octal, short, long, stray = match.groups()
        wrong = QueryRefused(f"has an unknown escape {body[match.start() : match.start() + 2]!r} in the string {text}")
        if stray or (name in {"'", '"'} and name != quote):
            raise wrong
        if name:
            return bytes((_NAMED[name],))
        number = int(octal, 8) if octal else int(hexadecimal or short or long, 16)
        if hexadecimal or octal:
            if number > 255:
                raise wrong
            return bytes((number,))
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise wrong
        return chr(number).encode()

    pieces, at = [], 0
    for match in _ESCAPE.finditer(body):
        pieces += [body[at : match.start()].encode(), escaped(match)]
        at = match.end()
    try:
        return b"".join((*pieces, body[at:].encode())).decode()
    except UnicodeDecodeError as error:
        raise QueryRefused(f"has the string {text}, which is not UTF-8") from error


def fill(text: str, variables: Mapping[str, str]) -> str:
    """Fill in the variables of a query.

    They are ``$namespace``, ``$host``, ``$stable``, ``$canary``, ``$interval`` and ``$weight``, or with braces,
    ``${canary}``. All may stand inside quotes; in a regular expression (``=~``, ``!~``) the points of a value mean
    points. Outside of quotes only ``$interval`` and ``$weight`` may stand, by themselves. A ``$`` that begins no
    variable stays where PromQL has a use for it (``$1`` in ``label_replace``, the end of a regular expression); a name
    that is no variable is refused within braces, where it would silently match nothing. Comments stay as they are. A
    token never becomes two, and two never become one.

    Args:
        text: The query.
        variables: Values by name, without the dollar sign.

    Returns:
        The query with the values.

    Raises:
        QueryRefused: If a variable is unknown, stands where it cannot, or has a value that cannot stand in a query.
    """
    found = tokens(text)
    depth = {"{": 0, "[": 0}
    operator, pieces = "", []
    for at, token in enumerate(found):
        if token.kind is Kind.STRING:
            pieces.append(_fill_string(token.text, variables, operator, strict=depth["{"] > 0))
        elif token.kind is Kind.VARIABLE:
            pieces.append(_fill_open(found, at, variables, in_range=depth["["] > 0))
        else:
            pieces.append(token.text)
            for opening, closing in ("{}", "[]"):
                depth[opening] += (token.text == opening) - (token.text == closing)
        if not token.silent:
            operator = token.text if token.text in _MATCHES else ""
    filled = "".join(pieces)
    if len(filled) > MAX_LENGTH:
        raise QueryRefused(f"is {len(filled)} characters long with its variables filled in; at most {MAX_LENGTH} go")
    return filled


def _fill_string(text: str, variables: Mapping[str, str], operator: str, *, strict: bool) -> str:
    """Fill in the variables inside a string literal.

    Args:
        text: The literal.
        variables: Values by name.
        operator: The matching operator before it; empty where there is none.
        strict: Whether a name that is no variable is refused.
    """
    point = ("\\." if text.startswith("`") else "\\\\.") if operator in {"=~", "!~"} else "."

    def filled(match: re.Match[str]) -> str:
        name = match["bare"] or match["braced"]
        if name not in VARIABLES and (match["before"] or not strict):
            return match[0]
        if name in VARIABLES and match["before"]:
            raise QueryRefused(f"has a backslash before ${name} in {text}: write \\x24 for a $ that begins no variable")
        return _value(name, variables).replace(".", point)

    return _INSIDE.sub(filled, text)


def _fill_open(found: Sequence[Token], at: int, variables: Mapping[str, str], *, in_range: bool) -> str:
    """Return the value of a variable outside of quotes.

    Args:
        found: All tokens.
        at: Where the variable is.
        variables: Values by name.
        in_range: Whether it stands within square brackets, where a colon is a token of its own.
    """
    name = found[at].text.strip("${}")
    value = _value(name, variables)
    if name not in IN_THE_OPEN:
        raise QueryRefused(f'has ${name} outside of quotes; write "${name}", as in {{version="${name}"}}')
    before = [token.text for token in found[max(at - 2, 0) : at]] or [""]
    after = found[at + 1].text if at + 1 < len(found) else ""
    alone = not any(_glued(beside, in_range=in_range) for beside in (before[-1][-1:], after[:1]))
    if len(before) == 2 and before[1] in {"+", "-"} and _EXPONENT.fullmatch(before[0]) is not None:
        alone = False
    if not alone:
        raise QueryRefused(f"has something right beside ${name}; outside of quotes it has to stand by itself")
    return value


def _glued(char: str, *, in_range: bool) -> bool:
    """Tell whether a character beside a value would make one token of both."""
    return re.fullmatch(r"[A-Za-z0-9_.$}]" if in_range else r"[A-Za-z0-9_.:$}]", char) is not None


def _value(name: str, variables: Mapping[str, str]) -> str:
    """Return the value of a variable, known to be harmless."""
    if name not in VARIABLES:
        known = ", ".join(f"${known}" for known in VARIABLES)
        raise QueryRefused(f"has ${name}, which is no variable; there are {known} (write \\x24 for a plain $)")
    value = variables.get(name, "")
    if VARIABLES[name].fullmatch(value) is None:
        raise QueryRefused(f"has ${name}, and its value here is {value!r}, which cannot stand in a query")
    return value


def shorten(text: str, length: int = 60) -> str:
    """Return the beginning of a query, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
