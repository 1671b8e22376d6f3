"""The scene: a service with four versions, routed by Istio, and an operator that may do no more than its chart allows.

The routes carry what users write beside weights (retries, timeouts, headers, a route to somebody else's service), so
that "nothing else was touched" means something. Envoy's retries are off on the measured route: a retry would hide a
request that the mesh lost.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import yaml

from canaryrollout.api.quantities import format_duration
from canaryrollout.domain.naming import fqdn
from canaryrollout.domain.settings import DomainSettings
from lab import probe
from lab.backends import Backend, service
from lab.errors import PartFailed
from lab.istio import GATEWAY
from lab.mesh import Lab
from lab.paths import REPO_DIR
from lab.ports import LOOPBACK, Reservation
from lab.process import Guard, Processes

NAMESPACE: Final = "shop"
NAME: Final = "reviews"
HOST: Final = fqdn(NAME, NAMESPACE)
PUBLIC_HOST: Final = "reviews.example"
ROUTES: Final[Mapping[str, tuple[str, ...]]] = {"reviews": ("primary",), "reviews-mesh": ()}
"""Managed routes by VirtualService."""
VERSIONS: Final = ("v1", "v2", "v3", "v4")

INTERVAL: Final = timedelta(seconds=2)
SCRAPE_INTERVAL: Final = timedelta(seconds=1)
LAG: Final = timedelta(milliseconds=300)
"""A sample of the lab's Prometheus can be queried this long after its time."""
TIMES: Final = DomainSettings(
    subset_settle=timedelta(seconds=1),
    drain=timedelta(seconds=2),
    propagation=timedelta(seconds=1),
    baseline_window=timedelta(seconds=10),
)
LEASE: Final = "canaryrollout"
OPERATOR: Final = "operator"
"""The lab's user as which the operator acts."""

_CRD = REPO_DIR / "deploy" / "crds" / "canaryrollouts.yaml"
_RULES = REPO_DIR / "deploy" / "helm" / "canaryrollout" / "templates" / "_helpers.tpl"
_READY_SECONDS = 30.0


def originals() -> tuple[dict[str, Any], ...]:
    """The mesh objects as their author writes them: all the traffic goes to v1."""
    return (gateway_routes(), mesh_routes(), destination_rule())


def gateway_routes() -> dict[str, Any]:
    """The VirtualService that the load goes through."""
    primary = {
        "name": "primary",
        "timeout": "10s",
        "retries": {"attempts": 0},
        "headers": {
            "request": {"set": {"x-team": "reviews"}},
            "response": {"set": {"x-envoy-response-flags": "%RESPONSE_FLAGS%"}},
        },
        "route": [
            {
                "destination": {"host": NAME, "subset": "v1", "port": {"number": 80}},
                "headers": {"response": {"add": {"x-served-for": "reviews"}}},
            }
        ],
    }
    ratings = {
        "name": "ratings",
        "match": [{"uri": {"prefix": "/ratings"}}],
        "retries": {"attempts": 2, "perTryTimeout": "1s", "retryOn": "5xx"},
        "route": [
            {"destination": {"host": "ratings", "subset": "blue"}, "weight": 70},
            {"destination": {"host": "ratings", "subset": "green"}, "weight": 30},
        ],
    }
    return _object(
        "VirtualService", "reviews", {"hosts": [PUBLIC_HOST], "gateways": [GATEWAY], "http": [ratings, primary]}
    )


def mesh_routes() -> dict[str, Any]:
    """The VirtualService for callers inside the mesh, kept in step: one route without a name."""
    route = {"destination": {"host": HOST, "subset": "v1"}, "weight": 100}
    return _object("VirtualService", "reviews-mesh", {"hosts": [NAME], "http": [{"timeout": "10s", "route": [route]}]})


def destination_rule() -> dict[str, Any]:
    """The DestinationRule; it knows v1 only."""
    subset = {
        "name": "v1",
        "labels": {"version": "v1"},
        "trafficPolicy": {"loadBalancer": {"simple": "LEAST_REQUEST"}},
    }
    policy = {"connectionPool": {"tcp": {"connectTimeout": "2s"}}}
    return _object("DestinationRule", "reviews", {"host": NAME, "trafficPolicy": policy, "subsets": [subset]})


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {"example.com/owner": "team-reviews"}},
        "spec": spec,
    }


def rollout(version: str) -> dict[str, Any]:
    """The CanaryRollout; the version that should serve is all that changes from one story to the next."""
    services = [{"name": name, "routes": list(routes)} if routes else {"name": name} for name, routes in ROUTES.items()]
    return {
        "apiVersion": "canaryrollout.io/v1alpha1",
        "kind": "CanaryRollout",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "version": version,
            "host": NAME,
            "istio": {"virtualServices": services, "destinationRule": {"name": NAME}},
            "steps": [{"weight": 10, "hold": "10s"}, {"weight": 30}, {"weight": 50, "hold": "8s"}, {"weight": 100}],
            "hold": "4s",
            "analysis": {
                "interval": format_duration(INTERVAL),
                "minRequests": 100,
                # One failure in 400: of a version that fails 5 %, two hundred requests without any are one in 28,000.
                "errorRate": {"max": "0.25%"},
                "latency": {"threshold": "500ms", "maxSlow": "5%"},
            },
            "progressDeadline": "60s",
        },
    }


