"""One audited API server for all tests of what the operator must never do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.town import Town, running_town


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with running_town(tmp_path_factory.mktemp("audit")) as town:
        yield town
