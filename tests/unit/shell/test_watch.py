import asyncio
import threading
from typing import Any

import kopf
import pytest

from canaryrollout.engine.ports import Rollout
from canaryrollout.shell import handlers
from canaryrollout.shell.handlers import Watch


class Kopf:
    """Stands in for kopf: ends as often as it is told to, then lasts until it is stopped."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.calls: list[dict[str, Any]] = []
        self.threads: set[int] = set()
        self.lasting = threading.Event()

    async def __call__(self, **given: Any) -> None:
        self.calls.append(given)
        self.threads.add(threading.get_ident())
        given["ready_flag"].set()
        if self.ends:
            end = self.ends.pop(0)
            if end is not None:
                raise end
            return
        self.lasting.set()
        await given["stop_flag"].wait()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers.Backoffs, "__iter__", lambda _: iter([0.0] * 100))


async def run(stand_in: Kopf, monkeypatch: pytest.MonkeyPatch, **scope: Any) -> int:
    """Watch until the stand-in lasts, stop, and return how often the watch was started again."""
    monkeypatch.setattr(kopf, "operator", stand_in)
    restarts = 0

    def restarted() -> None:
        nonlocal restarts
        restarts += 1

    def ignore(_: Rollout) -> None:
        """Nothing is seen here."""

    watch = Watch(asyncio.get_running_loop(), ignore, ignore, restarted, **scope)
    watch.start()
    assert await asyncio.to_thread(stand_in.lasting.wait, 10)
    assert watch.ready
    await watch.stop()
    assert not watch.ready
    return restarts


async def test_a_watch_that_ends_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Kopf(RuntimeError("the API server said 500 for too long"), None, kopf.PermanentError("credentials"))
    assert await run(stand_in, monkeypatch) == 3
    assert len(stand_in.calls) == 4
    assert threading.get_ident() not in stand_in.threads, "it runs in a thread of its own"


async def test_a_watch_that_is_stopped_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Kopf()
    assert await run(stand_in, monkeypatch) == 0
    assert len(stand_in.calls) == 1


async def test_the_scope_is_the_cluster_or_some_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, some = Kopf(), Kopf()
    await run(whole, monkeypatch)
    await run(some, monkeypatch, namespaces=("shop", "payments"))
    assert whole.calls[0]["clusterwide"] is True
    assert "namespaces" not in whole.calls[0]
    assert some.calls[0]["namespaces"] == ("shop", "payments")
