"""A lab with a real node for the tests of this tier, one at a time on a machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import tools
from lab.node import host
from lab.progress import Progress
from lab.realnode import RealNodeLab


@pytest.fixture(scope="session")
def machine() -> None:
    """A machine that can carry a real node; where it cannot the test is skipped with the reason, but on CI it fails."""
    if reason := host.why_not():
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@contextlib.contextmanager
def place() -> Iterator[None]:
    """Wait for the machine's one place for a node, and hold it: another checkout's tests may be at it."""
    with Path("/run/canaryrollout-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest, machine: None) -> Iterator[RealNodeLab]:
    """A lab with a real node."""
    del machine
    capture = request.config.pluginmanager.getplugin("capturemanager")
    lab = RealNodeLab(f"pytest-node-{os.getpid()}", progress=Progress())
    with place():
        with capture.global_and_fixture_disabled():
            print(flush=True)
            lab.__enter__()
        try:
            yield lab
        finally:
            with capture.global_and_fixture_disabled():
                lab.__exit__(None, None, None)
    if not request.session.testsfailed:
        lab.forget()


class Helm:
    """helm as a function, with none of the user's settings."""

    def __init__(self, binary: Path, home: Path, kubeconfig: Path | None = None) -> None:
        self._binary = binary
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig or os.devnull)}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run helm; returns what it printed, or its complaint where ``check`` is off and it failed."""
        done = subprocess.run(
            [str(self._binary), *arguments], env=self._environment, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode != 0:
            raise AssertionError(f"helm {' '.join(arguments)} failed: {done.stderr}")
        return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def helm(node: RealNodeLab) -> Helm:
    """helm for the lab's cluster."""
    return Helm(node.site.tools["helm"], node.dir / "helm", node.kubeconfig)


@pytest.fixture(scope="session")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """helm without a cluster."""
    return Helm(tools.ensure(["helm"])["helm"], tmp_path_factory.mktemp("helm"))
