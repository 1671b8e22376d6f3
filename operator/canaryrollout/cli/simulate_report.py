"""The answer of ``simulate``, as tables for a person and as a document for a program.

The document is stable: fields may be added, and keep their names and units. Probabilities are between 0 and 1, times
are in seconds, rates are percentages as the manifest spells them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from canaryrollout.api.quantities import format_duration
from canaryrollout.cli.advice import Case, percent, plan, rates, share, words
from canaryrollout.cli.simulation import Probability, Question, Spread
from canaryrollout.cli.traffic import Version
from canaryrollout.domain.gates import effective_analysis

_LEGEND: Final = (
    "Probabilities with their 95 % interval; median / 90th percentile of the rest. Taken back: counted from the\n"
    "canary's first request; promoted: from the start of the rollout."
)


def document(question: Question, cases: Sequence[Case], warnings: Sequence[str], verdict: str) -> dict[str, Any]:
    """Return the answer as a JSON document."""
    manifest = question.manifest
    mode = effective_analysis(manifest.spec.analysis).mode
    return {
        "rollout": {
            "name": manifest.name,
            "namespace": manifest.namespace,
            "version": manifest.spec.version,
            "mode": mode.value if mode else "",
            "steps": [
                {
                    "weight": step.weight,
                    "holdSeconds": step.hold.total_seconds(),
                    "canaryRequestsPerSecond": _rounded(step.rps),
                    "minRequestsAfterSeconds": _rounded(step.enough_after.total_seconds()),
                }
                for step in plan(manifest.spec, question.rps)
            ],
        },
        "traffic": {
            "requestsPerSecond": question.rps,
            "stable": _version(question.stable),
            "bursts": question.bursts,
            "lagSeconds": question.lag.total_seconds(),
        },
        "runs": question.runs,
        "seed": question.seed,
        "cases": [_case(case, healthy=index == 0) for index, case in enumerate(cases)],
        "warnings": list(warnings),
        "verdict": verdict,
    }


def _version(version: Version) -> dict[str, str]:
    return {name: percent(rate).replace(" ", "") for name, rate in (("errors", version.errors), ("slow", version.slow))}


def _case(case: Case, *, healthy: bool) -> dict[str, Any]:
    summary = case.summary
    return {
        "healthy": healthy,
        "canary": _version(case.canary),
        "promoted": _probability(summary.promoted),
        "takenBack": _probability(summary.taken_back),
        "outOfTime": _probability(summary.out_of_time),
        "secondsToDetect": _spread(summary.to_detect),
        "takenBackAtWeight": {str(weight): count for weight, count in summary.detected_at.items()},
        "takenBackByGate": dict(summary.gates),
        "requestsHurt": _spread(summary.hurt),
        "requestsSlowed": _spread(summary.slowed),
        "secondsToPromotion": _spread(summary.to_promotion),
        "steps": [
            {
                "weight": step.weight,
                "seconds": _spread(step.seconds),
                "waits": {reason: _rounded(seconds) for reason, seconds in step.waits.items()},
            }
            for step in summary.steps
        ],
    }


def _probability(found: Probability) -> dict[str, Any]:
    low, high = found.interval
    return {
        "runs": found.runs,
        "probability": round(found.value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def _spread(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else {"median": _rounded(found.median), "p90": _rounded(found.p90)}


def _rounded(value: float) -> float:
    return round(value, 1) if value < 1e6 else float(f"{value:.4g}")


def print_json(answer: Mapping[str, Any]) -> None:
    """Print the document."""
    typer.echo(json.dumps(answer, indent=2))


def print_tables(
    out: Console, question: Question, cases: Sequence[Case], warnings: Sequence[str], verdict: str
) -> None:
    """Print the answer for a person."""
    manifest = question.manifest
    bursts = f", in bursts (cv² {question.bursts:g})" if question.bursts else ""
    out.print(
        f"{manifest.key} to {manifest.spec.version}, {question.rps:g} requests/s, stable has "
        f"{rates(question.stable)}{bursts}; {question.runs} rollouts of each canary, seed {question.seed}"
    )
    out.print(_outcomes(cases))
    out.print(_LEGEND)
    out.print(_steps(question, cases[0]))
    for warning in warnings:
        out.print(f"[yellow]![/] {escape(warning)}")
    out.print(f"[bold]{escape(verdict)}[/]")


def _outcomes(cases: Sequence[Case]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("", no_wrap=True)
    for index, case in enumerate(cases):
        name = "healthy canary" if index == 0 else "canary"
        table.add_column(f"{name}\n{rates(case.canary)}", no_wrap=True)
    summaries = [case.summary for case in cases]
    rows = [
        ("promoted", [_share(summary.promoted) for summary in summaries]),
        ("taken back", [_share(summary.taken_back) for summary in summaries]),
        ("out of time", [_share(summary.out_of_time) for summary in summaries]),
        ("taken back after", [_times(summary.to_detect) for summary in summaries]),
        ("at weight", [_weights(summary.detected_at) for summary in summaries]),
        ("requests hurt", [_counts(summary.hurt) for summary in summaries]),
        ("requests slowed", [_counts(summary.slowed) for summary in summaries]),
        ("promoted after", [_times(summary.to_promotion) for summary in summaries]),
    ]
    for name, cells in rows:
        if name != "requests slowed" or any(case.canary.slow for case in cases):
            table.add_row(name, *cells)
    return table


def _steps(question: Question, case: Case) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("step", "requests/s", "minRequests after", "hold", "takes", "of which (healthy canary, median)"):
        table.add_column(heading, no_wrap=not heading.startswith("of which"))
    taken = {step.weight: step for step in case.summary.steps}
    if (before := taken.get(0)) is not None:
        table.add_row("prepare", "0", "", "", _times(before.seconds), _waits(before.waits))
    for step in plan(question.manifest.spec, question.rps):
        found = taken.get(step.weight)
        table.add_row(
            f"{step.weight} %",
            f"{step.rps:.3g}",
            words(step.enough_after),
            format_duration(step.hold),
            _times(found.seconds) if found else "never passed",
            _waits(found.waits) if found else "",
        )
    return table


def _share(found: Probability) -> str:
    low, high = found.interval
    return f"{share(found.value)} ({100 * low:.1f}..{100 * high:.1f})"


def _times(found: Spread | None) -> str:
    if found is None:
        return "-"
    return " / ".join(words(timedelta(seconds=value)) for value in (found.median, found.p90))


def _counts(found: Spread | None) -> str:
    return "-" if found is None else f"{found.median:.0f} / {found.p90:.0f}"


def _weights(detected_at: Mapping[int, int]) -> str:
    if not detected_at:
        return "-"
    usual = max(detected_at, key=lambda weight: detected_at[weight])
    return f"{usual} ({share(detected_at[usual] / sum(detected_at.values()))})"


def _waits(waits: Mapping[str, float]) -> str:
    return ", ".join(f"{reason} {words(timedelta(seconds=seconds))}" for reason, seconds in waits.items())
