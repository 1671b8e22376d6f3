"""``python -m canaryrollout``: the program's commands."""

from __future__ import annotations

import typer

from canaryrollout.cli import providers
from canaryrollout.cli.backtest import backtest
from canaryrollout.cli.offline import crd, version
from canaryrollout.cli.simulate import simulate
from canaryrollout.shell.commands import run

app = typer.Typer(
    name="canaryrollout",
    help="Progressive delivery for Istio: moves traffic step by step, judges every step, and takes it back in time.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(version)
app.command()(crd)
app.command()(simulate)
app.command()(backtest)
app.add_typer(providers.app)


def main() -> None:
    """Run the program."""
    app()


if __name__ == "__main__":
    main()
