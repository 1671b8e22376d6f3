"""What the lab says while it works: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

HEARTBEAT_SECONDS = 60.0
"""How often a plain log hears that a long piece of work is still going on."""


def duration(seconds: float) -> str:
    """A time span for people: ``8 s``, ``4 min 10 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


class Progress:
    """Tells a person what is going on.

    Args:
        console: where to; standard error by default, so that a command's output stays usable in pipes.
        quiet: say nothing but what is passed to `say` with ``always``.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line."""
        if always or not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show that something takes time, and how long it took."""
        started = time.monotonic()
        if self.quiet:
            yield
        elif self.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            with RichProgress(*columns, console=self.console, transient=True) as bar:
                bar.add_task(text)
                yield
            self.say(f"{text}: {duration(time.monotonic() - started)}")
        else:
            self.say(f"{text} ...")
            with self._heartbeat(started):
                yield
            self.say(f"{text}: {duration(time.monotonic() - started)}")

    @contextmanager
    def _heartbeat(self, started: float) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.say(f"  ... {duration(time.monotonic() - started)}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
