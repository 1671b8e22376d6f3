"""What a user does with the chart and the examples, in real Pods.

The first test is the whole story: install, roll out a good version, roll out one that crashes, uninstall, and not a
request lost that the crashing version did not lose itself. All that is applied are the files in ``examples/reviews``,
beside a Gateway, which is the platform's.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from lab.load import BackgroundLoad
from lab.loadreport import Record
from lab.node.images import OPERATOR
from lab.paths import REPO_DIR
from lab.realnode import RealNodeLab
from tests.node.conftest import Helm

# The first test may have to wait for tools and images to be built.
pytestmark = [pytest.mark.node, pytest.mark.timeout(3600)]

CHART = REPO_DIR / "deploy" / "helm" / "canaryrollout"
EXAMPLE = REPO_DIR / "examples" / "reviews"
HOST = "reviews.example"
RATE = 60.0
SETTLE_SECONDS = 3.0
"""How long requests may still meet a version after its weight was written to 0 and the status said so."""

MOST_SECONDS_OF_LOSS = 20.0
"""Two intervals of 5 s, the provider's lag of 3 s, a second to act, and as much again for a busy machine."""


def gateway(port: int) -> str:
    """The example's Gateway, on the port and the address that the lab's gateway has."""
    document = yaml.safe_load((EXAMPLE / "gateway.yaml").read_text())
    document["spec"]["servers"][0] |= {
        "bind": "127.0.0.1",
        "port": {"number": port, "name": "http", "protocol": "HTTP"},
    }
    return yaml.safe_dump(document)


def install(helm: Helm, node: RealNodeLab, release: str, *more: str) -> str:
    repository, _, tag = OPERATOR.partition(":")
    values = {
        "image.repository": repository,
        "image.tag": tag,
        "providers.default.url": node.prometheus_url_for_pods,
        "providers.default.scrapeInterval": "1s",
    }
    settings = [argument for name, value in values.items() for argument in ("--set", f"{name}={value}")]
    return helm(
        "install", release, str(CHART), "--namespace", release, "--create-namespace", "--wait", "--timeout", "120s",
        *settings, *more,
    )  # fmt: skip


def rollout(node: RealNodeLab) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(node.kubectl("-n", "shop", "get", "canaryrollout", "reviews", "-o", "json"))
    return document


def watch(node: RealNodeLab, until: Callable[[dict[str, Any]], bool], timeout: float = 180) -> dict[str, Any]:
    """Look at ``kubectl get canaryrollouts`` until the status is as wanted; print it whenever it changes."""
    shown, deadline = "", time.monotonic() + timeout
    while True:
        line = node.kubectl("-n", "shop", "get", "canaryrollouts", "-o", "wide", "--no-headers").strip()
        if (ageless := re.sub(r"  \d+[dhms]\S*  ", "  ", line)) != shown:
            print(f"{time.strftime('%T')} {line}")
            shown = ageless
        status: dict[str, Any] = rollout(node).get("status", {})
        if until(status):
            return status
        assert time.monotonic() < deadline, f"still not there after {timeout} s: {line}"
        time.sleep(0.5)


