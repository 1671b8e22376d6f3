"""Durations and percentages as the API spells them.

The Kubernetes API avoids floats: a duration is a string such as ``1m30s`` and a percentage a string such as ``1.5%``.
Inside the operator both are exact values (``timedelta``, ``Fraction``), so that a limit of ``1%`` is one hundredth and
not the nearest binary float. This module is the only place where the two spellings meet.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

DURATION_PATTERN: Final = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
PERCENT_PATTERN: Final = r"^[0-9]{1,6}(\.[0-9]{1,6})?%$"
DECIMAL_PATTERN: Final = r"^-?[0-9]{1,15}(\.[0-9]{1,9})?$"

_DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?$")


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
    text = str(value)
    match = _DURATION.match(text)
    if not text or match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 2m, 1h30m or 500ms")
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)


def format_duration(value: timedelta) -> str:
    """Spell a duration the way the API does: ``1h30m``, ``500ms``, ``0s``."""
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
    text = str(value)
    if re.match(PERCENT_PATTERN, text) is None:
        raise ValueError(f"{text!r} is not a percentage; write for example 1%, 0.5% or 150%")
    return Fraction(text[:-1]) / 100


def format_percent(value: Fraction) -> str:
    """Spell a fraction as a percentage with as few digits as it needs: ``1%``, ``0.5%``."""
    return f"{float(value * 100):.6f}".rstrip("0").rstrip(".") + "%"


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
    text = str(value)
    if re.match(DECIMAL_PATTERN, text) is None:
        raise ValueError(f"{text!r} is not a decimal number; write for example 5 or 0.25")
    return Fraction(text)


def format_decimal(value: Fraction) -> str:
    """Spell a number as a plain decimal string."""
    return f"{float(value):.9f}".rstrip("0").rstrip(".")


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "minLength": 2, "maxLength": 24}),
]
Percent = Annotated[
    Fraction,
    BeforeValidator(parse_percent),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema({"type": "string", "pattern": PERCENT_PATTERN, "maxLength": 14}),
]
Decimal = Annotated[
    Fraction,
    BeforeValidator(parse_decimal),
    PlainSerializer(format_decimal, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 26}),
]
