import itertools
from pathlib import Path

import pytest

from canaryrollout.adapters.kube import ApiError
from canaryrollout.shell.handlers import Backoffs, connection, kopf_settings

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
contexts:
  - {name: one, context: {cluster: c, user: a}}
  - {name: two, context: {cluster: c, user: b}}
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users:
  - {name: a, user: {token: token-a}}
  - {name: b, user: {token: token-b}}
"""


def test_attempts_never_end_and_never_wait_longer_than_half_a_minute() -> None:
    delays = list(itertools.islice(Backoffs(), 200))
    assert delays[0] <= 0.5
    assert all(15 <= delay <= 30 for delay in delays[10:])
    assert len(set(delays[10:])) > 100, "replicas do not come back all at once"
    assert list(itertools.islice(Backoffs(), 3)), "and every request begins anew"


def test_kopf_only_watches() -> None:
    settings = kopf_settings()
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.watching.initial_streaming
    assert isinstance(settings.watching.server_timeout, int)
    assert settings.queueing.worker_limit is None


@pytest.mark.parametrize(("context", "token"), [(None, "token-a"), ("two", "token-b")])
async def test_the_watch_logs_in_as_the_client_does(tmp_path: Path, context: str | None, token: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    found = await connection(str(path), context)
    assert (found.server, found.scheme, found.token, found.insecure) == (
        "https://127.0.0.1:6443",
        "Bearer",
        token,
        True,
    )


async def test_without_credentials_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="nowhere"):
        await connection(str(tmp_path / "nowhere"), None)
