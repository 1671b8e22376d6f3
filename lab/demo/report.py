"""The demo's last words: a summary for people, and the same with every number as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.demo.checks import Check, interval
from lab.demo.facts import BreachFacts, DemoFacts, Failures, RequestFacts, RolloutFacts, StepFacts


def write_report(path: Path, demo: DemoFacts, checks: Sequence[Check]) -> None:
    """Write the report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(as_dict(demo, checks), indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)


def as_dict(demo: DemoFacts, checks: Sequence[Check]) -> dict[str, Any]:
    """The report as what JSON knows."""
    return {
        "passed": all(check.holds for check in checks),
        "beganAt": _time(demo.began_at),
        "seconds": _rounded(demo.ended_at - demo.began_at),
        "load": {"requestsPerSecond": demo.rate, "skipped": demo.skipped},
        "requests": _requests(demo.requests),
        "rollouts": [_rollout(rollout) for rollout in demo.rollouts],
        "undo": {"moments": demo.undo.moments, "mismatches": list(demo.undo.mismatches)},
        "checks": [{"subject": c.subject, "promise": c.promise, "holds": c.holds, "found": c.found} for c in checks],
    }


def _rollout(rollout: RolloutFacts) -> dict[str, Any]:
    return {
        "title": rollout.title,
        "stable": rollout.stable,
        "canary": rollout.canary,
        "expected": str(rollout.expected),
        "outcome": str(rollout.outcome),
        "explanation": rollout.explanation,
        "beganAt": _time(rollout.began_at),
        "seconds": _rounded(rollout.ended_at - rollout.began_at),
        "steps": [_step(step) for step in rollout.steps],
        "breach": _breach(rollout.breach, rollout.interval) if rollout.breach else None,
        "requests": _requests(rollout.requests),
        "requestsLostToTheMesh": rollout.requests.lost_requests,
        "objects": [
            {
                "kind": item.kind,
                "name": item.name,
                "writes": item.writes,
                "diffWithoutOurFields": list(item.diff),
                "alteredByTheRollout": list(item.altered),
            }
            for item in rollout.objects
        ],
    }


def _step(step: StepFacts) -> dict[str, Any]:
    low, high = interval(step) if step.requests else (None, None)
    return {
        "weight": step.weight,
        "requestedShare": step.weight / 100,
        "observedShare": None if step.share is None else round(step.share, 5),
        "requests": step.requests,
        "canaryRequests": step.canary,
        "canaryRequestsExpected": {"from": low, "to": high},
        "writtenAt": _time(step.written_at),
        "inEffectAt": None if step.in_effect_at is None else _time(step.in_effect_at),
        "until": _time(step.until),
    }


def _breach(breach: BreachFacts, interval_seconds: float) -> dict[str, Any]:
    return {
        "visibleAt": None if breach.visible_at is None else _time(breach.visible_at),
        "weightZeroAt": None if breach.zero_at is None else _time(breach.zero_at),
        "seconds": None if breach.seconds is None else _rounded(breach.seconds),
        "analysisIntervalSeconds": interval_seconds,
        "gate": breach.message,
    }


def _requests(requests: RequestFacts) -> dict[str, Any]:
    return {
        "sent": requests.sent,
        "failedByTheInjectedFault": requests.injected,
        "lostToTheMesh": [_failures(failures) for failures in requests.lost],
        "failedOtherwise": [_failures(failures) for failures in requests.failed],
    }


def _failures(failures: Failures) -> dict[str, Any]:
    return {
        "requests": failures.requests,
        "version": failures.version,
        "status": failures.status,
        "reason": failures.reason,
        "flags": failures.flags,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


def print_summary(console: Console, demo: DemoFacts, checks: Sequence[Check]) -> None:
    """Print what came of each rollout, then every promise and whether it held."""
    table = Table("rollout", "outcome", "weight: share seen", "breach to weight 0", "lost", title_justify="left")
    for rollout in demo.rollouts:
        as_expected = rollout.outcome is rollout.expected
        breach = rollout.breach.seconds if rollout.breach else None
        table.add_row(
            rollout.title,
            Text(str(rollout.outcome), style="green" if as_expected else "bold red"),
            "\n".join(_seen(step) for step in rollout.steps),
            "-" if breach is None else f"{breach:.2f} s",
            f"{rollout.requests.lost_requests} of {rollout.requests.sent}",
        )
    console.print(table)
    for check in checks:
        mark = Text("  ok   " if check.holds else "  FAIL ", style="green" if check.holds else "bold red")
        text = Text.assemble(mark, f"{check.subject}: {check.promise}", (f"  ({check.found})", "dim"))
        console.print(text, soft_wrap=True)


def _seen(step: StepFacts) -> str:
    share = "no requests" if step.share is None else f"{step.share:.2%} of {step.requests}"
    return f"{step.weight} %: {share}"
