"""Text that others have a hand in, made fit to be shown.

A message quotes what it is about: fields of a spec, names in a route, the words of a Prometheus or of a webhook.
Whoever chose those words must not be able to color a terminal, forge a second log line, turn the direction of writing
around or fill a disk. So every text passes through `plain` on its way to status, Events and logs, and nowhere else is
it dealt with. Nothing here makes a text safe as markup: whoever shows it as HTML has to escape it, as they have to
anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from pydantic import BaseModel

LONGEST: Final = 4096
"""How many characters a text in status or in a log may have; the API server takes 32768 in a condition."""
LONGEST_EVENT: Final = 1024
"""How many characters the API server takes as the message of an Event."""
_CUT: Final = "..."
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)
"""What shows nothing although Unicode counts it as printable: fillers, selectors of variants, empty patterns."""

Model = TypeVar("Model", bound=BaseModel)


def plain(text: str, longest: int = LONGEST) -> str:
    r"""Return a text on one line, of printable characters, and not too long.

    What is not printable by Unicode's account is spelled as Python and JSON do (``\n``, ``\x1b``, ``\u202e``): control
    characters, line breaks, spaces other than the plain one, marks of direction, characters without width, halves of
    surrogate pairs; so is what shows nothing all the same.

    Args:
        text: The text.
        longest: How many characters the result may have.

    Returns:
        The text itself where nothing is wrong with it; `plain` of a result is that result.
    """
    if len(text) <= longest and _is_seen(text):
        return text
    shown = _escaped(text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - len(_CUT)] + _CUT


def is_plain(text: str) -> bool:
    """Return whether a text is shown as it is."""
    return plain(text) == text


def plain_model(model: Model) -> Model:
    """Return a model with every text in it plain; the very same where all are."""
    changed = {name: after for name, value in model if (after := _plain_value(value)) is not value}
    return model.model_copy(update=changed) if changed else model


def plain_value(value: object, longest: int = LONGEST) -> object:
    """Return texts, and lists and mappings of them, made plain; anything else as it is."""
    match value:
        case str():
            return plain(value, longest)
        case list() | tuple() | set() | frozenset():
            return [plain_value(item, longest) for item in value]
        case Mapping():
            return {plain_value(key, longest): plain_value(item, longest) for key, item in value.items()}
    return value


def _plain_value(value: object) -> object:
    """Return a value of a model made plain; the very same where nothing is to be done."""
    if type(value) is str:  # members of enumerations are texts of our own
        return plain(value)
    if isinstance(value, BaseModel):
        return plain_model(value)
    if isinstance(value, tuple):
        items = tuple(_plain_value(item) for item in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, Mapping):
        entries = {_plain_value(key): _plain_value(item) for key, item in value.items()}
        return entries if entries != value else value
    return value


def _escaped(text: str) -> str:
    return "".join(char if _is_seen(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_seen(text: str) -> bool:
    return text.isprintable() and (text.isascii() or _UNSEEN.search(text) is None)
