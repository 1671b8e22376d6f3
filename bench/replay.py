"""What a whole rollout costs: passes, writes and time in the core, replayed in memory.

The counts are exact and the same everywhere; the time is of this machine, and only good for comparing two versions on
it. Run it with ``make bench``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from tests.world import World, spec, virtual_service

REPEATS = 20


def healthy() -> World:
    """Return a rollout that is promoted over four steps."""
    return World()


def failing() -> World:
    """Return a rollout that is taken back at its first step."""
    return World(error_rate=lambda version, weight, at: 0.05 if version == "v2" else 0.0)


def three_services() -> World:
    """Return a rollout over three VirtualServices."""
    names = ("reviews", "gateway", "internal")
    routing = {"virtualServices": [{"name": name} for name in names], "destinationRule": {"name": "reviews"}}
    return World(rollout=spec(istio=routing), services={name: virtual_service(name) for name in names})


def measure(make: Callable[[], World]) -> tuple[int, Counter[str], float]:
    """Replay a rollout and return its passes, its writes by kind, and the best time of a pass in microseconds."""
    best = float("inf")
    for _ in range(REPEATS):
        world = make()
        started = time.perf_counter()
        world.run()
        best = min(best, (time.perf_counter() - started) / world.passes)
    kinds = Counter("mesh" if "/" in write else write for write in world.writes)
    return world.passes, kinds, best * 1e6


def main() -> None:
    """Measure and print a table."""
    table = Table("rollout", "passes", "mesh writes", "status writes", "finalizer writes", "µs per pass (this machine)")
    for make in (healthy, failing, three_services):
        passes, kinds, best = measure(make)
        counts = (str(kinds[kind]) for kind in ("mesh", "status", "finalizer"))
        table.add_row(make.__name__.replace("_", " "), str(passes), *counts, f"{best:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
