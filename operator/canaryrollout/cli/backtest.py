"""``canaryrollout backtest``: what would the operator have done, when, and why?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus import PrometheusSource, Provider
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.cli import backtest_report
from canaryrollout.cli.backtest_report import Replayed
from canaryrollout.cli.imagined import ImaginedRollout
from canaryrollout.cli.options import (
    FAILED,
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
from canaryrollout.cli.options import moment as moment_of
from canaryrollout.cli.past import NoAnswer, PastProvider
from canaryrollout.domain.settings import DomainSettings
from canaryrollout.shell.logs import configure
from canaryrollout.shell.main import domain_settings, providers
from canaryrollout.shell.settings import LogFormat, LogLevel, Settings, SettingsError, load

DEFAULT_WINDOW: Final = timedelta(hours=1)


def backtest(
    file: ManifestFile,
    stable: Annotated[str, typer.Option("--stable", metavar="VERSION", help="Version that served in the window.")],
    canary: Annotated[
        str, typer.Option("--canary", metavar="VERSION", help="Version to judge. Default: spec.version.")
    ] = "",
    since: Annotated[
        datetime | None,
        typer.Option(
            "--from",
            parser=moment_of,
            metavar="TIME",
            show_default=False,
            help="When the imagined rollout begins: RFC 3339, '2h ago' or -2h. Default: an hour before --to.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            "--to", parser=moment_of, metavar="TIME", show_default=False, help="Where the window ends. Default: now."
        ),
    ] = None,
    provider_config: Annotated[
        Path | None,
        typer.Option(
            "--provider-config",
            metavar="FILE",
            show_default=False,
            help="The operator's settings file: its providers, credentials and timings are used.",
        ),
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option("--prometheus", metavar="URL", show_default=False, help="The Prometheus to ask."),
    ] = None,
    scrape_interval: Annotated[
        str | None,
        typer.Option(
            "--scrape-interval",
            metavar="DURATION",
            show_default=False,
            help="How often it scrapes the proxies. Default: as in the file, else 15s.",
        ),
    ] = None,
    name: ManifestName = "",
    output: Form = Output.TABLE,
    plot: PlotFile = None,
) -> None:
    """Tell what the operator would have done in the past: replay a window of a real Prometheus for two versions.

    The operator's own code decides, pass by pass, on what Prometheus could have told it at the time.

    \b
    Would these limits have caught the release of last night?
      canaryrollout backtest -f rollout.yaml --stable v1 --canary v2 \\
        --from 2026-01-31T22:00:00Z --to 2026-01-31T23:00:00Z --prometheus http://localhost:9090
    The last two hours, with the operator's own settings (providers, credentials), and a picture:
      canaryrollout backtest -f rollout.yaml --stable v1 --canary v2 --from -2h --provider-config config.yaml \\
        --plot night.svg
    For a script:
      canaryrollout backtest -f rollout.yaml --stable v1 --prometheus http://localhost:9090 -o json

    \b
    What is assumed:
      - the rollout begins at --from; its weights are imagined, and both versions keep the traffic they really had. The
        answer says how much that was: a canary with a larger share than its weight is judged on more requests than it
        would have had, hence sooner
      - so a weight is taken to be in effect when it is written, and shares that contradict it say nothing
      - endpoints are ready, nobody else changes weights, a person approves at once; spec.paused is ignored

    \b
    Exit status:
      0  the question was answered, whatever the answer is
      1  Prometheus could not be asked; the message says why
      2  the question was wrong; the message says what is and what would be right
    """  # noqa: D301 - a backspace is how click is told to keep lines
    configure(LogFormat.AUTO, LogLevel.ERROR)
    manifest = manifest_of(file, name)
    spec = manifest.spec.model_copy(update={"version": canary or manifest.spec.version, "initial_stable_version": None})
    if stable == spec.version:
        refuse(f"--stable and --canary are both {stable}: name two versions")
    begin, end = _window(since, until)
    settings = _settings(provider_config, spec.analysis.provider, prometheus, scrape_interval)
    try:
        rollout = asyncio.run(_replay(spec, stable, manifest.namespace, (begin, end), settings))
    except NoAnswer as error:
        refuse(f"provider {spec.analysis.provider} does not answer: {error}", FAILED)
    replayed = Replayed(manifest, rollout, stable, begin, end, settings.providers[spec.analysis.provider].url)
    if plot is not None:
        _draw(plot, replayed)
    if output is Output.JSON:
        backtest_report.print_json(replayed)
    else:
        backtest_report.print_tables(console(), replayed)


def _window(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """Return begin and end of the window, to the millisecond."""
    now = datetime.now(UTC)
    end = until or now
    begin = since or end - DEFAULT_WINDOW
    if end > now + timedelta(seconds=5):
        refuse(f"--to is {end.isoformat()}, which is in the future: leave it out for now")
    if begin >= end:
        refuse(f"--from is {begin.isoformat()} and --to is {end.isoformat()}: the window has to begin before it ends")
    return begin.replace(microsecond=begin.microsecond // 1000 * 1000), end


def _settings(file: Path | None, name: str, url: str | None, scrape_interval: str | None) -> Settings:
    """Return the operator's settings, with the provider that the rollout names."""
    given = {key: value for key, value in (("url", url), ("scrape_interval", scrape_interval)) if value is not None}
    flags: dict[str, Any] = {"providers": {name: given}} if given else {}
    try:
        settings = load(file, flags)
    except SettingsError as error:
        refuse(f"Settings are wrong:\n{error}")
    if name not in settings.providers:
        defined = ", ".join(sorted(settings.providers)) or "none"
        refuse(
            f"spec.analysis.provider is {name}, which is not defined (defined: {defined}): say where it is with "
            "--prometheus URL, or name the operator's settings file with --provider-config"
        )
    return settings


async def _replay(
    spec: CanaryRolloutSpec, stable: str, namespace: str, window: tuple[datetime, datetime], settings: Settings
) -> ImaginedRollout:
    """Play the rollout from the beginning of the window to its end, or its own."""
    begin, end = window
    asked: Mapping[str, Provider] = providers(settings.providers)
    timing: DomainSettings = domain_settings(settings)
    source = PrometheusSource(asked, CollectorRegistry())
    past = PastProvider(source, asked[spec.analysis.provider].lag, end)
    rollout = ImaginedRollout(spec, stable, namespace, begin, timing, in_effect_at_once=True, judged=True)
    try:
        with progress() as bar:
            task = bar.add_task("seconds of the window", total=round((end - begin).total_seconds()))
            while rollout.ended is None and rollout.now <= end:
                rollout.look(await past.answer(rollout.needs(), rollout.now))
                bar.update(task, completed=round((rollout.now - begin).total_seconds()))
    finally:
        await source.close()
    return rollout


def _draw(file: Path, replayed: Replayed) -> None:
    from canaryrollout.cli import pictures

    title = f"{replayed.manifest.key}: what the operator would have done from {replayed.begin:%Y-%m-%d %H:%M:%S} UTC on"
    panel = pictures.Panel(
        f"{replayed.stable} to {replayed.rollout.spec.version}, as counted by Prometheus", replayed.rollout
    )
    try:
        pictures.draw(file, title, [panel])
    except pictures.NoPlot as error:
        refuse(str(error))
