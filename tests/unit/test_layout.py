"""The source root is called ``operator``; it must never shadow the standard library's module of that name."""

from __future__ import annotations

import operator
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert [
        path.name for path in (ROOT / "operator").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    ] == ["canaryrollout"]


def test_operator_is_the_standard_librarys() -> None:
    assert Path(operator.__file__).is_relative_to(sysconfig.get_path("stdlib"))
