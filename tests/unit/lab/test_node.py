"""The parts of the real node that need neither root nor a node: what is written for it, what is read of the host."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.node import host, images, runtime

SAVED = """*filter
:INPUT ACCEPT [0:0]
:MINE - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -j MINE
-A KUBE-FIREWALL -j KUBE-MARK
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
"""


class Programs:
    """Stands in for the system's programs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: dict[str, str]) -> None:
        self.calls: list[tuple[tuple[str, ...], str | None]] = []
        self.output = output
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(
        self,
        command: list[str] | tuple[str, ...],
        *,
        input: str | None = None,
        **_: object,
    ) -> subprocess.CompletedProcess[str]:
        self.calls.append((tuple(command), input))
        return subprocess.CompletedProcess(command, 0, self.output.get(command[0], ""), "")


def test_only_the_node_s_chains_and_the_rules_that_lead_there_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(monkeypatch, {"iptables-save": SAVED})
    host._remove_chains()
    ((command, edits),) = [call for call in programs.calls if call[0][0].endswith("restore")]
    assert command == ("iptables-restore", "--noflush")
    assert edits is not None
    assert edits.splitlines() == [
        "*filter", "-D INPUT -j KUBE-FIREWALL", "-F KUBE-FIREWALL", "-X KUBE-FIREWALL", "COMMIT",
        "*nat", '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-F KUBE-SERVICES", "-X KUBE-SERVICES", "COMMIT",
    ]  # fmt: skip


def test_a_machine_that_is_a_node_already_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "_CLAIM", tmp_path / "claim.json")
    monkeypatch.setattr(host, "BRIDGE", "lab-test")
    programs = Programs(monkeypatch, {"iptables-save": SAVED})
    with pytest.raises(LabError, match=r"seems to be a Kubernetes node: iptables has the chain KUBE-FIREWALL"):
        host.claim(tmp_path / "lab")
    assert not [call for call in programs.calls if call[0][0] == "ip"]


def test_what_another_lab_has_made_is_not_taken_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claim = tmp_path / "claim.json"
    claim.write_text(json.dumps({"owner": str(tmp_path / "other"), "settings": {}, "absent": []}))
    monkeypatch.setattr(host, "_CLAIM", claim)
    programs = Programs(monkeypatch, {})
    host.release(tmp_path / "lab")
    assert programs.calls == []
    assert claim.exists()


def test_a_shim_is_ours_by_its_socket() -> None:
    shim = "/usr/bin/containerd-shim-runc-v2"
    assert host._is_our_shim([shim, "-namespace", "k8s.io", "-address", str(host.SOCKET), ""])
    assert not host._is_our_shim([shim, "-namespace", "moby", "-address", "/run/containerd/containerd.sock", ""])
    assert not host._is_our_shim(["vi", str(host.SOCKET), ""])


def test_what_is_missing_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.node.host.os.geteuid", lambda: 0)
    monkeypatch.setattr("lab.node.host.platform.system", lambda: "Linux")
    monkeypatch.setattr("lab.node.host.CNI_PLUGINS", Path("/nowhere"))
    monkeypatch.setattr("lab.node.host.shutil.which", lambda program: None if program in ("ctr", "ip") else "/bin/x")
    assert host.why_not() == (
        "programs are missing; on Debian: apt-get install containerd containernetworking-plugins iproute2"
    )
    monkeypatch.setattr("lab.node.host.os.geteuid", lambda: 1000)
    assert "needs root" in host.why_not()


def test_containerd_keeps_to_its_own_places() -> None:
    config = tomllib.loads(runtime.containerd_config(Path("/lab/root"), Path("/lab/cni")))
    assert config["root"] == "/lab/root"
    assert config["grpc"]["address"] == str(host.SOCKET)
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == f"docker.io/library/{images.PAUSE}"
    assert cri["restrict_oom_score_adj"] is True
    assert cri["cni"]["conf_dir"] == "/lab/cni"


def test_pods_get_addresses_of_the_bridge() -> None:
    (bridge,) = runtime.cni_config()["plugins"]
    assert bridge["bridge"] == host.BRIDGE
    assert bridge["ipMasq"] is False
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.77.0.0/24", "gateway": "10.77.0.1"}]]


def test_pip_s_settings_reach_a_build_as_volumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificates = tmp_path / "ca.pem"
    certificates.touch()
    listed = f":env:.cert='{certificates}'\nglobal.timeout='9'\nglobal.find-links='/gone'\nlist.format='json'\n"
    Programs(monkeypatch, {sys.executable: listed})
    volumes = images._pip_settings(tmp_path)
    assert volumes == [
        "--volume", f"{certificates}:{certificates}:ro", "--volume", f"{tmp_path / 'pip.conf'}:/etc/pip.conf:ro",
    ]  # fmt: skip
    assert (tmp_path / "pip.conf").read_text() == f"[global]\ncert = {certificates}\ntimeout = 9\n\n"


def test_without_pip_settings_there_is_no_volume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Programs(monkeypatch, {})
    assert images._pip_settings(tmp_path) == []


def test_everything_that_an_index_refers_to_is_packed(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifest = {"config": {"digest": "sha256:c"}, "layers": [{"digest": "sha256:l1"}, {"digest": "sha256:l2"}]}
    (blobs / "m").write_text(json.dumps(manifest))
    index = {"manifests": [{"digest": "sha256:m"}]}
    assert list(images._digests(index, tmp_path)) == ["sha256:m", "sha256:c", "sha256:l1", "sha256:l2"]
