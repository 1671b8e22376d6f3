"""What the parts are told, where a mistake would be silent."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest

from lab.controlplane import new_tokens, token_file
from lab.errors import LabError
from lab.istio import envoy_bootstrap, gateway
from lab.mesh import Lab
from lab.metrics import istio_relabeling, prometheus_config
from lab.paths import run_dir
from lab.selfcheck import binomial_interval
from lab.site import Options, Site
from lab.state import Lock, State


def relabel(series: dict[str, str]) -> dict[str, str] | None:
    """Apply the rules as Prometheus does (prometheus.io/docs, relabel_config): regexes are anchored."""
    labels = dict(series)
    for rule in istio_relabeling():
        value = ";".join(labels.get(label, "") for label in rule.get("source_labels", []))
        match = re.fullmatch(rule.get("regex", "(.*)"), value)
        action = rule.get("action", "replace")
        if action == "keep" and not match:
            return None
        if action == "labeldrop":
            labels = {name: v for name, v in labels.items() if not re.fullmatch(rule["regex"], name)}
        if action == "replace" and match:
            labels[rule["target_label"]] = match.expand(rule.get("replacement", "$1").replace("$", "\\"))
    return labels


def test_gateway_counts_get_istios_names_and_labels() -> None:
    labels = relabel(
        {
            "__name__": "envoy_istio_requests",
            "upstream_cluster": "outbound|80|v2|reviews.shop.svc.cluster.local",
            "workload": "reviews-v2-1;shop;reviews;v2;Kubernetes",
            "response_code": "200",
            "response_flags": "-",
        }
    )
    assert labels is not None
    assert labels["__name__"] == "istio_requests_total"
    assert labels["reporter"] == "source"
    assert labels["destination_service"] == "reviews.shop.svc.cluster.local"
    assert labels["destination_service_name"] == "reviews"
    assert labels["destination_service_namespace"] == "shop"
    assert labels["destination_workload"] == "reviews-v2-1"
    assert labels["destination_workload_namespace"] == "shop"
    assert labels["destination_version"] == labels["destination_canonical_revision"] == "v2"
    assert labels["upstream_cluster"] == "outbound|80|v2|reviews.shop.svc.cluster.local"
    assert "workload" not in labels


def test_request_that_reached_no_endpoint_keeps_its_service_and_has_no_version() -> None:
    labels = relabel(
        {"__name__": "envoy_istio_requests", "upstream_cluster": "outbound|80||reviews.shop.svc.cluster.local"}
    )
    assert labels is not None
    assert labels["destination_service"] == "reviews.shop.svc.cluster.local"
    assert labels["destination_version"] == "unknown"


def test_histograms_are_renamed_and_everything_else_is_dropped() -> None:
    name = "envoy_istio_request_duration_milliseconds_bucket"
    labels = relabel({"__name__": name, "le": "500"})
    assert labels is not None
    assert labels["__name__"] == "istio_request_duration_milliseconds_bucket"
    assert labels["le"] == "500"
    assert relabel({"__name__": "envoy_istiod_something"}) is None


def test_scrapes_are_a_second_apart_and_time_out_before_the_next() -> None:
    settings = prometheus_config("127.0.0.1:15000")["global"]
    assert settings["scrape_interval"] == "1s"
    assert settings["scrape_timeout"] == "900ms"


def test_gateway_is_opened_on_loopback_for_the_label_that_envoy_carries() -> None:
    site = Site(Path("/x"), {"envoy.admin": 10001, "istiod.grpc": 10002}, {}, {})
    metadata = envoy_bootstrap(site)["node"]["metadata"]
    spec = gateway(10003)["spec"]
    assert spec["selector"].items() <= metadata["LABELS"].items()
    assert spec["servers"][0]["bind"] == "127.0.0.1"
    assert spec["servers"][0]["port"]["number"] == 10003


def test_only_the_administrator_is_in_a_group() -> None:
    tokens = new_tokens(("operator",))
    admin, operator = token_file(tokens).splitlines()
    assert admin == f'{tokens["admin"]},admin,admin,"system:masters"'
    assert operator == f"{tokens['operator']},operator,operator"
    assert tokens["admin"] != tokens["operator"]


@pytest.mark.parametrize("name", ["", "Demo", "../x", "a_b", "x" * 41, "-a", "a-"])
def test_names_that_are_no_directory_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="is no name for a lab"):
        run_dir(name)


def test_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LabError, match=r"no part kubelett; it has: etcd, "):
        Lab("x", ("kubelett",))


def test_state_survives_and_is_private(tmp_path: Path) -> None:
    state = State(["etcd"], {"etcd.client": 1}, {"etcd": "/x"}, {"admin": "t"}, {"users": ["operator"]}, kind="real")
    state.write(tmp_path)
    assert State.read(tmp_path) == state
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0
    (tmp_path / "state.json").write_text('{"of": "another version"}')
    assert State.read(tmp_path) is None


def test_lock_names_its_holder(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "mine"), Lock(tmp_path / "mine")
    first.acquire()
    with pytest.raises(LabError, match=rf"the lab 'mine' is being used by process {os.getpid()} \(.*python.*\)"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_options_default_to_loopback_without_an_endpoint_reconciler() -> None:
    assert Options().bind_address == "127.0.0.1"
    assert Options().apiserver_flags == ("--endpoint-reconciler-type=none",)


@pytest.mark.parametrize(("n", "percent"), [(1000, 10), (100, 50), (20, 10), (3000, 1)])
def test_binomial_interval_leaves_out_as_much_as_the_confidence_allows(n: int, percent: int) -> None:
    p = Fraction(percent, 100)
    mass = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    tail = Fraction(1, 20_000)
    low, high = binomial_interval(n, float(p))
    assert sum(mass[:low]) <= tail < sum(mass[: low + 1])
    assert sum(mass[high + 1 :]) <= tail < sum(mass[high:])
