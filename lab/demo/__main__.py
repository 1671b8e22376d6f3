"""The demo from a shell: ``python -m lab.demo --help``."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from lab.demo import scene
from lab.demo.breach import Replay
from lab.demo.checks import checks
from lab.demo.facts import DemoFacts
from lab.demo.report import print_summary, write_report
from lab.demo.story import STORIES, Stage, play
from lab.demo.view import view
from lab.demo.watch import Witness
from lab.errors import LabError
from lab.load import BackgroundLoad
from lab.mesh import Lab
from lab.paths import LAB_DIR
from lab.progress import Progress, duration

REPORT = LAB_DIR / "out" / "demo-report.json"
RATE = 200.0
LONGEST_SECONDS = 600.0
PLAIN_WIDTH = 120

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def demo(
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live view.")] = False,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = REPORT,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the lab that is started for it.")] = "demo",
    rate: Annotated[float, typer.Option(min=50, max=500, help="Requests a second.")] = RATE,
) -> None:
    """Play three rollouts on a real mesh under constant load, and check what was promised.

    A good version is promoted; one that fails and one that becomes slow are taken back. It takes about two minutes once
    the lab's tools are built, and ends with exit status 1, saying why, unless every promise held.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    started = time.monotonic()
    introduce(console)
    with Lab(name, progress=Progress(console)) as lab:
        facts = perform(lab, console, rate=rate, plain=plain)
    found = checks(facts)
    write_report(report, facts, found)
    print_summary(console, facts, found)
    console.print(f"The whole demo took {duration(time.monotonic() - started)}. Report: {report}", soft_wrap=True)
    broken = [check for check in found if not check.holds]
    if broken:
        raise LabError(
            f"{len(broken)} of {len(found)} promises did not hold:\n"
            + "\n".join(f"  - {check.subject}: {check.promise}: {check.found}" for check in broken)
        )
    console.print(f"All {len(found)} promises held.")


def introduce(console: Console) -> None:
    """Say what is going to happen."""
    console.print("Three rollouts of one service, on a real mesh, under constant load:", markup=False)
    for number, story in enumerate(STORIES, start=1):
        console.print(f"  {number}. {story.title}, {story.tells}", markup=False)


def perform(lab: Lab, console: Console, *, rate: float = RATE, plain: bool = False) -> DemoFacts:
    """Put service and operator up in a lab that has neither, play the stories, and end the operator.

    Raises:
        LabError: Something of the lab or the operator failed.
    """
    with ExitStack() as stack:
        backends = scene.install(lab)
        operator = stack.enter_context(scene.operator(lab))
        load = BackgroundLoad(
            f"{lab.gateway_url}/", host_header=scene.PUBLIC_HOST, rate=rate, max_seconds=LONGEST_SECONDS
        )
        witness = stack.enter_context(Witness(lab.kubeconfig, scene.NAMESPACE, load.now))
        witness.wait_listening()
        replay = Replay(
            lab.prometheus_url,
            witness,
            scene.NAME,
            scrape_interval=scene.SCRAPE_INTERVAL,
            settings=scene.TIMES,
            clock=load.now,
        )
        stack.enter_context(replay)
        stack.enter_context(load)
        screen = stack.enter_context(view(console, plain=plain))
        return play(Stage(lab, backends, operator, witness, replay, load, screen, rate, began_at=load.now()))


def _terminated(number: int, frame: FrameType | None) -> None:
    """End in order, so that everything that was started ends too."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; errors of the lab are shown without a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except LabError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
