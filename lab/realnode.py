"""A lab with a real node: containers run by a real kubelet, reached by the lab's Envoy, calling the lab's API server.

The plain lab is enough to show that traffic moves. What it cannot show is what a user installs: a chart, an image,
Roles, probes, Pods that become ready late or crash after they did. This is the same lab with a kubelet, containerd and
kube-proxy beside it, on Linux as root, one of them on a machine at a time.

``python -m lab up --node real``, or as a context manager::

    with RealNodeLab("node") as lab:
        lab.kubectl("apply", "-f", "examples/reviews/v1.yaml")

The images of the operator and of the sample service are built from this checkout and are there as
``canaryrollout:lab`` and ``sample-service:dev``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lab import metrics
from lab.errors import LabError
from lab.mesh import MESH, Lab
from lab.node import host, images, runtime
from lab.progress import Progress
from lab.site import Command, Options, Part, Site

PARTS = (*MESH, "kube-controller-manager", "kube-scheduler")


def _prometheus(site: Site) -> Command:
    """Prometheus that listens for Pods, too."""
    command = metrics.PROMETHEUS.command(site)
    listen = f"--web.listen-address={host.HOST_ADDRESS}:{site.ports['prometheus.http']}"
    return replace(command, argv=(*command.argv, listen))


class RealNodeLab(Lab):
    """A mesh with a real node that runs Pods. Used as `Lab` is.

    Args:
        name: of the lab; there can be only one real node on a machine.
        further_parts: names from `lab.mesh.PARTS`.
        progress: where to say what goes on.
    """

    kind = "real"

    def __init__(
        self, name: str = "default", further_parts: Iterable[str] = (), *, progress: Progress | None = None
    ) -> None:
        extra: tuple[Part, ...] = (
            replace(metrics.PROMETHEUS, command=_prometheus),
            runtime.CONTAINERD,
            runtime.KUBELET,
            runtime.KUBE_PROXY,
        )
        options = Options(
            bind_address=host.HOST_ADDRESS,
            advertise_address=host.HOST_ADDRESS,
            # The node's name resolves nowhere: `kubectl logs` needs its address.
            apiserver_flags=("--kubelet-preferred-address-types=InternalIP",),
            kwok_manage_all_nodes=False,
        )
        super().__init__(name, (*PARTS, *further_parts), progress=progress, options=options, extra=extra)

    @property
    def prometheus_url_for_pods(self) -> str:
        """Base URL of Prometheus as Pods reach it."""
        return f"http://{host.HOST_ADDRESS}:{self.site.ports['prometheus.http']}"

    def prepare_host(self) -> None:
        """Make bridge and routing; a leftover of a lab that crashed is cleared away."""
        host.claim(self.dir)

    def restore_host(self) -> None:
        """Take away all that the node left on this machine."""
        host.release(self.dir)

    def _tools(self) -> set[str]:
        # Charts are what this tier is for.
        return super()._tools() | {"helm"}

    def _start(self, *, standing: bool) -> None:
        if reason := host.why_not():
            raise LabError(reason)
        with host.alone():
            host.check_free(self.dir)
            self.processes.stop_all(grace=2.0)
            host.release(self.dir)
            self._archive = images.archive(self.progress)
            super()._start(standing=standing)

    def _start_wave(self, wave: list[Part]) -> None:
        super()._start_wave(wave)
        if runtime.CONTAINERD in wave:
            with self.progress.working("importing the images"):
                runtime.import_images(self._archive)
