"""The generated definition on a real API server: what it accepts, refuses, fills in, and what kubectl shows of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from canaryrollout.api import crd
from canaryrollout.api.resource import read_rollout
from lab.kubectl import KubectlError
from lab.mesh import Lab
from tests.unit.api.rule_cases import CASES, SPEC, RuleCase, spec_with

pytestmark = pytest.mark.cluster

NAMESPACE = "crd-test"
MINIMAL = {
    "version": "v2",
    "host": "reviews",
    "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
}
Objects = Any  # kubernetes.client.CustomObjectsApi, whose answers are untyped
Causes = list[dict[str, str]]
DryRun = Callable[[dict[str, Any]], Causes]


def rollout(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": crd.API_VERSION,
        "kind": crd.KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def cluster(apiserver: Lab) -> Iterator[Lab]:
    apiserver.kubectl("apply", "-f", "-", input=crd.render())
    apiserver.kubectl.wait_served(f"{crd.PLURAL}.{crd.GROUP}")
    apiserver.namespace(NAMESPACE)
    yield apiserver
    apiserver.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def objects(cluster: Lab) -> Iterator[Objects]:
    with config.new_client_from_config(str(cluster.kubeconfig)) as api:
        yield client.CustomObjectsApi(api)


@pytest.fixture(scope="module")
def dry_run(objects: Objects) -> DryRun:
    """Create an object without keeping it; returns the causes of a refusal, none where it is accepted."""

    def create(spec: dict[str, Any]) -> Causes:
        body = rollout("reviews", spec)
        try:
            objects.create_namespaced_custom_object(
                crd.GROUP, crd.VERSION, NAMESPACE, crd.PLURAL, body, dry_run="All", field_validation="Strict"
            )
        except ApiException as refusal:
            if refusal.status != 422:
                raise
            causes: Causes = json.loads(refusal.body or "")["details"]["causes"]
            return causes
        return []

    return create


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rule_accepts_what_keeps_it_and_refuses_what_breaks_it(dry_run: DryRun, case: RuleCase) -> None:
    for value in case.good:
        assert dry_run(spec_with(case.path, value)) == [], f"{case.path}: {value!r} should be accepted"
    for value in case.bad:
        causes = dry_run(spec_with(case.path, value))
        assert any(named(case, cause) and case.message in cause["message"] for cause in causes), (
            f"{case.path}: {value!r} should be refused with {case.message!r}, got {causes}"
        )


def named(case: RuleCase, cause: dict[str, str]) -> bool:
    # Two list items with one key are an error of the later item, not of its key.
    return cause["field"] == (case.path.removesuffix(".name") if case.message == "Duplicate value" else case.path)


def rules(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path + rule.get("fieldPath", ""), rule["message"]
    for name, member in schema.get("properties", {}).items():
        yield from rules(member, f"{path}.{name}")
    if "items" in schema:
        yield from rules(schema["items"], f"{path}[]")


def test_every_rule_of_the_definition_is_broken_by_some_case() -> None:
    schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    broken = [(re.sub(r"\[\d+\]", "[]", case.path), case.message) for case in CASES if case.bad and not case.by_schema]

    untested = [
        (path, message)
        for path, message in rules(schema, "spec")
        if not any(path == at and message.startswith(beginning) for at, beginning in broken)
        and not message.startswith("cannot be changed")  # rules on changes have tests of their own below
    ]
    assert untested == []


@pytest.mark.parametrize(("field", "other"), [("host", "ratings"), ("versionLabel", "app.kubernetes.io/version")])
def test_what_status_refers_to_cannot_be_changed(cluster: Lab, field: str, other: str) -> None:
    cluster.apply(rollout(f"fixed-{field.lower()}", MINIMAL))

    with pytest.raises(KubectlError) as refusal:
        cluster.kubectl(
            "patch", "cro", f"fixed-{field.lower()}", "-n", NAMESPACE, "--type=merge",
            "-p", json.dumps({"spec": {field: other}}),
        )  # fmt: skip
    cluster.kubectl(
        "patch", "cro", f"fixed-{field.lower()}", "-n", NAMESPACE, "--type=merge",
        "-p", json.dumps({"spec": {"version": "v3"}}),
    )  # fmt: skip

    assert f'spec.{field}: Invalid value: "{other}": cannot be changed' in refusal.value.stderr
    assert "create another CanaryRollout" in refusal.value.stderr


def test_a_typo_is_refused_by_kubectl_as_users_call_it(cluster: Lab) -> None:
    spec = {**MINIMAL, "steps": [{"weight": 10, "approvall": "Required"}, {"weight": 100}], "holdd": "1m"}

    with pytest.raises(KubectlError) as refusal:
        cluster.kubectl("apply", "-f", "-", input=json.dumps(rollout("typo", spec)))

    assert 'unknown field "spec.holdd"' in refusal.value.stderr
    assert 'unknown field "spec.steps[0].approvall"' in refusal.value.stderr


def test_a_reference_cannot_name_another_namespace(cluster: Lab) -> None:
    istio = {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews", "namespace": "other"}}
    spec = {**MINIMAL, "istio": istio}

    with pytest.raises(KubectlError) as refusal:
        cluster.kubectl("apply", "-f", "-", input=json.dumps(rollout("elsewhere", spec)))

    assert 'unknown field "spec.istio.destinationRule.namespace"' in refusal.value.stderr


def test_defaults_are_those_of_the_design_and_none_is_in_a_list_item(cluster: Lab) -> None:
    spec = {**MINIMAL, "analysis": {"metrics": [{"name": "a", "query": "up", "max": "1"}]}}
    cluster.apply(rollout("defaults", spec))

    stored = json.loads(cluster.kubectl("get", "cro", "defaults", "-n", NAMESPACE, "-o", "json"))["spec"]

    assert stored == {
        **MINIMAL,
        "versionLabel": "version",
        "steps": [{"weight": 10}, {"weight": 30}, {"weight": 50}, {"weight": 100}],
        "hold": "1m",
        "readiness": {"minReady": 1, "unreadyGrace": "10s"},
        "analysis": {
            "provider": "default",
            "confidence": "95%",
            "assurance": "Standard",
            "requireConvergence": "NotRequired",
            "interval": "10s",
            "minRequests": 100,
            "metrics": [{"name": "a", "query": "up", "max": "1"}],
            "onNoData": "Hold",
        },
        "progressDeadline": "30m",
        "onDeadline": "Rollback",
        "paused": False,
    }


def test_the_operator_fills_in_what_the_api_server_does(cluster: Lab) -> None:
    cluster.apply(rollout("same-defaults", MINIMAL))
    stored = json.loads(cluster.kubectl("get", "cro", "same-defaults", "-n", NAMESPACE, "-o", "json"))

    from_server, from_models = read_rollout(stored), read_rollout(rollout("same-defaults", MINIMAL))

    assert from_server.problems == ()
    assert from_server.spec == from_models.spec


def test_applying_the_same_object_again_changes_nothing(cluster: Lab) -> None:
    def apply() -> Any:
        manifest = json.dumps(rollout("idempotent", SPEC))
        out = cluster.kubectl("apply", "--server-side", "-f", "-", "-o", "json", input=manifest)
        return json.loads(out)["metadata"]

    first, second = apply(), apply()

    assert (second["generation"], second["resourceVersion"]) == (first["generation"], first["resourceVersion"])


def test_virtual_services_of_two_appliers_are_merged_by_name_and_steps_are_not(cluster: Lab) -> None:
    def apply(manager: str, spec: dict[str, Any]) -> Any:
        manifest = json.dumps(rollout("merged", spec))
        out = cluster.kubectl(
            "apply", "--server-side", "--field-manager", manager, "-f", "-", "-o", "json", input=manifest
        )
        return json.loads(out)["spec"]

    apply("team", {**MINIMAL, "steps": [{"weight": 20}, {"weight": 100}]})
    more = {"virtualServices": [{"name": "reviews-gateway"}], "destinationRule": {"name": "reviews"}}
    merged = apply("platform", {"version": "v2", "host": "reviews", "istio": more})

    assert [reference["name"] for reference in merged["istio"]["virtualServices"]] == ["reviews", "reviews-gateway"]
    with pytest.raises(KubectlError, match="conflict"):
        apply("platform", {"version": "v2", "host": "reviews", "istio": more, "steps": [{"weight": 100}]})


STATUS = {
    "observedGeneration": 1,
    "phase": "Progressing",
    "message": "v2 at 30 %: 512 requests, 0 errors",
    "stableVersion": "v1",
    "canaryVersion": "v2",
    "step": "2/4",
    "weight": 30,
    "verdict": "Pass",
    "rollout": {
        "version": "v2",
        "startedAt": "2026-01-31T12:00:00.250Z",
        "weight": 30,
        "target": {"weight": 30, "setAt": "2026-01-31T12:00:00.250Z", "generations": {"reviews": 7}},
    },
    "conditions": [
        {
            "type": "Ready",
            "status": "False",
            "reason": "Holding",
            "lastTransitionTime": "2026-01-31T12:00:00.250Z",
            "observedGeneration": 1,
        }
    ],
}


def test_status_is_a_world_of_its_own(cluster: Lab, objects: Objects) -> None:
    body = rollout("apart", MINIMAL)
    where = (crd.GROUP, crd.VERSION, NAMESPACE, crd.PLURAL)
    created = objects.create_namespaced_custom_object(*where, {**body, "status": STATUS})
    assert "status" not in created

    written = objects.patch_namespaced_custom_object_status(
        *where, "apart", {"status": STATUS, "spec": {"version": "v9"}}
    )
    assert written["status"] == STATUS
    assert written["spec"]["version"] == "v2"
    assert written["metadata"]["generation"] == created["metadata"]["generation"]

    changed = objects.patch_namespaced_custom_object(
        *where, "apart", {"status": {"phase": "Stable"}, "spec": {"version": "v3"}}
    )
    assert changed["status"] == STATUS
    assert changed["metadata"]["generation"] == created["metadata"]["generation"] + 1


def test_a_status_written_by_the_models_comes_back_as_it_was(objects: Objects) -> None:
    where = (crd.GROUP, crd.VERSION, NAMESPACE, crd.PLURAL)
    objects.create_namespaced_custom_object(*where, rollout("round-trip", MINIMAL))
    status = read_rollout({"spec": MINIMAL, "status": STATUS}).status

    written = objects.patch_namespaced_custom_object_status(
        *where, "round-trip", {"status": status.as_object()}, field_validation="Strict"
    )

    assert read_rollout(written).status == status


def test_kubectl_get_shows_the_columns_of_the_design(cluster: Lab, objects: Objects) -> None:
    where = (crd.GROUP, crd.VERSION, NAMESPACE, crd.PLURAL)
    objects.create_namespaced_custom_object(*where, rollout("columns", MINIMAL))
    objects.patch_namespaced_custom_object_status(*where, "columns", {"status": STATUS})

    head, row = cluster.kubectl("get", "canaryrollouts", "columns", "-n", NAMESPACE).splitlines()
    wide_head, wide_row = cluster.kubectl("get", "cro", "columns", "-n", NAMESPACE, "-o", "wide").splitlines()

    assert head.split() == ["NAME", "PHASE", "STEP", "WEIGHT", "STABLE", "CANARY", "VERDICT", "AGE"]
    assert row.split()[:-1] == ["columns", "Progressing", "2/4", "30", "v1", "v2", "Pass"]
    assert wide_head.split() == [*head.split(), "EVIDENCE", "MESSAGE"]
    assert wide_row.endswith("v2 at 30 %: 512 requests, 0 errors")


@pytest.mark.parametrize("category", ["canaryrollout", "progressive-delivery"])
def test_it_is_found_by_category(cluster: Lab, category: str) -> None:
    cluster.apply(rollout("by-category", MINIMAL))

    assert "canaryrollout.canaryrollout.io/by-category" in cluster.kubectl(
        "get", category, "-n", NAMESPACE, "-o", "name"
    )


def objects_in(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" in schema:
        yield path, schema
        for name, member in schema["properties"].items():
            yield from objects_in(member, f"{path}.{name}")
    elif "items" in schema:
        yield from objects_in(schema["items"], path)


def test_kubectl_explain_describes_every_field(cluster: Lab) -> None:
    schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    described = [*objects_in(schema["spec"], "spec"), *objects_in(schema["status"], "status")]
    assert len(described) > 20
    for path, member in described:
        told = " ".join(cluster.kubectl("explain", f"canaryrollout.{path}").split())
        for name, field in member["properties"].items():
            assert " ".join(field["description"].split()) in told, f"{path}.{name}"


def test_the_definition_is_accepted_without_warning(cluster: Lab) -> None:
    stored = yaml.safe_load(cluster.kubectl("get", "crd", f"{crd.PLURAL}.{crd.GROUP}", "-o", "yaml"))
    conditions = {condition["type"]: condition["status"] for condition in stored["status"]["conditions"]}

    assert "NonStructuralSchema" not in conditions
    assert conditions["NamesAccepted"] == "True"
