"""etcd and the Kubernetes API server, and what may be started beside them: controllers, a scheduler, a fake kubelet."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from lab import probe
from lab.ports import LOOPBACK
from lab.site import Command, Part, Site

SERVICE_CIDR = "10.96.0.0/16"


def _etcd(site: Site) -> Command:
    client, peer = (f"http://{site.address(f'etcd.{name}')}" for name in ("client", "peer"))
    return Command(
        (
            str(site.tools["etcd"]), "--name=lab", f"--data-dir={site.data('etcd')}", "--log-level=warn",
            # The data is thrown away with the lab: don't make every write wait for the disk.
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=lab={peer}",
        )
    )  # fmt: skip


def _etcd_waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('etcd.client')}/health", contains="true")


def _apiserver(site: Site) -> Command:
    options = site.options
    key, tokens = site.directory / "sa.key", site.directory / "tokens.csv"
    if not key.exists():
        write_private(key, service_account_key())
    write_private(tokens, token_file(site.tokens))
    advertise = [f"--advertise-address={options.advertise_address}"] if options.advertise_address else []
    return Command(
        (
            str(site.tools["kube-apiserver"]), f"--etcd-servers=http://{site.address('etcd.client')}",
            f"--cert-dir={site.data('certs')}", f"--secure-port={site.ports['kube-apiserver.https']}",
            f"--bind-address={options.bind_address}", *advertise, f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=RBAC", f"--token-auth-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", *options.apiserver_flags,
        )
    )  # fmt: skip


def _apiserver_waiting_for(site: Site) -> str:
    missing = probe.waiting_for(
        f"{site.apiserver_url}/readyz",
        contains="ok",
        ca=site.apiserver_ca,
        headers={"Authorization": f"Bearer {site.tokens['admin']}"},
    )
    if not missing:
        for user in site.tokens:
            write_private(site.kubeconfig(user), kubeconfig(site, user))
    return missing


def _controller_manager(site: Site) -> Command:
    config = site.kubeconfig()
    return Command(
        (
            str(site.tools["kube-controller-manager"]), f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
            f"--service-account-private-key-file={site.directory / 'sa.key'}", "--leader-elect=false",
            "--controllers=*", f"--bind-address={LOOPBACK}", f"--cert-dir={site.data('kcm-certs')}",
            f"--secure-port={site.ports['kube-controller-manager.https']}",
            # Pods verify the API server with what this flag puts into their ca.crt.
            f"--root-ca-file={site.apiserver_ca}", *site.options.controller_manager_flags,
        )
    )  # fmt: skip


def _scheduler(site: Site) -> Command:
    config = site.kubeconfig()
    return Command(
        (
            str(site.tools["kube-scheduler"]), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}", "--leader-elect=false", f"--bind-address={LOOPBACK}",
            f"--cert-dir={site.data('scheduler-certs')}", f"--secure-port={site.ports['kube-scheduler.https']}",
        )
    )  # fmt: skip


def _healthz(part: str, certificates: str, name: str) -> Part:
    def waiting_for(site: Site) -> str:
        ca = site.directory / certificates / f"{name}.crt"
        return probe.waiting_for(f"https://{site.address(f'{part}.https')}/healthz", contains="ok", ca=ca)

    commands = {"kube-controller-manager": _controller_manager, "kube-scheduler": _scheduler}
    return Part(part, part, commands[part], waiting_for, ("https",), grace=2.0)


def _kwok(site: Site) -> Command:
    nodes = (
        ["--manage-all-nodes=true"]
        if site.options.kwok_manage_all_nodes
        else ["--manage-all-nodes=false", "--manage-nodes-with-label-selector=type=kwok"]
    )
    return Command(
        (
            str(site.tools["kwok"]), f"--kubeconfig={site.kubeconfig()}", *nodes, "--cidr=10.0.0.1/16",
            "--node-ip=10.0.0.1", "--node-lease-duration-seconds=40", f"--config={site.tools['kwok-stages.yaml']}",
            f"--server-address={site.address('kwok.http')}",
        )
    )  # fmt: skip


def _kwok_waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('kwok.http')}/healthz", contains="ok")


ETCD = Part("etcd", "etcd", _etcd, _etcd_waiting_for, ("client", "peer"), deadline=30)
# A watch keeps the API server's graceful end from being quick, and there is nothing here to be graceful about.
APISERVER = Part("kube-apiserver", "kube-apiserver", _apiserver, _apiserver_waiting_for, ("https",), 120, grace=1.0)
CONTROLLER_MANAGER = _healthz("kube-controller-manager", "kcm-certs", "kube-controller-manager")
SCHEDULER = _healthz("kube-scheduler", "scheduler-certs", "kube-scheduler")
KWOK = Part("kwok", "kwok", _kwok, _kwok_waiting_for, ("http",), grace=2.0)


def waiting_for_definitions(site: Site) -> str:
    """Names of resource definitions that the API server does not serve yet; empty when it serves all it has."""
    with probe.session() as client:
        answer = client.get(
            f"{site.apiserver_url}/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            headers={"Authorization": f"Bearer {site.tokens['admin']}"},
            verify=str(site.apiserver_ca),
            timeout=10,
        )
    answer.raise_for_status()
    return ", ".join(
        definition["metadata"]["name"]
        for definition in answer.json()["items"]
        # Right after its creation a definition has no conditions at all, which `kubectl wait` takes for an error.
        if not any(
            condition["type"] == "Established" and condition["status"] == "True"
            for condition in definition.get("status", {}).get("conditions") or []
        )
    )


def new_tokens(users: tuple[str, ...]) -> dict[str, str]:
    """A fresh random token for ``admin`` and each user."""
    return {user: secrets.token_hex(16) for user in ("admin", *users)}


def token_file(tokens: Mapping[str, str]) -> str:
    """kube-apiserver's static token file: ``admin`` is in ``system:masters``, everybody else in no group."""
    return "".join(
        f'{token},{user},{user},"system:masters"\n' if user == "admin" else f"{token},{user},{user}\n"
        for user, token in tokens.items()
    )


def kubeconfig(site: Site, user: str) -> str:
    """A kubeconfig document for one user, without references to other files."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "lab",
                "cluster": {
                    "server": site.apiserver_url,
                    "certificate-authority-data": base64.b64encode(site.apiserver_ca.read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": user, "user": {"token": site.tokens[user]}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }
    return yaml.safe_dump(document, sort_keys=False)


def service_account_key() -> str:
    """A fresh RSA key in PEM, to sign ServiceAccount tokens with."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.rename(path)