def history(status: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    return [(entry["reason"], entry.get("version", ""), entry.get("weight")) for entry in status["history"]]


def restarts(node: RealNodeLab, selector: str) -> list[int]:
    pods = json.loads(node.kubectl("-n", "shop", "get", "pods", "-l", selector, "-o", "json"))["items"]
    return [container["restartCount"] for pod in pods for container in pod["status"]["containerStatuses"]]


def deploy(node: RealNodeLab, version: str) -> None:
    node.kubectl("apply", "-f", str(EXAMPLE / f"{version}.yaml"))
    node.kubectl("-n", "shop", "rollout", "status", f"deployment/reviews-{version}", "--timeout=120s")


@contextlib.contextmanager
def explained(node: RealNodeLab, namespace: str) -> Iterator[None]:
    """Print what a person would look at when the story goes wrong."""
    try:
        yield
    except BaseException:
        for arguments in (
            ("-n", namespace, "logs", "--tail=60", "deployment/canaryrollout"),
            ("-n", namespace, "describe", "pods"),
            ("-n", "shop", "get", "canaryrollouts,virtualservices,destinationrules", "-o", "yaml"),
            ("-n", "shop", "get", "pods", "-o", "wide"),
            ("-n", "shop", "get", "events"),
        ):
            print(f"--- kubectl {' '.join(arguments)}\n{node.kubectl(*arguments, check=False)}")
        raise


def test_a_user_installs_rolls_out_a_good_and_a_crashing_version_and_uninstalls(node: RealNodeLab, helm: Helm) -> None:
    node.apply_yaml(gateway(node.site.ports["envoy.gateway"]))
    with explained(node, "canaryrollout"):
        notes = install(helm, node, "canaryrollout")
        assert "serves the whole cluster" in notes
        node.kubectl("apply", "-f", str(EXAMPLE / "mesh.yaml"))
        deploy(node, "v1")
        deploy(node, "v2")
        node.wait_synced()
        with BackgroundLoad(node.gateway_url, host_header=HOST, rate=RATE, max_seconds=900) as load:
            promoted = roll_out_v2(node, load)
            roll_out_v3(node, load, promoted)
            uninstall(node, helm, load)
        print(load.report().table())
        assert load.crowded_out == 0


def roll_out_v2(node: RealNodeLab, load: BackgroundLoad) -> float:
    node.kubectl("apply", "-f", str(EXAMPLE / "rollout.yaml"))
    status = watch(node, lambda status: status.get("phase") == "Stable" and status.get("stableVersion") == "v2")
    node.kubectl("-n", "shop", "wait", "--for=condition=Ready", "canaryrollout/reviews", "--timeout=5s")
    weights = [weight for reason, version, weight in history(status) if (reason, version) == ("WeightSet", "v2")]
    assert weights == [10, 50, 100]
    now = load.now()
    load.wait_settled(now)
    report = load.report(until=now)
    print(report.table())
    assert report.lost == ()
    assert {version: set(of.statuses) for version, of in report.versions.items()} == {"v1": {200}, "v2": {200}}
    assert report.requests > 1000
    return now


def roll_out_v3(node: RealNodeLab, load: BackgroundLoad, promoted: float) -> None:
    deploy(node, "v3")
    assert restarts(node, "version=v3") == [0, 0], "v3 is to be ready before it crashes"
    assert not any(record.version == "v3" for record in load.records)
    node.kubectl("-n", "shop", "patch", "canaryrollout", "reviews", "--type=merge", "-p", '{"spec":{"version":"v3"}}')
    watch(node, lambda status: status.get("phase") in ("RollingBack", "RolledBack"))
    back = load.now()
    status = watch(node, lambda status: status.get("phase") == "RolledBack")
    time.sleep(SETTLE_SECONDS)
    now = load.now()
    load.wait_settled(now)
    records = [record for record in tuple(load.records) if promoted <= record.sent < now]

    assert status["stableVersion"] == "v2"
    assert status["weight"] == 0
    weights = [weight for reason, version, weight in history(status) if (reason, version) == ("WeightSet", "v3")]
    assert 100 not in weights
    assert weights[:1] == [10]
    assert sum(restarts(node, "version=v3")) >= 1, "v3 never crashed: this test has shown nothing"
    assert "RolledBack" in node.kubectl("-n", "shop", "get", "events", "-o", "jsonpath={.items[*].reason}")
    check_what_the_crash_cost(records, back + SETTLE_SECONDS)


def check_what_the_crash_cost(records: list[Record], end: float) -> None:
    """Requests were lost to v3's crash alone: none before its first answer, and none once its weight was taken back."""
    met = [record.sent for record in records if record.version == "v3"]
    lost = [record.sent for record in records if record.version is None]
    assert len(met) >= 40, "v3 crashes on its 41st request and not sooner"
    assert lost, "v3 crashed under load, and nobody noticed"
    print(f"v3 answered {len(met)} requests; {len(lost)} reached no version, for {max(lost) - min(lost):.1f} s")
    assert min(lost) >= min(met)
    assert max(lost) <= end
    assert max(met) <= end
    assert max(lost) - min(lost) <= MOST_SECONDS_OF_LOSS
    assert {record.status for record in records if record.version is not None} == {200}


def uninstall(node: RealNodeLab, helm: Helm, load: BackgroundLoad) -> None:
    """As the chart's README says: first the CanaryRollouts, then the release."""
    begin = load.now()
    node.kubectl("-n", "shop", "delete", "canaryrollout", "reviews", "--timeout=60s")
    helm("uninstall", "canaryrollout", "--namespace", "canaryrollout", "--wait")
    namespaced = "all,configmaps,serviceaccounts,leases,roles,rolebindings"
    node.kubectl("-n", "canaryrollout", "wait", "--for=delete", "pod", "--all", "--timeout=60s")
    left = json.loads(node.kubectl("-n", "canaryrollout", "get", namespaced, "-o", "json"))["items"]
    names = {f"{item['kind']}/{item['metadata']['name']}" for item in left}
    assert names == {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}, "these are Kubernetes' own"
    wide = json.loads(node.kubectl("get", "clusterroles,clusterrolebindings", "-o", "json"))["items"]
    assert not [item["metadata"]["name"] for item in wide if "canaryrollout" in item["metadata"]["name"]]
    assert "canaryrollouts.canaryrollout.io" in node.kubectl("get", "crd", "-o", "name"), "it must stay"
    now = load.now()
    load.wait_settled(now)
    report = load.report(since=begin, until=now)
    assert report.lost == ()
    assert set(report.versions) == {"v2"}


def test_one_namespace_is_served_with_rights_in_that_namespace_alone(node: RealNodeLab, helm: Helm) -> None:
    """The same, by Roles: the operator must neither need nor have rights elsewhere."""
    node.apply_yaml(gateway(node.site.ports["envoy.gateway"]))
    node.kubectl("apply", "-f", str(EXAMPLE / "mesh.yaml"))
    deploy(node, "v1")
    deploy(node, "v2")
    with explained(node, "canaryrollout"):
        install(helm, node, "canaryrollout", "--set", "watchNamespaces={shop}", "--set", "replicas=2")
        account = "--as=system:serviceaccount:canaryrollout:canaryrollout"
        assert node.kubectl("auth", "can-i", "patch", "virtualservices", "-n", "shop", account).strip() == "yes"
        for verb, resource, namespace in (
            ("patch", "virtualservices", "default"),
            ("get", "secrets", "shop"),
            ("delete", "virtualservices", "shop"),
            ("create", "pods", "shop"),
            ("update", "deployments.apps", "shop"),
        ):
            answer = node.kubectl("auth", "can-i", verb, resource, "-n", namespace, account, check=False)
            assert answer.strip().startswith("no"), (verb, resource, namespace, answer)
        node.kubectl("apply", "-f", str(EXAMPLE / "rollout.yaml"))
        watch(node, lambda status: status.get("weight") == 10, timeout=60)
        logs = node.kubectl("-n", "canaryrollout", "logs", "-l", "app.kubernetes.io/name=canaryrollout", "--tail=-1")
        assert "forbidden" not in logs.lower()
        node.kubectl("-n", "shop", "delete", "canaryrollout", "reviews", "--timeout=60s")
        helm("uninstall", "canaryrollout", "--namespace", "canaryrollout", "--wait")


def pods_of_the_operator(node: RealNodeLab) -> dict[str, list[int]]:
    """Pods by uid, and how often each of their containers was restarted."""
    found = json.loads(node.kubectl("-n", "canaryrollout", "get", "pods", "-o", "json"))["items"]
    return {
        pod["metadata"]["uid"]: [container["restartCount"] for container in pod["status"]["containerStatuses"]]
        for pod in found
    }


def providers_as_the_operator_finds_them(node: RealNodeLab) -> dict[str, dict[str, Any]]:
    command = "python -m canaryrollout providers check -c /etc/canaryrollout/config.yaml -o json"
    said = node.kubectl("-n", "canaryrollout", "exec", "deploy/canaryrollout", "--", *command.split(), check=False)
    found, _ = json.JSONDecoder().raw_decode(said[said.index("[") :])  # kubectl tells of the exit status after it
    return {provider["name"]: provider for provider in found}


def eventually(holds: Callable[[], bool], what: str, timeout: float = 180) -> None:
    """Wait for the kubelet, which looks at ConfigMaps and Secrets about once a minute."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < timeout, f"not within {timeout:g} s: {what}"
        time.sleep(1)
    print(f"{what} after {time.monotonic() - begin:.0f} s")


def test_providers_and_their_secrets_come_without_new_pods(node: RealNodeLab, helm: Helm) -> None:
    with explained(node, "canaryrollout"):
        install(helm, node, "canaryrollout", "--set", "providerSecrets={mimir}")  # which does not exist yet
        pods = pods_of_the_operator(node)
        helm(
            "upgrade", "canaryrollout", str(CHART), "--namespace", "canaryrollout", "--reuse-values",
            "--set", f"providers.mimir.url={node.prometheus_url_for_pods}",
            "--set", "providers.mimir.bearerTokenFile=/var/run/canaryrollout/mimir/token",
        )  # fmt: skip

        def logged() -> list[dict[str, Any]]:
            text = node.kubectl("-n", "canaryrollout", "logs", "deploy/canaryrollout", "--tail=-1")
            lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
            return [line for line in lines if line["event"] == "providers have changed"]

        eventually(lambda: logged() != [], "taken in")
        assert [line["added"] for line in logged()] == [["mimir"]]
        found = providers_as_the_operator_finds_them(node)
        assert found["default"]["answers"]
        assert found["mimir"]["remarks"] == [
            "bearer token cannot be read from /var/run/canaryrollout/mimir/token: No such file or directory"
        ]
        node.kubectl("-n", "canaryrollout", "create", "secret", "generic", "mimir", "--from-literal=token=canary-6a1f")
        eventually(lambda: providers_as_the_operator_finds_them(node)["mimir"]["answers"], "the token is there")
        assert pods_of_the_operator(node) == pods, "no Pod was replaced or restarted"
        assert "canary-6a1f" not in node.kubectl("-n", "canaryrollout", "logs", "deploy/canaryrollout", "--tail=-1")
        node.kubectl("-n", "canaryrollout", "delete", "secret", "mimir")
        helm("uninstall", "canaryrollout", "--namespace", "canaryrollout", "--wait")
