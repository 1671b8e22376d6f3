"""What lives under faults stand on: an API server, traffic as counters, and a table of what was seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from lab.demo.scene import grants
from lab.mesh import Lab
from lab.paths import REPO_DIR
from tests.faults.cluster import VIRTUAL_SERVICES, Cluster, Document, Kind, Witness
from tests.faults.life import NAME, Ground, host_of, shares
from tests.faults.traffic import running_traffic
from tests.operatorprocess import NAMESPACE, definition

TABLE = REPO_DIR / "lab" / "out" / "faults.json"


@dataclass(frozen=True)
class Row:
    """One kind of fault: what was injected, how many times, and what was seen."""

    fault: str
    injected: str
    times: int
    seen: str


_ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="session")
def ground(apiserver: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The API server with the operator's rights, watched, and a Prometheus whose counters follow the weights."""
    definition(apiserver)
    apiserver.namespace(NAMESPACE)
    apiserver.apply(*grants(NAMESPACE))
    with running_traffic() as traffic:

        def follow(kind: Kind, document: Document) -> None:
            if kind == VIRTUAL_SERVICES and document["metadata"]["name"] == NAME:
                traffic.weigh(host_of(document["metadata"]["namespace"]), shares(document))

        cluster = Cluster(apiserver)
        witness = Witness(cluster, follow)
        yield Ground(apiserver, cluster, witness, traffic, tmp_path_factory.mktemp("lives"))
        witness.stop()
    # Other tests have other rights.
    apiserver.kubectl("delete", "clusterrolebinding", "canaryrollout", "--ignore-not-found")


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[Row]:
    """Rows that are shown at the end of the run, and kept for the page on reliability."""
    return request.config.stash.setdefault(_ROWS, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show what was injected and seen."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section("faults")
    for row in rows:
        terminalreporter.write_line(f"{row.fault}: {row.injected}, {row.times} times: {row.seen}")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
