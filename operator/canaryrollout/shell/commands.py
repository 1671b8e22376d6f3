"""The command line of the operator: flags for what is set often, and words that teach the rest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer

from canaryrollout.adapters.kube import ApiError
from canaryrollout.shell import logs
from canaryrollout.shell.main import Source, lease_settings
from canaryrollout.shell.main import run as run_operator
from canaryrollout.shell.settings import LogFormat, LogLevel, Settings, SettingsError, load, variable

FAILED: Final = 1
BAD_SETTINGS: Final = 2

CONNECTION: Final = "Connection and scope"
WORK: Final = "Work"
EVIDENCE: Final = "Evidence"
ELECTION: Final = "Leader election"
OUTPUT: Final = "Probes and logs"


def _flag(name: str, text: str, panel: str, *setting: str, **more: Any) -> Any:
    """Return a typer option whose help names the environment variable of the setting as well."""
    return typer.Option(name, help=f"{text} [{variable(*setting)}]", rich_help_panel=panel, show_default=False, **more)


def run(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML file with settings; see above.", show_default=False),
    ] = None,
    kubeconfig: Annotated[
        str | None,
        _flag(
            "--kubeconfig",
            "Path of a kubeconfig. Default: $KUBECONFIG, else the service account of the Pod, else ~/.kube/config.",
            CONNECTION,
            "kubeconfig",
        ),
    ] = None,
    context: Annotated[
        str | None, _flag("--context", "Context of the kubeconfig. Default: its current one.", CONNECTION, "context")
    ] = None,
    namespaces: Annotated[
        list[str] | None,
        _flag(
            "--namespace",
            "Namespace to serve; may be repeated. Default: the whole cluster.",
            CONNECTION,
            "namespaces",
        ),
    ] = None,
    cluster_domain: Annotated[
        str | None,
        _flag("--cluster-domain", "DNS domain of the cluster. Default: cluster.local.", CONNECTION, "cluster_domain"),
    ] = None,
    workers: Annotated[
        str | None, _flag("--workers", "Rollouts worked on at once. Default: 64.", WORK, "workers")
    ] = None,
    resync: Annotated[
        str | None,
        _flag("--resync", "How often a rollout is looked at when nothing happens. Default: 5m.", WORK, "resync"),
    ] = None,
    prometheus_url: Annotated[
        str | None,
        _flag(
            "--prometheus-url",
            "URL of the provider 'default'; more providers and their settings go into the file.",
            EVIDENCE,
            "providers",
            "default",
            "url",
        ),
    ] = None,
    scrape_interval: Annotated[
        str | None,
        _flag(
            "--scrape-interval",
            "How often that Prometheus scrapes the proxies. Default: 15s.",
            EVIDENCE,
            "providers",
            "default",
            "scrape_interval",
        ),
    ] = None,
    leader_election: Annotated[
        bool | None,
        typer.Option(
            "--leader-election/--no-leader-election",
            help="Whether replicas elect one that acts. Switch it off only where no other replica can run. "
            f"Default: on. [{variable('leader_election', 'enabled')}]",
            rich_help_panel=ELECTION,
            show_default=False,
        ),
    ] = None,
    lease_namespace: Annotated[
        str | None,
        _flag(
            "--lease-namespace",
            "Namespace of the Lease. Default: that of the Pod, else 'default'.",
            ELECTION,
            "leader_election",
            "namespace",
        ),
    ] = None,
    lease_name: Annotated[
        str | None,
        _flag("--lease-name", "Name of the Lease. Default: canaryrollout.", ELECTION, "leader_election", "name"),
    ] = None,
    http_host: Annotated[
        str | None,
        _flag(
            "--http-host",
            "Address for /healthz, /readyz and /metrics. Default: all addresses in a Pod, 127.0.0.1 elsewhere.",
            OUTPUT,
            "http_host",
        ),
    ] = None,
    http_port: Annotated[
        str | None, _flag("--http-port", "Their port; 0 takes a free one. Default: 8080.", OUTPUT, "http_port")
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        _flag("--log-format", "Default: console on a terminal, json elsewhere.", OUTPUT, "log_format"),
    ] = None,
    log_level: Annotated[
        LogLevel | None, _flag("--log-level", "Least important lines to log. Default: info.", OUTPUT, "log_level")
    ] = None,
) -> None:
    """Run the operator until it is told to stop.

    Settings come from the first of these that names them: flags come first, then environment variables (named in
    brackets below), then the file given by --config, then defaults. The file's providers are taken in within seconds
    when they change; everything else needs a restart.

    \b
    Against the cluster of your kubeconfig, with one Prometheus:
      canaryrollout run --prometheus-url http://localhost:9090
    For two namespaces only, with permissions there only:
      canaryrollout run --namespace shop --namespace payments --config config.yaml

    \b
    The file, with everything that flags do not offer:
      providers:          # everything about them: docs/providers.md
        default: {url: "http://prometheus.istio-system:9090", scrapeInterval: 15s}
        tenant-a:
          url: https://thanos.example.com
          headers: {X-Scope-OrgID: tenant-a}
          queryParameters: {dedup: true, partial_response: false}
          caFile: /var/run/secrets/thanos/ca.crt
          bearerTokenFile: /var/run/secrets/thanos/token
          timeout: 10s        # of a query
          lag: 20s            # how far behind the present its data is
          concurrency: 4      # queries at once
          reporter: source    # whose view of a request counts: source or destination
          namespaces: [shop, "team-*"]
          customQueries: NamespaceEnforced
      leaderElection: {leaseDuration: 15s, renewDeadline: 10s, retryPeriod: 2s}
      timings: {subsetSettle: 5s, drain: 5s, propagation: 1s}

    \b
    Exit status:
      0  it was told to stop (SIGTERM or SIGINT)
      1  it could not go on; the last lines of the log say why
      2  a setting is wrong; the message says which and what would be right
    """  # noqa: D301 - a backspace is how click is told to keep lines
    flags = {
        "kubeconfig": kubeconfig,
        "context": context,
        "namespaces": tuple(namespaces) if namespaces else None,
        "cluster_domain": cluster_domain,
        "workers": workers,
        "resync": resync,
        "providers": {"default": {"url": prometheus_url, "scrape_interval": scrape_interval}},
        "leader_election": {"enabled": leader_election, "namespace": lease_namespace, "name": lease_name},
        "http_host": http_host,
        "http_port": http_port,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = _settings(config, flags)
    source = Source(config, given(flags)) if config is not None else None
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(run_operator(settings, source))
    except (ApiError, OSError, RuntimeError) as error:
        structlog.get_logger(__name__).critical("giving up", error=str(error), exc_info=isinstance(error, RuntimeError))
        raise typer.Exit(FAILED) from None


def _settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    try:
        settings = load(config, given(flags))
        lease_settings(settings)
    except (SettingsError, ValueError) as error:
        typer.echo(f"Settings are wrong:\n{error}", err=True)
        raise typer.Exit(BAD_SETTINGS) from None
    return settings


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given, however deep."""
    kept: dict[str, Any] = {}
    for name, value in flags.items():
        inner = given(value) if isinstance(value, dict) else value
        if inner is not None and inner != {}:
            kept[name] = inner
    return kept
