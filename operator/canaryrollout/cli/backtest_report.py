"""The answer of ``backtest``, as tables for a person and as a document for a program.

The document is stable: fields may be added, and keep their names and units.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from math import exp
from typing import Any, Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from canaryrollout.api.status import Counts, format_time
from canaryrollout.cli.advice import percent, words
from canaryrollout.cli.imagined import ImaginedRollout, Moment, Outcome
from canaryrollout.cli.manifest import Manifest
from canaryrollout.domain.results import GateResult, Judgement

_MUCH: Final = 1.2
"""From which ratio on the real share of a canary differs much from its weight."""
_LARGEST: Final = 690.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was replayed.

    Attributes:
        manifest: The rollout as its author wrote it.
        rollout: The rollout as it would have gone.
        stable: The version that served.
        begin: Beginning of the window.
        end: Its end.
        url: The Prometheus that was asked.
    """

    manifest: Manifest
    rollout: ImaginedRollout
    stable: str
    begin: datetime
    end: datetime
    url: str


@dataclass(frozen=True, slots=True)
class StepSeen:
    """What was counted while the canary would have had a weight."""

    weight: int
    begin: datetime
    end: datetime
    canary: Counts
    stable: Counts
    verdict: str

    @property
    def share(self) -> float | None:
        """Return the canary's real share of the requests, between 0 and 1."""
        whole = self.canary.requests + self.stable.requests
        return self.canary.requests / whole if whole else None


def steps_seen(moments: Sequence[Moment]) -> tuple[StepSeen, ...]:
    """Return the weights that were judged, with the last counts of each."""
    begun: dict[int, datetime] = {}
    last: dict[int, tuple[datetime, Judgement]] = {}
    for before, moment in pairwise(moments):
        begun.setdefault(moment.weight, moment.time)
        if moment.judgement is not None:
            last[before.weight] = moment.time, moment.judgement
    return tuple(
        StepSeen(weight, begun[weight], end, judged.canary, judged.stable, judged.verdict.value)
        for weight, (end, judged) in last.items()
    )


def verdict(replayed: Replayed) -> str:
    """Say in a sentence what the operator would have done, when and why."""
    rollout, version = replayed.rollout, replayed.rollout.spec.version
    ended = rollout.ended
    if ended is None:
        at = f"weight {rollout.weight}, {rollout.reason}" if rollout.weight else rollout.reason
        return (
            f"The operator would not be done with {version} at {replayed.end:%H:%M:%S} UTC, when the window ends: "
            f"{at}: {why(replayed)}."
        )
    when = f"at {ended.time:%Y-%m-%d %H:%M:%S} UTC, {words(ended.time - replayed.begin)} after it began"
    did = {
        Outcome.PROMOTED: f"would have promoted {version} {when}",
        Outcome.TAKEN_BACK: f"would have taken {version} back {when}",
        Outcome.OUT_OF_TIME: f"would have met the deadline of {version} {when}",
    }[rollout.outcome]
    return f"The operator {did}: {why(replayed)}."


def why(replayed: Replayed) -> str:
    """Return what the end was decided by, or what is waited for, with the newest numbers."""
    rollout, ended = replayed.rollout, replayed.rollout.ended
    if ended is not None:
        record = rollout.record
        return record.explanation if record is not None and record.reason else ended.message
    last = rollout.moments[-1].judgement if rollout.moments else None
    return last.message if last is not None else rollout.status.message


def notes(replayed: Replayed) -> Iterator[str]:
    """Say how far the window differs from what the rollout would have met."""
    for step in steps_seen(replayed.rollout.moments):
        ratio = (step.share or 0.0) * 100 / step.weight
        if step.share is not None and not 1 / _MUCH < ratio < _MUCH:
            pace = f"{ratio:.1f} times as fast as" if ratio > 1 else f"{1 / max(ratio, 0.01):.1f} times as slowly as"
            yield (
                f"at weight {step.weight} the canary really had {percent(step.share)} of the requests: evidence came "
                f"{pace} it would have"
            )


