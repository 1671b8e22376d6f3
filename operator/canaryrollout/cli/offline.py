"""What the program can tell without a cluster: its version, and the definition of its resource."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import typer

from canaryrollout import __version__
from canaryrollout.api.crd import render


def version() -> None:
    """Print the versions of the operator and of what it is built on."""
    typer.echo(f"canaryrollout {__version__}")
    typer.echo(f"python {platform.python_version()}")
    for package in ("kopf", "kubernetes", "prometheus-api-client", "pydantic"):
        typer.echo(f"{package} {version_of(package)}")


def crd() -> None:
    """Print the definition of CanaryRollouts, to be applied before the operator runs.

    \b
    canaryrollout crd | kubectl apply --server-side -f -
    """  # noqa: D301 - a backspace is how click is told to keep lines
    typer.echo(render(), nl=False)
