"""Kinds of labs: the mesh alone, or with a real node that runs Pods.

The second kind needs root and Debian packages, so its module is loaded only when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from enum import StrEnum

from lab.errors import LabError
from lab.mesh import MESH, Lab
from lab.paths import run_dir
from lab.state import State


class Kind(StrEnum):
    """What kind of lab: ``none`` has no node at all, ``real`` a kubelet with containerd."""

    MESH = "none"
    REAL = "real"


def recorded_kind(name: str) -> Kind:
    """Kind of the lab of that name, as its state file says; the plain one where there is none."""
    state = State.read(run_dir(name))
    return Kind(state.kind) if state is not None else Kind.MESH


def lab_of_kind(kind: Kind, name: str, further_parts: Iterable[str] = ()) -> Lab:
    """A lab of some kind, not started.

    Raises:
        LabError: this kind is not available here.
    """
    if kind is Kind.MESH:
        return Lab(name, [*MESH, *further_parts])
    try:
        module = importlib.import_module("lab.realnode")
    except ModuleNotFoundError as error:
        raise LabError(f"a lab with a real node is not available here: {error}") from error
    lab = module.RealNodeLab(name)
    assert isinstance(lab, Lab)
    return lab