def install(lab: Lab) -> dict[str, Backend]:
    """Put up the service, its routes and its versions, teach the API server CanaryRollouts, and grant the operator."""
    with lab.progress.working("starting four versions of the service"):
        lab.kubectl("create", "-f", str(_CRD))
        lab.namespace(NAMESPACE)
        backends = {version: lab.backend(NAMESPACE, NAME, version) for version in VERSIONS}
        lab.apply(service(NAMESPACE, NAME), *originals(), *grants())
        lab.kubectl.wait_served("canaryrollouts.canaryrollout.io")
        lab.wait_synced()
    return backends


def grants(namespace: str = NAMESPACE) -> tuple[dict[str, Any], ...]:
    """What the chart's ClusterRole and Role allow, for the lab's user instead of a ServiceAccount.

    Args:
        namespace: That of the Lease.
    """
    group = "rbac.authorization.k8s.io"
    user = {"apiGroup": group, "kind": "User", "name": OPERATOR}
    found = []
    for kind, metadata, rules in (
        ("ClusterRole", {"name": "canaryrollout"}, chart_rules()),
        ("Role", {"name": "canaryrollout-leader", "namespace": namespace}, chart_rules("leaseRules")),
    ):
        version = f"{group}/v1"
        reference = {"apiGroup": group, "kind": kind, "name": metadata["name"]}
        found.append({"apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules})
        found.append(
            {
                "apiVersion": version,
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": reference,
                "subjects": [user],
            }
        )
    return tuple(found)


def chart_rules(part: str = "rules") -> list[dict[str, Any]]:
    """What the chart allows; the demo needs no helm for it, as it is plain YAML inside a template.

    Args:
        part: ``rules``, where the operator serves, or ``leaseRules``, where its Lease is.
    """
    _, _, rest = _RULES.read_text().partition(f'{{{{- define "canaryrollout.{part}" -}}}}')
    text, _, _ = rest.partition("{{- end -}}")
    rules: list[dict[str, Any]] = yaml.safe_load(text.replace('{{ include "canaryrollout.leaseName" . }}', LEASE))
    return rules


def operator_settings(lab: Lab, http_port: int) -> dict[str, Any]:
    """The operator's settings file."""
    times = {
        "subsetSettle": TIMES.subset_settle,
        "drain": TIMES.drain,
        "propagation": TIMES.propagation,
        "baselineWindow": TIMES.baseline_window,
    }
    return {
        "providers": {
            "default": {
                "url": lab.prometheus_url,
                "scrapeInterval": format_duration(SCRAPE_INTERVAL),
                "lag": format_duration(LAG),
            }
        },
        "namespaces": [NAMESPACE],
        "logFormat": "json",
        "httpHost": LOOPBACK,
        "httpPort": http_port,
        "leaderElection": {"namespace": NAMESPACE, "name": LEASE},
        "timings": {name: format_duration(value) for name, value in times.items()},
    }


@contextmanager
def operator(lab: Lab) -> Iterator[Processes]:
    """Run the operator out of cluster, as a process of its own, from its first readiness to the end of the block.

    Raises:
        PartFailed: It died or was not ready in time; the end of its log is in the message.
    """
    directory = lab.dir / OPERATOR
    processes = Processes(directory, logs=lab.dir / "logs")
    guard = Guard(directory)
    ports = Reservation()
    port = ports.take()
    settings = directory / "settings.yaml"
    settings.write_text(yaml.safe_dump(operator_settings(lab, port), sort_keys=False))
    kubeconfig = lab.kubeconfig_for(OPERATOR)
    command = [
        sys.executable, "-m", "canaryrollout", "run", "--kubeconfig", str(kubeconfig), "--config", str(settings)
    ]  # fmt: skip
    try:
        with lab.progress.working("starting the operator"):
            environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), "PYTHONUNBUFFERED": "1"}
            ports.release([port])
            processes.spawn(OPERATOR, command, environment, cwd=REPO_DIR)
            _wait_ready(processes, f"http://{LOOPBACK}:{port}/readyz")
        yield processes
    finally:
        processes.stop_all(grace=5.0)
        guard.dismiss()
        ports.close()


def _wait_ready(processes: Processes, url: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while missing := probe.waiting_for(url):
        if not processes.alive(OPERATOR):
            raise PartFailed(OPERATOR, processes.obituary(OPERATOR, "died"))
        if time.monotonic() > deadline:
            raise PartFailed(OPERATOR, processes.obituary(OPERATOR, f"was not ready: {missing}"))
        time.sleep(0.05)
