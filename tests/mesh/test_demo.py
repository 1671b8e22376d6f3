"""The demo as ``make demo`` plays it, on a lab of its own: every promise that it makes to its watcher holds.

Its operator has the rights of the chart's Role, and the API server's audit log shows that it asked for nothing else.
"""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lab.demo.__main__ import perform
from lab.demo.checks import checks
from lab.demo.report import print_summary
from lab.mesh import Lab
from lab.progress import Progress
from lab.site import Options
from tests.audit import Audited, granted, refused, used
from tests.faults.rows import Row

pytestmark = [pytest.mark.mesh, pytest.mark.alone]


def test_the_demo_keeps_its_promises_under_the_rights_of_the_chart(tmp_path: Path, table: list[Row]) -> None:
    console, audit = Console(file=StringIO(), width=120), Audited.into(tmp_path)
    options = Options(apiserver_flags=(*Options().apiserver_flags, *audit.flags))
    with Lab(f"pytest-demo-{os.getpid()}", progress=Progress(console), options=options) as lab:
        facts = perform(lab, console, plain=True)
    asked = audit.asked()
    assert refused(asked) == []
    assert used(asked) - granted() == set()
    found = checks(facts)
    print_summary(Console(width=120), facts, found)
    broken = [f"{check.subject}: {check.promise}: {check.found}" for check in found if not check.holds]
    assert broken == [], console.file.getvalue()  # type: ignore[attr-defined]
    lab.forget()
    table.append(
        Row(
            "the whole demo under the chart's Role",
            "three rollouts on the mesh, under audit",
            1,
            f"all {len(found)} promises held; of {len(asked)} requests none was refused, and "
            f"{len(used(asked))} of {len(granted())} rights were used",
        )
    )
