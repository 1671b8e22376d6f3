"""istiod and an Envoy gateway: the mesh whose weights a rollout moves.

The gateway is a plain Envoy that introduces itself to istiod as an Istio ingress gateway. It lacks the filter with
which Istio's own build counts requests, so an ``EnvoyFilter`` has it count with Envoy's stats access logger, tagged
with what is needed to give the counts Istio's names and labels when Prometheus reads them (see `lab.metrics`).
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from lab import probe
from lab.ports import LOOPBACK
from lab.site import Command, Part, Site

SYSTEM_NAMESPACE = "istio-system"
GATEWAY_LABELS = {"istio": "ingressgateway"}
GATEWAY = f"{SYSTEM_NAMESPACE}/lab"
"""What a VirtualService names in ``gateways`` to be reached through `lab.Lab.gateway_url`."""

SYNC_HOST = "sync.lab.internal"
"""Host at which the gateway answers the latest `sync_marker`."""

_CONNECTION_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_MESH = {"enableAutoMtls": False, "ingressControllerMode": "OFF", "enableTracing": False, "accessLogFile": ""}
_ISTIOD_ENVIRONMENT = {
    "POD_NAMESPACE": SYSTEM_NAMESPACE,
    "POD_NAME": "istiod",
    "REVISION": "default",
    "CLUSTER_ID": "Kubernetes",
    "ENABLE_CA_SERVER": "false",
    "PILOT_CERT_PROVIDER": "none",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_DISABLE_MX_ALPN": "true",
    "ENABLE_DEBUG_ON_HTTP": "true",
    "ENABLE_DEBUG_ENDPOINT_AUTH": "false",
    "PILOT_DEBOUNCE_AFTER": "50ms",
    # Nothing here speaks the Gateway API, whose definitions istiod would otherwise look out for.
    "PILOT_ENABLE_GATEWAY_API": "false",
}


def _istiod(site: Site) -> Command:
    mesh = site.directory / "mesh.yaml"
    mesh.write_text(yaml.safe_dump(_MESH))
    return Command(
        (
            str(site.tools["istiod"]), "discovery", f"--kubeconfig={site.kubeconfig()}", "--registries=Kubernetes",
            f"--namespace={SYSTEM_NAMESPACE}", "--clusterID=Kubernetes", "--domain=cluster.local",
            f"--meshConfig={mesh}", f"--grpcAddr={site.address('istiod.grpc')}", "--secureGRPCAddr=",
            f"--httpAddr={site.address('istiod.http')}", "--httpsAddr=",
            f"--monitoringAddr={site.address('istiod.monitoring')}", "--ctrlz_port=0",
        ),
        _ISTIOD_ENVIRONMENT,
    )  # fmt: skip


def _istiod_waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('istiod.http')}/ready")


def _envoy(site: Site) -> Command:
    bootstrap = site.directory / "envoy.json"
    bootstrap.write_text(json.dumps(envoy_bootstrap(site), indent=1))
    return Command(
        (
            str(site.tools["envoy"]), "--config-path", str(bootstrap), "--log-level", "warning", "--concurrency", "1",
            # Hot restart uses shared memory under a fixed name: two labs would meet in it.
            "--disable-hot-restart",
        )
    )  # fmt: skip


def _envoy_waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('envoy.admin')}/ready", contains="LIVE")


ISTIOD = Part("istiod", "istiod", _istiod, _istiod_waiting_for, ("grpc", "http", "monitoring"), grace=1.0)
ENVOY = Part("envoy", "envoy", _envoy, _envoy_waiting_for, ("admin", "gateway"), grace=1.0)


def _socket_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def envoy_bootstrap(site: Site) -> dict[str, Any]:
    """Envoy's static configuration: who it is, and where istiod is; all else comes from istiod."""
    return {
        "node": {
            "id": f"router~{LOOPBACK}~ingress.{SYSTEM_NAMESPACE}~{SYSTEM_NAMESPACE}.svc.cluster.local",
            "cluster": f"ingress.{SYSTEM_NAMESPACE}",
            "metadata": {
                "NAMESPACE": SYSTEM_NAMESPACE,
                "LABELS": GATEWAY_LABELS,
                "INSTANCE_IPS": LOOPBACK,
                "CLUSTER_ID": "Kubernetes",
                "ISTIO_VERSION": "1.31.0",
                "INTERCEPTION_MODE": "NONE",
            },
        },
        "admin": {"address": _socket_address(site.ports["envoy.admin"])},
        # At the default of 5 s a histogram appears seconds after the counters of the same requests.
        "stats_flush_interval": "0.2s",
        "dynamic_resources": {
            "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {"clusters": [_xds_cluster(site.ports["istiod.grpc"])]},
    }


def _xds_cluster(port: int) -> dict[str, Any]:
    return {
        "name": "xds-grpc",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "xds-grpc",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket_address(port)}}]}],
        },
    }


def gateway(port: int) -> dict[str, Any]:
    """The Istio Gateway that opens the Envoy's port for every host."""
    server = {"port": {"number": port, "name": "http", "protocol": "HTTP"}, "bind": LOOPBACK, "hosts": ["*"]}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "lab", "namespace": SYSTEM_NAMESPACE},
        "spec": {"selector": GATEWAY_LABELS, "servers": [server]},
    }


def telemetry() -> dict[str, Any]:
    """The EnvoyFilter that has the gateway count requests and their durations per destination."""
    tags = [
        {"name": name, "value_format": value}
        for name, value in (
            ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
            ("workload", "%UPSTREAM_METADATA(istio:workload)%"),
            ("response_code", "%RESPONSE_CODE%"),
            ("response_flags", "%RESPONSE_FLAGS%"),
            ("grpc_response_status", "%GRPC_STATUS_NUMBER%"),
        )
    ]
    logger = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config",
        "stat_prefix": "istio",
        "counters": [{"stat": {"name": "requests", "tags": tags}, "value_fixed": 1}],
        "histograms": [
            {
                "stat": {"name": "request_duration_milliseconds", "tags": tags},
                "unit": "Milliseconds",
                "value_format": "%DURATION%",
            }
        ],
    }
    manager = {
        "@type": f"type.googleapis.com/{_CONNECTION_MANAGER}",
        "access_log": [{"name": "envoy.access_loggers.stats", "typed_config": logger}],
    }
    patch = {
        "applyTo": "NETWORK_FILTER",
        "match": {
            "context": "GATEWAY",
            "listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}},
        },
        "patch": {"operation": "MERGE", "value": {"typed_config": manager}},
    }
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "lab-telemetry", "namespace": SYSTEM_NAMESPACE},
        "spec": {"configPatches": [patch]},
    }


def sync_marker(token: str) -> dict[str, Any]:
    """A VirtualService that has the gateway answer ``token``: seeing it proves that earlier changes have arrived."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "lab-sync", "namespace": SYSTEM_NAMESPACE},
        "spec": {
            "hosts": [SYNC_HOST],
            "gateways": [GATEWAY],
            "http": [{"directResponse": {"status": 200, "body": {"string": token}}}],
        },
    }
