"""Durations, percentages and decimal numbers as the API spells them.

The Kubernetes API avoids floats: a duration is a string such as ``1m30s`` and a percentage a string such as ``1.5%``.
Inside the operator both are exact values (``timedelta``, ``Fraction``), so that a limit of ``1%`` is one hundredth and
not the nearest binary float. This module is the only place where the two spellings meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from canaryrollout.api.rules import Rule, cel_string

# Durations of the Gateway API (GEP-2257): a subset of what Go and CEL read, without fractions and signs.
DURATION_PATTERN: Final = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
PERCENT_PATTERN: Final = r"^[0-9]{1,6}(\.[0-9]{1,6})?%$"
DECIMAL_PATTERN: Final = r"^-?[0-9]{1,15}(\.[0-9]{1,9})?$"

_DURATION: Final = re.compile(DURATION_PATTERN)
_DURATION_PART: Final = re.compile(r"([0-9]+)(ms|h|m|s)")
_PERCENT: Final = re.compile(PERCENT_PATTERN)
_WHOLE_PERCENT: Final = re.compile(r"^(100|[1-9][0-9]?)%$")
_DECIMAL: Final = re.compile(DECIMAL_PATTERN)
_UNITS: Final = {
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}

DURATION_MESSAGE: Final = "must be a duration, such as 30s, 2m, 1h30m or 500ms"
PERCENT_MESSAGE: Final = "must be a percentage, such as 1%, 0.5% or 150%"
DECIMAL_MESSAGE: Final = "must be a decimal number in quotes, such as '5' or '0.25'"


def parse_duration(value: object) -> timedelta:
    """Read a duration such as ``90s``, ``1m30s`` or ``500ms``.

    Args:
        value: The string from the API, or a ``timedelta`` (returned as it is).

    Returns:
        The duration.

    Raises:
        ValueError: If the text is not a duration; the message shows what would be right.
    """
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or _DURATION.fullmatch(value) is None:
        raise ValueError(DURATION_MESSAGE)
    return sum((int(count) * _UNITS[unit] for count, unit in _DURATION_PART.findall(value)), timedelta())


def format_duration(value: timedelta) -> str:
    """Spell a duration the way the API does: ``1h30m``, ``500ms``, ``0s``; below a millisecond it is rounded."""
    milliseconds = round(value / timedelta(milliseconds=1))
    parts = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_percent(value: object) -> Fraction:
    """Read a percentage such as ``1%`` or ``0.5%`` as an exact fraction of one.

    Args:
        value: The string from the API, or a ``Fraction`` (returned as it is).

    Returns:
        The fraction, for example ``Fraction(1, 100)`` for ``1%``.

    Raises:
        ValueError: If the text is not a percentage; the message shows what would be right.
    """
    if isinstance(value, Fraction):
        return value
    if not isinstance(value, str) or _PERCENT.fullmatch(value) is None:
        raise ValueError(PERCENT_MESSAGE)
    return Fraction(value[:-1]) / 100


def format_percent(value: Fraction) -> str:
    """Spell a fraction as a percentage with as few digits as it needs, at most six after the point."""
    return _plain(value * 100, 6) + "%"


def parse_decimal(value: object) -> Fraction:
    """Read a decimal string such as ``5`` or ``0.25`` as an exact number.

    Args:
        value: The string from the API, an int, or a ``Fraction``.

    Returns:
        The number.

    Raises:
        ValueError: If the text is not a plain decimal number.
    """
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int) or _DECIMAL.fullmatch(str(value)) is None:
        raise ValueError(DECIMAL_MESSAGE)
    return Fraction(str(value))


def format_decimal(value: Fraction) -> str:
    """Spell a number as a plain decimal string, with at most nine digits after the point."""
    return _plain(value, 9)


def _plain(value: Fraction, digits: int) -> str:
    scaled = round(abs(value) * 10**digits)
    whole, rest = divmod(scaled, 10**digits)
    text = f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and scaled else text


def between(shortest: str, longest: str, *, example: str) -> Rule:
    """Return the rule that a duration lies between two others, themselves included.

    A text that is no duration at all is left to the rule on the format.
    """
    low, high = parse_duration(shortest), parse_duration(longest)
    return Rule(
        cel=f"!self.matches('{DURATION_PATTERN}') || "
        f"duration(self) >= duration('{shortest}') && duration(self) <= duration('{longest}')",
        message=f"must be between {shortest} and {longest}, such as {example}",
        holds=lambda value: low <= value <= high,
    )


def _format(pattern: str, message: str) -> Rule:
    # The parser has already refused what does not match: in the operator this rule always holds.
    return Rule(cel=f"self.matches({cel_string(pattern)})", message=message, holds=lambda _: True)


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "maxLength": 28}),
    _format(DURATION_PATTERN, DURATION_MESSAGE),
]
"""A length of time."""


def _percent_reader(message: str) -> Callable[[object], Fraction]:
    """Return a parser that answers with the message of its field, so that both judges of a rule say the same."""

    def read(value: object) -> Fraction:
        try:
            return parse_percent(value)
        except ValueError as error:
            raise ValueError(message) from error

    return read


_SHARE_MESSAGE: Final = "must be a percentage between 0% and 100%, such as 1% or 0.5%"
_RATIO_MESSAGE: Final = "must be a percentage of what the stable version has, 100% or more, such as 150%"

Share = Annotated[
    Fraction,
    BeforeValidator(_percent_reader(_SHARE_MESSAGE)),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema({"type": "string", "maxLength": 14}),
    Rule(
        cel=r"self.matches('^(100(\\.0{1,6})?|[0-9]{1,2}(\\.[0-9]{1,6})?)%$')",
        message=_SHARE_MESSAGE,
        holds=lambda value: 0 <= value <= 1,
    ),
]
"""A part of a whole: 0% to 100%."""

Ratio = Annotated[
    Fraction,
    BeforeValidator(_percent_reader(_RATIO_MESSAGE)),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema({"type": "string", "maxLength": 14}),
    Rule(
        cel=r"self.matches('^[1-9][0-9]{2,5}(\\.[0-9]{1,6})?%$')",
        message=_RATIO_MESSAGE,
        holds=lambda value: value >= 1,
    ),
]
"""What is allowed, as a percentage of what the stable version has: 100% or more."""

Decimal = Annotated[
    Fraction,
    BeforeValidator(parse_decimal),
    PlainSerializer(format_decimal, return_type=str),
    WithJsonSchema({"type": "string", "maxLength": 26}),
    _format(DECIMAL_PATTERN, DECIMAL_MESSAGE),
]
"""A decimal number, exact, as a string."""

MIN_READY_MESSAGE: Final = "must be a count of 1 or more, or a percentage from 1% to 100%, such as 50%"


def _checked_min_ready(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(MIN_READY_MESSAGE)  # noqa: TRY004 - pydantic turns a ValueError into a validation error
    if isinstance(value, str) and _PERCENT.fullmatch(value) is None:
        raise ValueError(MIN_READY_MESSAGE)
    return value


MinReady = Annotated[
    int | str,
    Field(json_schema_extra={"maxLength": 4}),
    BeforeValidator(_checked_min_ready),
    Rule(
        cel=f"type(self) == int ? self >= 1 && self <= 100000 : self.matches('{_WHOLE_PERCENT.pattern}')",
        message=MIN_READY_MESSAGE,
        holds=lambda value: (
            1 <= value <= 100_000 if isinstance(value, int) else _WHOLE_PERCENT.fullmatch(value) is not None
        ),
    ),
]
"""A count, or a percentage of another."""
