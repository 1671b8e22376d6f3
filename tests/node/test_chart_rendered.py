"""What the chart asks for, read from what it renders; needs helm and neither root nor a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from canaryrollout.shell.provider_settings import ProviderSettings
from canaryrollout.shell.settings import load
from lab.paths import REPO_DIR
from tests.node.conftest import Helm

# The first test may have to wait for tools and images to be built.
pytestmark = [pytest.mark.node, pytest.mark.timeout(3600)]

CHART = REPO_DIR / "deploy" / "helm" / "canaryrollout"


def rendered(renderer: Helm, *settings: str) -> list[dict[str, Any]]:
    text = renderer("template", "canaryrollout", str(CHART), "--namespace", "ops", *settings)
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


READ = ["get", "list", "watch"]


def test_the_role_holds_what_was_promised_and_no_more(renderer: Helm) -> None:
    (role,) = of_kind(rendered(renderer), "ClusterRole")
    rules = {
        (group, resource): sorted(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rules == {
        ("canaryrollout.io", "canaryrollouts"): sorted([*READ, "patch"]),
        ("canaryrollout.io", "canaryrollouts/status"): ["patch"],
        ("networking.istio.io", "virtualservices"): ["get", "list", "patch"],
        ("networking.istio.io", "destinationrules"): ["get", "patch"],
        ("networking.istio.io", "workloadentries"): ["list"],
        ("networking.istio.io", "serviceentries"): ["list"],
        ("", "services"): ["get"],
        ("", "pods"): ["list"],
        ("discovery.k8s.io", "endpointslices"): ["list"],
        ("", "events"): ["create", "patch"],
    }


def test_the_crd_of_the_chart_is_the_generated_one(renderer: Helm) -> None:
    (crd,) = of_kind(rendered(renderer), "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    (source,) = Path(REPO_DIR / "deploy" / "crds").glob("*.yaml")
    assert crd == yaml.safe_load(source.read_text())
    assert of_kind(rendered(renderer, "--set", "crds.install=false"), "CustomResourceDefinition") == []


def test_helm_uninstall_takes_everything_away_but_the_definition(renderer: Helm) -> None:
    """Helm leaves what says so, what a hook made, and what was never in the chart; the Lease therefore is in it."""
    documents = rendered(renderer, "--set", "replicas=2", "--set", "watchNamespaces={a,b}")
    kept, made_by_hooks = [], []
    for document in documents:
        annotations = document["metadata"].get("annotations", {})
        kept += [document["kind"]] if "helm.sh/resource-policy" in annotations else []
        made_by_hooks += [document["kind"]] if "helm.sh/hook" in annotations else []
    assert kept == ["CustomResourceDefinition"]
    assert made_by_hooks == []
    assert len(of_kind(documents, "Lease")) == 1
    (leader,) = (role for role in of_kind(documents, "Role") if "leases" in str(role))
    assert {"delete", "deletecollection"}.isdisjoint(verb for rule in leader["rules"] for verb in rule["verbs"])


def test_the_settings_of_the_chart_are_settings_of_the_operator(renderer: Helm, tmp_path: Path) -> None:
    documents = rendered(renderer, "--set", "watchNamespaces={a,b}", "--set", "providers.other.url=https://other:9090")
    (config,) = of_kind(documents, "ConfigMap")
    file = tmp_path / "config.yaml"
    file.write_text(config["data"]["config.yaml"])
    settings = load(file, {})
    assert settings.namespaces == ("a", "b")
    assert set(settings.providers) == {"default", "other"}
    assert (settings.leader_election.namespace, settings.leader_election.name) == ("ops", "canaryrollout")
    (lease,) = of_kind(documents, "Lease")
    assert lease["metadata"]["name"] == settings.leader_election.name
    roles = {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in of_kind(documents, "Role")}
    assert roles == {("a", "ops-canaryrollout"), ("b", "ops-canaryrollout"), ("ops", "canaryrollout-leader")}


EVERYTHING = """
providers:
  default:
    url: https://mimir.example.com/prometheus
    timeout: 20s
    scrapeInterval: 30s
    lag: 45s
    concurrency: 8
    reporter: destination
    versionLabel: destination_canonical_revision
    serviceLabel: destination_service_name
    headers: {X-Scope-OrgID: "shop|pay"}
    headerFiles: {X-Api-Key: /creds/api-key}
    queryParameters: {dedup: true, max_source_resolution: 0, "replicaLabels[]": [replica, zone]}
    basicAuth: {username: operator, passwordFile: /creds/password}
    caFile: /creds/ca.crt
    clientCertFile: /creds/tls.crt
    clientKeyFile: /creds/tls.key
    namespaces: [shop, "team-*"]
    customQueries: NamespaceEnforced
    namespaceLabel: destination_service_namespace
  lax: {url: "https://p", insecureSkipVerify: true, bearerTokenFile: /creds/token}
