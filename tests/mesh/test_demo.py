"""The demo as ``make demo`` plays it, on a lab of its own: every promise that it makes to its watcher holds."""

from __future__ import annotations

import os
from io import StringIO

import pytest
from rich.console import Console

from lab.demo.__main__ import perform
from lab.demo.checks import checks
from lab.demo.report import print_summary
from lab.mesh import Lab
from lab.progress import Progress

pytestmark = pytest.mark.mesh


def test_the_demo_keeps_its_promises() -> None:
    console = Console(file=StringIO(), width=120)
    with Lab(f"pytest-demo-{os.getpid()}", progress=Progress(console)) as lab:
        facts = perform(lab, console, plain=True)
    found = checks(facts)
    print_summary(Console(width=120), facts, found)
    broken = [f"{check.subject}: {check.promise}: {check.found}" for check in found if not check.holds]
    assert broken == [], console.file.getvalue()  # type: ignore[attr-defined]
    lab.forget()
