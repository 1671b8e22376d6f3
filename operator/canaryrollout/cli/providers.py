"""``canaryrollout providers check``: do the providers of a settings file answer, before a rollout depends on it?

It asks with the same client, credentials and certificates as the operator does, so what it finds is what the operator
would find from the same place.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry
from rich import box
from rich.markup import escape
from rich.table import Table

from canaryrollout.adapters.prometheus_client import Metrics, PrometheusClient
from canaryrollout.adapters.prometheus_provider import Provider, QueryFailed
from canaryrollout.adapters.prometheus_queries import REQUESTS, quoted
from canaryrollout.cli.options import FAILED, Form, Output, console, refuse
from canaryrollout.shell.main import providers as providers_of
from canaryrollout.shell.settings import SettingsError, load

app = typer.Typer(name="providers", help="The Prometheus servers of a settings file.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one question to one provider.

    Attributes:
        provider: Who was asked.
        milliseconds: How long the answer took; ``None`` when there was none.
        series: How many series of Istio's requests it has, seen by the configured reporter.
        warnings: What it said beside the answer.
        problem: Why there was no answer.
    """

    provider: Provider
    milliseconds: int | None = None
    series: int = 0
    warnings: tuple[str, ...] = ()
    problem: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what a person should know about it."""
        found = [self.problem] if self.problem else [f"warning: {warning}" for warning in self.warnings]
        if not self.problem and not self.series:
            found.append(f"it has no series {REQUESTS}{_selector(self.provider)}: does it scrape the proxies?")
        if self.provider.insecure_skip_verify:
            found.append("its certificate is not verified")
        return tuple(found)


@app.callback()
def _group() -> None:
    """Keep ``check`` a command of its own, though it is the only one."""


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Providers to ask. Default: all.", metavar="NAME")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="The operator's settings file; environment variables count.", show_default=False
        ),
    ] = None,
    output: Form = Output.TABLE,
) -> None:
    """Ask every provider one question, with its credentials, and tell whether it answers.

    \b
    From your machine:
      canaryrollout providers check -c config.yaml
    From where the operator runs, with its Secrets:
      kubectl exec -n canaryrollout deploy/canaryrollout -- \\
        canaryrollout providers check -c /etc/canaryrollout/config.yaml

    \b
    Exit status:
      0  all answer
      1  at least one does not
      2  the settings are wrong, or name no such provider
    """  # noqa: D301 - a backspace is how click is told to keep lines
    findings = asyncio.run(_ask_all(_chosen(config, names or [])))
    if output is Output.JSON:
        typer.echo(json.dumps([_document(finding) for finding in findings], indent=2))
    else:
        _print_table(findings)
    if any(finding.problem for finding in findings):
        raise typer.Exit(FAILED)


def _chosen(config: Path | None, names: list[str]) -> list[Provider]:
    try:
        defined = providers_of(load(config, {}).providers)
    except SettingsError as error:
        refuse(f"Settings are wrong:\n{error}")
    unknown = [name for name in names if name not in defined]
    if unknown or not defined:
        missing = f"{', '.join(unknown)} not defined" if unknown else "no provider is defined"
        refuse(f"{missing}; defined are: {', '.join(sorted(defined)) or 'none'}")
    return [defined[name] for name in names or sorted(defined)]


async def _ask_all(providers: list[Provider]) -> list[Finding]:
    return await asyncio.gather(*map(_ask, providers))


async def _ask(provider: Provider) -> Finding:
    client = PrometheusClient(provider, Metrics(CollectorRegistry()))
    started = time.monotonic()
    try:
        answer = await client.at(f"count({REQUESTS}{_selector(provider)})", datetime.now(UTC))
        series = int(answer.result[0]["value"][1]) if answer.result else 0
    except QueryFailed as error:
        return Finding(provider, problem=str(error))
    except (LookupError, TypeError, ValueError):
        return Finding(provider, problem=f"{provider.url} answers with something that is no Prometheus result")
    finally:
        await client.close()
    return Finding(provider, round((time.monotonic() - started) * 1000), series, answer.warnings)


def _selector(provider: Provider) -> str:
    return f"{{reporter={quoted(provider.reporter)}}}"


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.provider.name,
        "url": finding.provider.url,
        "credentials": list(finding.provider.credentials),
        "answers": not finding.problem,
        "milliseconds": finding.milliseconds,
        "series": finding.series,
        "remarks": list(finding.remarks),
    }


def _print_table(findings: list[Finding]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("PROVIDER", "ANSWERS", "SERIES", "CREDENTIALS", "URL", "REMARKS"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(
            escape(finding.provider.name),
            "[red]no[/red]" if finding.problem else f"in {finding.milliseconds} ms",
            "" if finding.problem else str(finding.series),
            ", ".join(finding.provider.credentials) or "none",
            escape(finding.provider.url),
            escape("\n".join(finding.remarks)),
        )
    console().print(table)