"""


def test_every_setting_of_a_provider_can_be_set_by_the_chart(renderer: Helm, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(EVERYTHING)
    (config,) = of_kind(rendered(renderer, "--values", str(values)), "ConfigMap")
    file = tmp_path / "config.yaml"
    file.write_text(config["data"]["config.yaml"])
    by_chart = load(file, {}).providers
    assert by_chart == load(values, {}).providers
    used = {name for provider in by_chart.values() for name in provider.model_fields_set}
    assert used == set(ProviderSettings.model_fields)


def test_changed_providers_bring_no_new_pods_and_other_settings_do(renderer: Helm) -> None:
    def pod(*settings: str) -> Any:
        (deployment,) = of_kind(rendered(renderer, *settings), "Deployment")
        return deployment["spec"]["template"]

    assert pod() == pod("--set", "providers.default.url=https://other:9090", "--set", "providers.new.url=https://new")
    assert pod() != pod("--set", "logFormat=console")
    assert pod() != pod("--set", "watchNamespaces={a}")


def test_credentials_are_mounted_where_providers_look_for_them(renderer: Helm) -> None:
    token = {"serviceAccountToken": {"audience": "thanos", "path": "token", "expirationSeconds": 3600}}
    volumes = json.dumps([{"name": "thanos-token", "projected": {"sources": [token]}}])
    mounts = json.dumps([{"name": "thanos-token", "mountPath": "/var/run/thanos", "readOnly": True}])
    documents = rendered(
        renderer,
        *("--set", "providerSecrets={mimir,thanos-tls}"),
        *("--set-json", f"extraVolumes={volumes}", "--set-json", f"extraVolumeMounts={mounts}"),
    )
    (deployment,) = of_kind(documents, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    named = {volume["name"]: volume for volume in pod["volumes"]}
    (container,) = pod["containers"]
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for name in ("mimir", "thanos-tls"):
        mount = mounted[f"/var/run/canaryrollout/{name}"]
        assert mount["readOnly"], "an operator only reads credentials"
        assert named[mount["name"]]["secret"] == {"secretName": name, "optional": True}
    assert named[mounted["/var/run/thanos"]["name"]]["projected"]["sources"] == [token]
    assert not any("subPath" in mount for mount in container["volumeMounts"]), "what is mounted so never changes"
    for role in of_kind(documents, "ClusterRole") + of_kind(documents, "Role"):
        assert not any("secrets" in rule["resources"] for rule in role["rules"]), "and reads them as files only"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("replcas=2", "additional properties 'replcas' not allowed"),
        ("providers.default.url=prometheus:9090", "/providers/default/url"),
        ("providers.default.url=https://user:pass@prometheus", "/providers/default/url"),
        ("providers.default.bearerToken=abc", "additional properties 'bearerToken' not allowed"),
        ("providers.default.customQueries=Maybe", "/providers/default/customQueries"),
        ("providerSecrets={a.b}", "/providerSecrets/0"),
        ("logFormat=xml", "/logFormat"),
        ("watchNamespaces={Shop}", "/watchNamespaces/0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(renderer: Helm, setting: str, message: str) -> None:
    assert message in renderer("template", "canaryrollout", str(CHART), "--set", setting, check=False)


def test_the_chart_lints(renderer: Helm) -> None:
    assert "0 chart(s) failed" in renderer("lint", str(CHART), "--strict")
