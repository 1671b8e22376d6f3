"""Showing the demo to a person: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Protocol, Self

from rich.align import Align
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from canaryrollout.api.status import Phase, Verdict
from lab.demo.picture import Line, Picture, Traffic

FRAMES_A_SECOND: Final = 4
PLAIN_SECONDS: Final = 2.0
"""How often a plain log hears how things stand."""
OTHER_ROWS: Final = 21
"""Rows of the picture beside its lines of events."""
COMFORTABLE: Final = 100
"""From this width on there is room between columns."""
LONGEST_BAR: Final = 30

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_PHASES: Final = {
    Phase.STABLE: "bold green",
    Phase.PREPARING: "cyan",
    Phase.PROGRESSING: "bold cyan",
    Phase.PAUSED: "yellow",
    Phase.PROMOTING: "bold green",
    Phase.ROLLING_BACK: "bold red",
    Phase.ROLLED_BACK: "red",
    Phase.BLOCKED: "bold yellow",
}
_VERDICTS: Final = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.ERROR: "magenta",
}
_TONES: Final = {"bad": "red", "good": "bold green", "event": "", "told": "italic yellow"}
_ROLES: Final = {"stable": "green", "canary": "yellow"}


class View(Protocol):
    """Shows a demo."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        ...

    def show(self, picture: Picture) -> None:
        """Show how things stand now."""
        ...


def view(console: Console, *, plain: bool) -> View:
    """The right view for a console."""
    lines = plain or not console.is_terminal or console.is_dumb_terminal
    return PlainView(console) if lines else LiveView(console)


class LiveView(AbstractContextManager["LiveView"]):
    """A picture that is drawn anew some times a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._console = console
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, picture: Picture) -> None:
        """Draw, unless it was drawn a moment ago."""
        now = time.monotonic()
        if now - self._drawn >= 1 / FRAMES_A_SECOND:
            self._drawn = now
            self._live.update(render(picture, self._console.size), refresh=True)


class PlainView(AbstractContextManager["PlainView"]):
    """A line for whatever happens, and one every other second for how things stand."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._said: set[Line] = set()
        self._due = 0.0
        self._title = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def show(self, picture: Picture) -> None:
        """Say what is new."""
        if picture.title != self._title:
            self._title = picture.title
            self._say(f"\n== {picture.number}/{picture.of}  {picture.title}: {picture.tells}")
        for line in picture.lines:
            if line not in self._said:
                self._said.add(line)
                self._say(f"{line.at:6.1f} s  * {line.text}")
        now = self._clock()
        if picture.title and now >= self._due:
            self._due = now + PLAIN_SECONDS
            self._say(f"{picture.elapsed:6.1f} s    {standing(picture)}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def standing(picture: Picture) -> str:
    """How things stand, on one line."""
    status, canary = picture.status, picture.canary
    parts = [f"{status.phase or 'not seen yet'}"]
    if canary is not None:
        step = f"step {status.step}, " if status.step else ""
        parts.append(f"{step}{canary.version} weight {canary.weight} %, share {canary.share:.1%}")
        parts.append(f"errors {canary.errors:.1%}, p99 {_milliseconds(canary.p99)}")
    if status.gates and canary is not None and canary.weight:
        parts.append(", ".join(f"{gate.name} {gate.verdict}" for gate in status.gates))
    parts.append(f"{picture.sent} requests, {picture.lost} lost")
    return " | ".join(parts)


def render(picture: Picture, size: ConsoleDimensions) -> RenderableType:
    """The whole picture, as far as it fits."""
    parts: list[RenderableType] = [_head(picture), Text()]
    parts.append(_versions(picture, size.width))
    if picture.history:
        parts += [Text(), _history(picture, size.width)]
    parts += [Text(), _state(picture)]
    if picture.status.gates:
        parts.append(_gates(picture))
    parts += [Text(), _lines(picture.lines[-max(3, size.height - OTHER_ROWS) :])]
    title = Text.assemble(("canaryrollout ", "bold"), ("on a real mesh", "dim"))
    return Panel(Group(*parts), title=title, title_align="left", border_style="blue", padding=(0, 1))


def _head(picture: Picture) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 2))
    table.add_column(ratio=1)
    table.add_column(justify="right")
    name = Text.assemble(
        (f"{picture.number}/{picture.of}  ", "dim"), (picture.title, "bold"), ("  " + picture.tells, "dim")
    )
    table.add_row(name, f"{_minutes(picture.elapsed)} of about {_minutes(picture.expected)}")
    done = min(picture.elapsed, picture.expected)
    return Group(table, ProgressBar(total=picture.expected or 1, completed=done))


