"""The lab as pytest fixtures: ``lab`` is a whole mesh, ``apiserver`` an API server with Istio's resource definitions.

Both last for the session, and both end with it, however it ends. While one is being built or started, what it says
goes to the terminal past pytest's capturing, so that half an hour of compiling does not look like a hanging test.

``LAB_REUSE=name`` uses a lab that is up already instead of starting one, for both fixtures: quick for development,
but then tests meet whatever earlier ones left behind.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lab.errors import PartFailed
from lab.mesh import CLUSTER, MESH, Lab
from lab.progress import Progress

_RUNNING = pytest.StashKey[list[Lab]]()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A mesh: API server, istiod, Envoy gateway, Prometheus."""
    with _session_lab(request, "mesh", MESH) as lab:
        yield lab


@pytest.fixture(scope="session")
def apiserver(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An API server (with etcd) that knows Istio's resources, and nothing that acts on them."""
    with _session_lab(request, "cluster", CLUSTER) as lab:
        yield lab


@contextmanager
def _session_lab(request: pytest.FixtureRequest, kind: str, parts: tuple[str, ...]) -> Iterator[Lab]:
    running = request.config.stash.setdefault(_RUNNING, [])
    with ExitStack() as stack:
        with _uncaptured(request.config):
            reused = os.environ.get("LAB_REUSE")
            if reused:
                lab = Lab.attach(reused)
                stack.callback(lab.detach)
            else:
                worker = os.environ.get("PYTEST_XDIST_WORKER", "")
                name = "-".join(filter(None, ("pytest", kind, str(os.getpid()), worker)))
                lab = Lab(name, parts, progress=Progress())
                stack.callback(_forget_unless_failed, request.session, lab)
                stack.enter_context(lab)
        running.append(lab)
        stack.callback(running.remove, lab)
        yield lab


def _forget_unless_failed(session: pytest.Session, lab: Lab) -> None:
    if not session.testsfailed:
        lab.forget()


@contextmanager
def _uncaptured(config: pytest.Config) -> Iterator[None]:
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        print(flush=True)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say which part of a lab has died, where a test fails because of it."""
    report = yield
    if call.excinfo is not None:
        for lab in item.config.stash.get(_RUNNING, []):
            try:
                lab.check_alive()
            except PartFailed as failure:
                report.sections.append((f"lab {lab.name}", str(failure)))
    return report
