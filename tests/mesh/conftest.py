"""One operator for all tests on the mesh, and a namespace for each test or module of tests."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import pytest

from lab.mesh import Lab
from tests.mesh.place import Place, new_place
from tests.operatorprocess import NAME, OperatorProcess, running_operator

_OPERATOR = pytest.StashKey[OperatorProcess]()
_SHOWN_LINES = 40
_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def operator(request: pytest.FixtureRequest, lab: Lab) -> Iterator[OperatorProcess]:
    """The operator, under the rights of its chart, serving all namespaces."""
    with running_operator(lab, lab.prometheus_url) as operator:
        request.config.stash[_OPERATOR] = operator
        yield operator
        complaints = operator.complaints()
        assert complaints == [], "the operator logged errors, or met a limit of its rights"


@pytest.fixture
def place(request: pytest.FixtureRequest, lab: Lab, operator: OperatorProcess) -> Iterator[Place]:
    """A namespace of the test's own."""
    with new_place(lab, operator, _namespace(request.node.name.removeprefix("test_"))) as place:
        yield place


@pytest.fixture(scope="module")
def street(request: pytest.FixtureRequest, lab: Lab, operator: OperatorProcess) -> Iterator[Place]:
    """A namespace that the tests of a module share, each with services of its own."""
    with new_place(lab, operator, _namespace(request.module.__name__.rpartition(".test_")[2])) as place:
        yield place


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are shown at the end of the run, whether or not a test failed."""
    return request.config.stash.setdefault(_FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("what rollouts cost")
        terminalreporter.write_line("\n".join(lines))


def _namespace(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:50].strip("-")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the operator's log where a test fails."""
    report = yield
    operator = item.config.stash.get(_OPERATOR, None)
    if call.excinfo is not None and operator is not None:
        tail = "\n".join(operator.processes.tail(NAME, _SHOWN_LINES))
        report.sections.append((f"end of {operator.log}", tail))
    return report