def document(replayed: Replayed) -> dict[str, Any]:
    """Return the answer as a JSON document."""
    rollout, ended = replayed.rollout, replayed.rollout.ended
    return {
        "rollout": {
            "name": replayed.manifest.name,
            "namespace": replayed.manifest.namespace,
            "stable": replayed.stable,
            "canary": rollout.spec.version,
        },
        "window": {"from": format_time(replayed.begin), "to": format_time(replayed.end)},
        "provider": {"name": rollout.spec.analysis.provider, "url": replayed.url},
        "outcome": rollout.outcome.value,
        "at": format_time(ended.time) if ended else None,
        "secondsAfterBegin": round((ended.time - replayed.begin).total_seconds(), 1) if ended else None,
        "weight": ended.weight if ended else rollout.weight,
        "reason": ended.reason if ended else rollout.reason,
        "message": why(replayed),
        "steps": [
            {
                "weight": step.weight,
                "from": format_time(step.begin),
                "to": format_time(step.end),
                "canary": step.canary.model_dump(),
                "stable": step.stable.model_dump(),
                "canaryShare": round(step.share, 4) if step.share is not None else None,
                "verdict": step.verdict,
            }
            for step in steps_seen(rollout.moments)
        ],
        "history": [
            {"time": format_time(entry.time), "reason": entry.reason, "weight": entry.weight, "message": entry.message}
            for entry in rollout.history
        ],
        "checks": [_check(before.weight, moment) for before, moment in pairwise(rollout.moments) if moment.judgement],
        "notes": list(notes(replayed)),
        "verdict": verdict(replayed),
    }


def _check(weight: int, moment: Moment) -> dict[str, Any]:
    judgement = moment.judgement
    assert judgement is not None  # noqa: S101 - the caller looked
    return {
        "time": format_time(moment.time),
        "weight": weight,
        "verdict": judgement.verdict.value,
        "reason": judgement.reason,
        "message": judgement.message,
        "gates": [_gate(gate) for gate in judgement.gates],
    }


def _gate(gate: GateResult) -> dict[str, Any]:
    return {
        "name": gate.name,
        "verdict": gate.verdict.value,
        "reason": gate.reason,
        "message": gate.message,
        "limits": [
            {"limit": limit.limit, "evidence": _value(limit.log_evidence), "threshold": _value(limit.log_threshold)}
            for limit in gate.limits
        ],
    }


def _value(logarithm: float | None) -> float | None:
    """Return an e-value with as many digits as mean something."""
    return None if logarithm is None else float(f"{exp(min(logarithm, _LARGEST)):.3g}")


def print_json(replayed: Replayed) -> None:
    """Print the document."""
    typer.echo(json.dumps(document(replayed), indent=2))


def print_tables(out: Console, replayed: Replayed) -> None:
    """Print the answer for a person."""
    rollout = replayed.rollout
    window = f"{replayed.begin:%Y-%m-%d %H:%M:%S} to {replayed.end:%Y-%m-%d %H:%M:%S} UTC"
    out.print(
        f"{replayed.manifest.key}, {replayed.stable} to {rollout.spec.version}, {window} "
        f"({words(replayed.end - replayed.begin)}), counted by {escape(replayed.url)}"
    )
    out.print(_history(replayed))
    out.print(_steps(replayed))
    out.print(_gates(replayed))
    for note in notes(replayed):
        out.print(f"[yellow]![/] {escape(note)}")
    out.print(f"[bold]{escape(verdict(replayed))}[/]")


def _history(replayed: Replayed) -> Table:
    table = _table("time (UTC)", "after", "what", "why")
    for entry in replayed.rollout.history:
        after = words(entry.time - replayed.begin)
        table.add_row(f"{entry.time:%H:%M:%S}", after, entry.reason, escape(entry.message))
    return table


def _steps(replayed: Replayed) -> Table:
    table = _table("weight", "judged for", "canary", "failed", "stable", "failed", "real share", "verdict")
    for step in steps_seen(replayed.rollout.moments):
        sides = [text for side in (step.canary, step.stable) for text in (f"{side.requests:,}", _failed(side))]
        share = percent(step.share) if step.share is not None else "-"
        table.add_row(f"{step.weight} %", words(step.end - step.begin), *sides, share, step.verdict)
    return table


def _failed(counts: Counts) -> str:
    return f"{counts.errors:,} ({percent(counts.errors / counts.requests)})" if counts.requests else "-"


def _gates(replayed: Replayed) -> Table:
    table = _table("gate", "verdict", "evidence", "in words (last check)")
    last = next((moment.judgement for moment in reversed(replayed.rollout.moments) if moment.judgement), None)
    for gate in last.gates if last is not None else ():
        table.add_row(gate.name, gate.verdict.value, "\n".join(_limits(gate)) or "-", escape(gate.message))
    return table


def _limits(gate: GateResult) -> Iterator[str]:
    for limit in gate.limits:
        value, threshold = _value(limit.log_evidence), _value(limit.log_threshold)
        if value is not None and threshold is not None:
            yield f"{limit.limit}: {value:g} of {threshold:g}"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
