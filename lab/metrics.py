"""Prometheus, reading the gateway's counts once a second under the names that every Istio user has.

The gateway exports ``envoy_istio_requests`` with the upstream cluster and workload as istiod wrote them. Relabeling
turns them into ``istio_requests_total`` and ``istio_request_duration_milliseconds`` with Istio's standard labels
(https://istio.io/latest/docs/reference/config/metrics/), seen from the source. ``upstream_cluster`` stays: two
clusters may lead to one workload, and their counts must not fall together.
"""

from __future__ import annotations

from typing import Any

import yaml

from lab import probe
from lab.site import Command, Part, Site

_WORKLOAD_LABELS = {
    "destination_workload": 1,
    "destination_workload_namespace": 2,
    "destination_canonical_service": 3,
    "destination_app": 3,
    "destination_canonical_revision": 4,
    "destination_version": 4,
    "destination_cluster": 5,
}
"""Label by the field of ``name;namespace;canonical-name;canonical-revision;cluster`` that it is taken from."""

_ISTIO_SERIES = "istio_(requests_total|request_duration_milliseconds_.*)"


def _prometheus(site: Site) -> Command:
    config = site.directory / "prometheus.yaml"
    config.write_text(yaml.safe_dump(prometheus_config(site.address("envoy.admin")), sort_keys=False))
    return Command(
        (
            str(site.tools["prometheus"]), f"--config.file={config}", f"--storage.tsdb.path={site.data('prometheus')}",
            f"--web.listen-address={site.address('prometheus.http')}", "--log.level=warn",
        )
    )  # fmt: skip


def _prometheus_waiting_for(site: Site) -> str:
    return probe.waiting_for(f"http://{site.address('prometheus.http')}/-/ready")


PROMETHEUS = Part("prometheus", "prometheus", _prometheus, _prometheus_waiting_for, ("http",), deadline=30, grace=3.0)


def prometheus_config(envoy_admin: str) -> dict[str, Any]:
    """Prometheus' configuration: one target, the gateway's own statistics, relabeled."""
    job = {
        "job_name": "istio-gateway",
        "metrics_path": "/stats/prometheus",
        "params": {"filter": ["istio"]},
        "static_configs": [{"targets": [envoy_admin]}],
        "metric_relabel_configs": istio_relabeling(),
    }
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
        "scrape_configs": [job],
    }


def istio_relabeling() -> list[dict[str, Any]]:
    """Relabeling rules from the gateway's tags to Istio's labels."""
    rules: list[dict[str, Any]] = [
        {"source_labels": ["__name__"], "regex": "envoy_istio_requests", "target_label": "__name__",
         "replacement": "istio_requests_total"},
        {"source_labels": ["__name__"], "regex": "envoy_(istio_request_duration_milliseconds_.*)",
         "target_label": "__name__"},
        {"source_labels": ["__name__"], "regex": _ISTIO_SERIES, "action": "keep"},
    ]  # fmt: skip
    fixed = {
        "reporter": "source",
        "request_protocol": "http",
        "source_workload": "lab-gateway",
        "source_workload_namespace": "istio-system",
        # What Istio says where no upstream was chosen; overwritten below where one was.
        "destination_service": "unknown",
        "destination_service_name": "unknown",
        "destination_service_namespace": "unknown",
        **dict.fromkeys(_WORKLOAD_LABELS, "unknown"),
    }
    rules += [{"target_label": label, "replacement": value} for label, value in fixed.items()]
    cluster = r"outbound\|\d+\|[^|]*\|(([^.|]+)\.([^.|]+)[^|]*)"
    rules += [
        {"source_labels": ["upstream_cluster"], "regex": cluster, "target_label": label, "replacement": f"${group}"}
        for group, label in enumerate(
            ("destination_service", "destination_service_name", "destination_service_namespace"), start=1
        )
    ]
    workload = ";".join(["([^;]*)"] * 5)
    rules += [
        {"source_labels": ["workload"], "regex": workload, "target_label": label, "replacement": f"${group}"}
        for label, group in _WORKLOAD_LABELS.items()
    ]
    return [*rules, {"regex": "workload", "action": "labeldrop"}]
