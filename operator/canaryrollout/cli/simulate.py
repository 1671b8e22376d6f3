"""``canaryrollout simulate``: are these steps and holds sensible for my traffic?"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final

import typer

from canaryrollout.cli import advice, simulate_report
from canaryrollout.cli.advice import Case
from canaryrollout.cli.imagined import Outcome
from canaryrollout.cli.options import (
    Form,
    ManifestFile,
    ManifestName,
    Output,
    PlotFile,
    console,
    manifest_of,
    progress,
    refuse,
)
from canaryrollout.cli.options import duration as duration_of
from canaryrollout.cli.options import share as share_of
from canaryrollout.cli.simulation import Question, Run, Scenario, play_all, replay, summarize
from canaryrollout.cli.traffic import Version

_FACTORS: Final = (2, 4, 10)
"""How bad canaries are, as multiples of the stable rate, where nothing is said about the canary."""
_MOST_JOBS: Final = 16
_PATIENCE: Final = timedelta(minutes=1)


def simulate(
    file: ManifestFile,
    stable_errors: Annotated[
        Fraction,
        typer.Option(
            "--stable-errors", parser=share_of, metavar="PERCENT", help="Requests of the stable version that fail."
        ),
    ],
    rps: Annotated[
        float,
        typer.Option(
            "--rps", metavar="NUMBER", min=0.001, max=1_000_000, help="Requests per second to both versions together."
        ),
    ],
    canary_errors: Annotated[
        Fraction | None,
        typer.Option(
            "--canary-errors",
            parser=share_of,
            metavar="PERCENT",
            show_default=False,
            help="Requests of the canary that fail. Left out: as many as of stable, and 2, 4 and 10 times as many.",
        ),
    ] = None,
    stable_slow: Annotated[
        Fraction | None,
        typer.Option(
            "--stable-slow",
            parser=share_of,
            metavar="PERCENT",
            show_default=False,
            help="Requests of the stable version slower than analysis.latency.threshold. Left out: none.",
        ),
    ] = None,
    canary_slow: Annotated[
        Fraction | None,
        typer.Option(
            "--canary-slow",
            parser=share_of,
            metavar="PERCENT",
            show_default=False,
            help="The same of the canary. Left out: as many as of stable.",
        ),
    ] = None,
    bursts: Annotated[
        float,
        typer.Option(
            "--bursts",
            metavar="NUMBER",
            min=0.0,
            max=10.0,
            help="How much failures come in bursts: squared coefficient of variation of the rates from interval to "
            "interval. 0 is not at all, 0.25 is usual, 1 is a lot.",
        ),
    ] = 0.0,
    runs: Annotated[
        int, typer.Option("--runs", metavar="NUMBER", min=1, max=1_000_000, help="Rollouts of each canary.")
    ] = 500,
    seed: Annotated[
        int, typer.Option("--seed", metavar="NUMBER", help="Chooses the random numbers: same seed, same answer.")
    ] = 1,
    lag: Annotated[
        timedelta,
        typer.Option(
            "--lag",
            parser=duration_of,
            metavar="DURATION",
            help="How far behind Prometheus' data is; what it scrapes is half a scrape interval older on average.",
        ),
    ] = "2s",  # type: ignore[assignment]  # parsed like any value
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", metavar="NUMBER", min=0, max=1024, help="Processes to use; 0 is one for each processor."
        ),
    ] = 0,
    name: ManifestName = "",
    output: Form = Output.TABLE,
    plot: PlotFile = None,
) -> None:
    """Tell how a rollout would go with your traffic: promoted or taken back, after how long, at whose cost.

    The operator's own code decides, hundreds of times, on a mesh that is only imagined. No cluster is needed.

    \b
    Are the steps sensible, and what would canaries 2, 4 and 10 times as bad do?
      canaryrollout simulate -f rollout.yaml --stable-errors 0.5% --rps 50
    What of a canary with 2 % errors, where errors come in bursts?
      canaryrollout simulate -f rollout.yaml --stable-errors 0.5% --canary-errors 2% --rps 50 --bursts 0.25
    What of a slow one, with a picture of a typical rollout?
      canaryrollout simulate -f rollout.yaml --stable-errors 0.5% --stable-slow 1% --canary-slow 4% --rps 50 \\
        --plot slow.png
    For a script:
      kubectl get canaryrollout reviews -o yaml | canaryrollout simulate -f - --stable-errors 0.1% --rps 20 -o json

    \b
    What is assumed:
      - requests come independently, at the same rate throughout; endpoints are ready, nobody else changes weights
      - a person approves at once, where steps ask for it; spec.paused is ignored; metrics of your own pass
      - requests hurt are those of the canary that failed and would not have failed on the stable version

    \b
    Exit status:
      0  the question was answered, whatever the answer is
      2  the question was wrong; the message says what is and what would be right
    """  # noqa: D301 - a backspace is how click is told to keep lines
    manifest = manifest_of(file, name)
    stable = Version(float(stable_errors), float(stable_slow or 0))
    canary = None
    if canary_errors is not None or canary_slow is not None:
        errors = stable_errors if canary_errors is None else canary_errors
        canary = Version(float(errors), stable.slow if canary_slow is None else float(canary_slow))
    question = Question(manifest, stable, rps, runs, seed, bursts, lag)
    _check(question, stable_slow, canary_slow)
    scenarios = _scenarios(question, canary)
    played = _play(scenarios, runs, jobs or min(os.cpu_count() or 1, _MOST_JOBS))
    cases = [Case(scenario.traffic.canary, summarize(done)) for scenario, done in zip(scenarios, played, strict=True)]
    warnings = advice.warnings(manifest.spec, scenarios[0].traffic, lag, cases)
    verdict = advice.verdict(rps, cases)
    document = simulate_report.document(question, cases, warnings, verdict)
    if plot is not None:
        _draw(plot, question, scenarios, played)
    if output is Output.JSON:
        simulate_report.print_json(document)
    else:
        simulate_report.print_tables(console(), question, cases, warnings, verdict)


def _check(question: Question, stable_slow: Fraction | None, canary_slow: Fraction | None) -> None:
    """Refuse questions whose answer would mean nothing."""
    if (stable_slow is not None or canary_slow is not None) and question.manifest.spec.analysis.latency is None:
        refuse(
            f"--stable-slow and --canary-slow are about spec.analysis.latency, which {question.manifest.key} does not "
            "have: leave them out, or add it"
        )


def _scenarios(question: Question, canary: Version | None) -> list[Scenario]:
    """Return what is simulated: a healthy canary first, then the one that was asked about, or several bad ones."""
    stable = question.stable
    if canary is not None:
        canaries = [stable] + ([canary] if canary != stable else [])
    elif stable.errors:
        worse = dict.fromkeys(min(stable.errors * factor, 1.0) for factor in _FACTORS)
        canaries = [stable, *(Version(errors, stable.slow) for errors in worse)]
    else:
        refuse("with --stable-errors 0% there is no rate to multiply: say how bad the canary is with --canary-errors")
    return [question.about(version) for version in canaries]


def _play(scenarios: Sequence[Scenario], runs: int, jobs: int) -> list[list[Run]]:
    """Play all runs, with a bar where somebody watches, and a word on how long it takes where nobody does."""
    played: defaultdict[int, list[Run]] = defaultdict(list)
    total, began = runs * len(scenarios), time.monotonic()
    with progress() as bar:
        task = bar.add_task("rollouts", total=total)
        for index, part in play_all(scenarios, runs, jobs):
            if not played and (warning := slow(time.monotonic() - began, len(part) * jobs, total)) and bar.disable:
                typer.echo(warning, err=True)
            played[index] += part
            bar.advance(task, len(part))
    return [sorted(played[index], key=lambda run: run.number) for index in range(len(scenarios))]


def slow(seconds: float, done: int, total: int) -> str:
    """Return a warning where all runs take long; empty where they do not.

    Args:
        seconds: How long the first took.
        done: How many those were.
        total: How many there are.
    """
    expected = timedelta(seconds=seconds * total / done)
    if expected < _PATIENCE:
        return ""
    return f"{total} rollouts of this many checks take about {advice.words(expected)}; fewer --runs answer sooner"


def _draw(file: Path, question: Question, scenarios: Sequence[Scenario], played: Sequence[Sequence[Run]]) -> None:
    """Draw a typical run of the healthy canary, and one of a bad canary that is taken back."""
    from canaryrollout.cli import pictures

    chosen = [0] + [min(2, len(scenarios) - 1)] * (len(scenarios) > 1)
    panels = []
    for index in chosen:
        scenario, number = scenarios[index], typical(played[index]).number
        rollout, _ = replay(scenario, number, judged=True)
        panels.append(pictures.Panel(advice.title(index, scenario.traffic.canary), rollout))
    title = f"{question.manifest.key} at {question.rps:g} requests/s: one typical rollout of each canary"
    try:
        pictures.draw(file, title, panels)
    except pictures.NoPlot as error:
        refuse(str(error))


def typical(runs: Sequence[Run]) -> Run:
    """Return the run in the middle of those that ended as most did.

    Args:
        runs: At least one.
    """
    outcomes = [run.outcome for run in runs]
    usual = max(Outcome, key=outcomes.count)
    ordered = sorted((run for run in runs if run.outcome is usual), key=lambda run: (run.exposed, run.number))
    return ordered[(len(ordered) - 1) // 2]
