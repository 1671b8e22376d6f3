"""Commands of a person, given as an annotation.

The value is ``<command>/<version>/<token>``: the version guards against a command that outlived its rollout, the token
makes the same command new again. The annotation is the user's; it is compared with what was answered last and never
removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

ANNOTATION: Final = "canaryrollout.io/command"


class Verb(StrEnum):
    """What a person may ask for."""

    APPROVE = "approve"
    RETRY = "retry"
    ABORT = "abort"
    PROMOTE = "promote"


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command."""

    verb: Verb
    version: str
    token: str


def parse(value: str) -> Command | str:
    """Read the annotation.

    Args:
        value: The annotation's value.

    Returns:
        The command, or a message for the person who wrote it.
    """
    parts = value.split("/")
    if len(parts) != 3 or not all(parts):
        return (
            f"{ANNOTATION}: {value!r} is not <command>/<version>/<token>; "
            "write for example approve/v2/1, with a new token for each command"
        )
    verb, version, token = parts
    if verb not in {known.value for known in Verb}:
        return f"{ANNOTATION}: {verb!r} is not a command; use one of {', '.join(Verb)}"
    return Command(Verb(verb), version, token)
