"""What the offline tools read from the command line alike: percentages, durations, times, and the form of the answer.

A value that makes no sense is refused with what would be right, and exit status 2, before anything else is done.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from canaryrollout.api.quantities import parse_duration, parse_percent
from canaryrollout.cli.manifest import Manifest, ManifestError, read_manifest

FAILED: Final = 1
BAD_USAGE: Final = 2
WIDTH: Final = 120
"""Columns of a table that does not go to a terminal."""
PICTURES: Final = (".png", ".svg")
_AGO: Final = re.compile(r"^(?:-\s*(?P<minus>\S+)|(?P<ago>\S+)\s+ago)$")


_T = TypeVar("_T")


class Output(StrEnum):
    """How the answer is spelled."""

    TABLE = "table"
    JSON = "json"


def refuse(message: str, status: int = BAD_USAGE) -> NoReturn:
    """Say on standard error why there is no answer, and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(status)


def console() -> Console:
    """Return standard output: colors and its own width on a terminal, neither elsewhere."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, color_system=None, width=WIDTH)


def progress() -> Progress:
    """Return a bar on standard error; none where nobody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def manifest_of(file: str, name: str) -> Manifest:
    """Read the manifest, or say what is wrong with it and exit."""
    try:
        return read_manifest(file, name)
    except ManifestError as error:
        refuse(str(error))


def share(text: str) -> Fraction:
    """Read a percentage between 0% and 100%."""
    value = _read(parse_percent, text)
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text} is not between 0% and 100%")
    return value


def duration(text: str) -> timedelta:
    """Read a duration such as 2s."""
    return _read(parse_duration, text)


def moment(text: str, now: datetime | None = None) -> datetime:
    """Read a time: RFC 3339, ``now``, or so long ago (``2h ago`` or ``-2h``).

    Args:
        text: What was written.
        now: The present time; ``None`` asks the clock.
    """
    now = now or datetime.now(UTC)
    if text == "now":
        return now
    if match := _AGO.fullmatch(text.strip()):
        return now - duration(match["minus"] or match["ago"])
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise typer.BadParameter(
            f"'{text}' is no time: write one with its zone such as 2026-01-31T12:00:00Z, or '2h ago', or -2h"
        )
    return found.astimezone(UTC)


def picture(text: str) -> Path:
    """Read where a picture should go; its ending says what kind it is."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{text} is no name for a picture: it has to end in {' or '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{text} cannot be written: there is no directory {path.parent}")
    return path


def _read(parse: Callable[[object], _T], text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' {error}") from None


ManifestFile = Annotated[
    str,
    typer.Option("--file", "-f", help="YAML or JSON with the CanaryRollout; - reads standard input.", metavar="FILE"),
]
ManifestName = Annotated[
    str,
    typer.Option(
        "--name", metavar="NAME", help="Which CanaryRollout, where the file holds several.", show_default=False
    ),
]
Form = Annotated[Output, typer.Option("--output", "-o", help="How the answer is spelled.")]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        parser=picture,
        metavar="FILE",
        help="Draw evidence and weight over time into a .png or .svg (needs the extra: canaryrollout[plot]).",
        show_default=False,
    ),
]