def _versions(picture: Picture, width: int) -> RenderableType:
    gap = 2 if width >= COMFORTABLE else 1
    bar = max(8, min(LONGEST_BAR, width - 76))
    table = Table(box=None, expand=True, padding=(0, gap, 0, 0), header_style="dim")
    for name, side in (
        ("version", "left"), ("", "left"), ("weight", "right"), ("share", "left"), ("", "right"), ("req/s", "right"),
        ("errors", "right"), ("p50", "right"), ("p99", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for traffic in picture.traffic:
        table.add_row(*_version(traffic, bar))
    lost = Text(f"{picture.lost}", style="bold red" if picture.lost else "green")
    table.caption = Text.assemble(f"{picture.sent} requests sent, ", lost, " lost by the mesh")
    table.caption_justify = "left"
    return table


def _version(traffic: Traffic, bar: int) -> tuple[RenderableType, ...]:
    color = _ROLES.get(traffic.role, "dim")
    errors = Text(f"{traffic.errors:.1%}", style="red" if traffic.errors > 0 else "")
    filled = round(bar * traffic.share)
    slow = traffic.p99 is not None and traffic.p99 > 500
    return (
        Text(traffic.version, style=f"bold {color}"),
        Text(traffic.role, style=color),
        f"{traffic.weight} %",
        Text.assemble(("█" * filled, color), ("·" * (bar - filled), "dim")),
        f"{traffic.share:.1%}",
        f"{traffic.rate:.0f}",
        errors,
        _milliseconds(traffic.p50),
        Text(_milliseconds(traffic.p99), style="red" if slow else ""),
    )


def _history(picture: Picture, width: int) -> RenderableType:
    """The canary's last minute, a character a second."""
    past = picture.history[-max(10, width - 24) :]
    table = Table.grid(padding=(0, 2))
    rows = (
        ("weight", [s.weight / 100 for s in past], "yellow", f"{past[-1].weight} %"),
        ("share", [s.share for s in past], "bright_yellow", f"{past[-1].share:.1%}"),
        ("errors", [min(1.0, s.errors / 0.1) for s in past], "red", f"{past[-1].errors:.1%}"),
        ("p99", [min(1.0, s.p99 / 1000) for s in past], "magenta", _milliseconds(past[-1].p99)),
    )
    for name, values, color, now in rows:
        table.add_row(Text(name, style="dim"), Text(sparkline(values), style=color), now)
    return table


def sparkline(values: list[float]) -> str:
    """Characters of rising height for values from 0 to 1; what is not zero can be seen."""
    return "".join(_BLOCKS[max(round(8 * value), 1 if value > 0 else 0)] for value in values)


def _state(picture: Picture) -> RenderableType:
    status = picture.status
    phase = status.phase
    style = _PHASES.get(phase, "") if phase is not None else "dim"
    step = f"  step {status.step}" if status.step else ""
    return Text.assemble((f"{phase or 'not seen yet'}", style), (step, "bold"), "  ", status.message)


def _gates(picture: Picture) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for gate in picture.status.gates:
        table.add_row(gate.name, Text(gate.verdict, style=_VERDICTS[gate.verdict]), Text(gate.message, style="dim"))
    return table


def _lines(lines: tuple[Line, ...]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True, min_width=7)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for line in lines:
        table.add_row(f"{line.at:.1f} s", Text(line.text, style=_TONES.get(line.tone, "")))
    return Align.left(table)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
