"""The proxy from a shell: ``python -m lab.faultproxy --help``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from lab.errors import LabError
from lab.faultproxy.calls import WRITES
from lab.faultproxy.journal import Entry
from lab.faultproxy.proxy import FaultProxy
from lab.faultproxy.rules import GRAMMAR

_RULES = GRAMMAR.replace("\n\n", "\n\n\b\n")  # \b keeps the lines of a paragraph as they are
_HELP = f"""A proxy in front of a Kubernetes API server that makes it fail on demand.

Point the client to it with the kubeconfig that it writes, and say with rules what is to go wrong. It prints every
request once it is answered (a watch when it begins, too), and ends on Ctrl-C.

\b
{_RULES}

Examples:

\b
  --rule 'patch virtualservices n=3 kill-after pid=4711'
  --rule 'write from=20s for=30s answer=503'
  --rule 'watch canaryrollouts from=10s gone'
  --rule 'patch canaryrollouts/status every=2 answer=409'
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
def run(
    upstream_kubeconfig: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Where the API server is, and credentials for it.")
    ],
    kubeconfig: Annotated[Path | None, typer.Option(help="Where to write the kubeconfig for clients.")] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="What goes wrong; may be repeated, the first that fits wins.")
    ] = None,
    port: Annotated[int, typer.Option(help="Where to listen on 127.0.0.1; 0 for any free port.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print requests as JSON.")] = False,
    writes: Annotated[bool, typer.Option("--writes", help="Print nothing but writes and what a rule met.")] = False,
) -> None:
    """See `_HELP`."""

    def show(entry: Entry) -> None:
        if not writes or entry.rule or entry.call.verb in WRITES:
            print(entry.as_json() if json else entry.as_line(), flush=True)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with FaultProxy(upstream_kubeconfig, *(rule or ()), port=port, on_entry=show) as proxy:
            where = f", with {proxy.kubeconfig(kubeconfig)}" if kubeconfig else ""
            print(f"listening on {proxy.url}{where}", file=sys.stderr, flush=True)
            stop.wait()
    except (LabError, OSError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
