"""The processes of a real node: containerd, kubelet, kube-proxy.

They run with files and sockets of their own, so that a container runtime of the machine's is left alone, and they
listen on the node's own address only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from lab.kubectl import Kubectl, KubectlError
from lab.node.host import BRIDGE, CNI_PLUGINS, HOST_ADDRESS, POD_NETWORK, RUN, SOCKET, run
from lab.node.images import PAUSE
from lab.site import Command, Part, Site

NODE: Final = "real-0"
"""Name of the Node."""


def import_images(archive: Path) -> None:
    """Give containerd the images of an OCI archive.

    Raises:
        LabError: containerd refuses them.
    """
    run("ctr", "--address", str(SOCKET), "--namespace", "k8s.io", "images", "import", str(archive))


# --- containerd -----------------------------------------------------------------------------------------------------


def _containerd(site: Site) -> Command:
    plugins = site.data("cni")
    (plugins / "10-lab.conflist").write_text(json.dumps(cni_config(), indent=1))
    config = site.directory / "containerd.toml"
    config.write_text(containerd_config(site.data("containerd"), plugins))
    return Command((shutil.which("containerd") or "containerd", "--config", str(config)))


def _containerd_waiting_for(site: Site) -> str:
    del site
    asked = subprocess.run(["ctr", "--address", str(SOCKET), "version"], capture_output=True, text=True)
    return "" if asked.returncode == 0 else f"containerd does not answer: {asked.stderr.strip()}"


def cni_config() -> dict[str, Any]:
    """Pods get an address of the bridge and a route to everywhere through it; nothing is translated."""
    addresses = {
        "type": "host-local",
        # Below /run, so that addresses given out are forgotten with the node.
        "dataDir": str(RUN / "addresses"),
        "ranges": [[{"subnet": POD_NETWORK, "gateway": HOST_ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipMasq": False}
    return {"cniVersion": "0.4.0", "name": "lab", "plugins": [bridge | {"ipam": addresses}]}


def containerd_config(root: Path, plugins: Path) -> str:
    """Configuration of containerd, in TOML."""
    runtime = 'plugins."io.containerd.grpc.v1.cri"'
    # Without restrict_oom_score_adj, runc dies where the machine lacks CAP_SYS_RESOURCE.
    return f"""version = 2
root = "{root}"
state = "{RUN / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{SOCKET}"
[{runtime}]
sandbox_image = "docker.io/library/{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
[{runtime}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{runtime}.containerd.runtimes.runc.options]
SystemdCgroup = false
[{runtime}.cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{plugins}"
"""


# --- kubelet --------------------------------------------------------------------------------------------------------


def _kubelet(site: Site) -> Command:
    config = site.directory / "kubelet.yaml"
    config.write_text(yaml.safe_dump(kubelet_config(site)))
    return Command(
        (
            str(site.tools["kubelet"]), f"--config={config}", f"--kubeconfig={site.kubeconfig()}",
            f"--root-dir={site.data('kubelet')}", f"--cert-dir={site.data('kubelet-certs')}",
            f"--node-ip={HOST_ADDRESS}", f"--hostname-override={NODE}",
        )
    )  # fmt: skip


def kubelet_config(site: Site) -> dict[str, Any]:
    """A KubeletConfiguration for a machine whose control groups belong to somebody else."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": HOST_ADDRESS,
        "port": site.ports["kubelet.https"],
        "healthzPort": 0,
        "readOnlyPort": 0,
        "podLogsDir": str(site.data("pod-logs")),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "failSwapOn": False,
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 50,
    }


def _kubelet_waiting_for(site: Site) -> str:
    kubectl = Kubectl(site.tools["kubectl"], site.kubeconfig(), site.directory)
    try:
        node = json.loads(kubectl("get", "node", NODE, "-o", "json"))
    except KubectlError as error:
        return error.stderr.strip()
    conditions = {of["type"]: of for of in node.get("status", {}).get("conditions", [])}
    ready = conditions.get("Ready", {"status": "Unknown", "message": "the Node has no condition Ready yet"})
    return "" if ready["status"] == "True" else str(ready["message"])


# --- kube-proxy -----------------------------------------------------------------------------------------------------


def _kube_proxy(site: Site) -> Command:
    return Command(
        (
            str(site.tools["kube-proxy"]), f"--kubeconfig={site.kubeconfig()}", "--proxy-mode=iptables",
            f"--cluster-cidr={POD_NETWORK}", f"--hostname-override={NODE}",
            f"--bind-address={HOST_ADDRESS}", f"--healthz-bind-address={site.address('kube-proxy.health')}",
            f"--metrics-bind-address={site.address('kube-proxy.metrics')}",
            # Settings of the whole machine that this node can do without.
            "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s", "--iptables-localhost-nodeports=false",
        )
    )  # fmt: skip


def _kube_proxy_waiting_for(site: Site) -> str:
    """Rules for the API server's Service are the first that kube-proxy writes, and what Pods need."""
    if not _alive_chain("KUBE-SERVICES"):
        return "there are no rules for Services in iptables"
    return ""


def _alive_chain(name: str) -> bool:
    return f"-A {name} -d 10.96.0.1/32" in run("iptables-save", "--table", "nat")


CONTAINERD = Part("containerd", "", _containerd, _containerd_waiting_for, deadline=30, grace=2.0)
KUBELET = Part("kubelet", "kubelet", _kubelet, _kubelet_waiting_for, ("https",), deadline=60, grace=2.0)
KUBE_PROXY = Part("kube-proxy", "kube-proxy", _kube_proxy, _kube_proxy_waiting_for, ("health", "metrics"), 60, 2.0)
