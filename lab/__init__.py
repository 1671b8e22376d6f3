"""A real mesh on one machine, without Docker and without root.

The operator's promises are about what real requests meet, so they are tested on what really routes them. ``python -m
lab`` is the same from a shell::

    with Lab(name="mine") as lab:
        lab.apply(service("shop", "reviews"))
        v1 = lab.backend("shop", "reviews", "v1")
        lab.wait_synced()
"""

from lab.backends import Backend, service
from lab.errors import LabError, PartFailed, ToolError
from lab.kubectl import KubectlError
from lab.mesh import CLUSTER, MESH, PARTS, Lab
from lab.progress import Progress
from lab.site import Options

__all__ = [
    "CLUSTER",
    "MESH",
    "PARTS",
    "Backend",
    "KubectlError",
    "Lab",
    "LabError",
    "Options",
    "PartFailed",
    "Progress",
    "ToolError",
    "service",
]
