"""The API server behind the proxy, and the credentials with which it is asked, as a kubeconfig names them."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where requests go.

    Attributes:
        server: Base URL.
        tls: How to verify it, and the client certificate where there is one; ``None`` for plain HTTP.
        token: Bearer token of requests that bring none; empty for none.
    """

    server: str
    tls: ssl.SSLContext | None
    token: str = ""


def read_kubeconfig(path: Path, context: str | None = None) -> Upstream:
    """Read the cluster and user of a context, the current one where none is named.

    Raises:
        LabError: The file cannot be read, or lacks what is needed; exec plugins are not supported.
    """
    try:
        document = yaml.safe_load(path.read_text())
        chosen = context or document["current-context"]
        names = _named(document["contexts"], chosen)["context"]
        cluster = _named(document["clusters"], names["cluster"])["cluster"]
        user = _named(document.get("users") or (), names["user"]).get("user") or {} if "user" in names else {}
        server = str(cluster["server"]).rstrip("/")
        return Upstream(server, _tls(cluster, user, path.parent) if server.startswith("https") else None, _token(user))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise LabError(f"the kubeconfig {path} cannot be used: {error!r}") from error


def pointing_to(url: str, token: str = "") -> str:
    """A kubeconfig document for the proxy's clients; without a token the proxy's own credentials are theirs."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": url}}],
        "users": [{"name": "client", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "client"}}],
        "current-context": "proxy",
    }
    return yaml.safe_dump(document, sort_keys=False)


def _named(entries: Any, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(entry for entry in [*entries, {}] if not entry or entry.get("name") == name)
    if not found:
        raise KeyError(name)
    return found


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], base: Path) -> ssl.SSLContext:
    authority = _content(cluster, "certificate-authority", base)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _content(user, "client-certificate", base), _content(user, "client-key", base)
    if certificate and key:
        # The library takes both from a file only; it is readable by its owner alone and gone at once.
        descriptor, name = tempfile.mkstemp()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(certificate + b"\n" + key)
            context.load_cert_chain(name)
        finally:
            Path(name).unlink()
    return context


def _content(entry: Mapping[str, Any], key: str, base: Path) -> bytes | None:
    if data := entry.get(f"{key}-data"):
        return base64.b64decode(data)
    return (base / str(entry[key])).read_bytes() if entry.get(key) else None


def _token(user: Mapping[str, Any]) -> str:
    if file := user.get("tokenFile"):
        return Path(file).read_text().strip()
    return str(user.get("token") or "")
