"""What lives under faults stand on: an API server, and traffic as counters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.demo.scene import grants
from lab.mesh import Lab
from tests.faults.cluster import VIRTUAL_SERVICES, Cluster, Document, Kind, Witness
from tests.faults.life import LIFE, NAME, Ground, host_of, shares
from tests.faults.rows import Row
from tests.faults.traffic import running_traffic
from tests.operatorprocess import NAMESPACE, definition

__all__ = ["Row"]


@pytest.fixture(scope="session")
def ground(apiserver: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The API server with the operator's rights, watched, and a Prometheus whose counters follow the weights."""
    definition(apiserver)
    apiserver.namespace(NAMESPACE)
    apiserver.apply(*grants(NAMESPACE))
    with running_traffic() as traffic:

        def follow(kind: Kind, document: Document) -> None:
            namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
            if kind == VIRTUAL_SERVICES and name == NAME and namespace.startswith(LIFE):
                traffic.weigh(host_of(namespace), shares(document))

        cluster = Cluster(apiserver)
        witness = Witness(cluster, follow)
        yield Ground(apiserver, cluster, witness, traffic, tmp_path_factory.mktemp("lives"))
        witness.stop()
