"""The example's manifests fit together: what one names, another has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from canaryrollout.api.spec import CanaryRolloutSpec

ROOT = Path(__file__).parents[3]
REVIEWS = ROOT / "examples" / "reviews"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def one(path: Path, kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents(path) if document["kind"] == kind]
    return found


def test_the_rollout_names_what_the_mesh_has() -> None:
    rollout = one(REVIEWS / "rollout.yaml", "CanaryRollout")
    spec = CanaryRolloutSpec.model_validate(rollout["spec"])
    service, rule, virtual = (
        one(REVIEWS / "mesh.yaml", kind) for kind in ("Service", "DestinationRule", "VirtualService")
    )
    assert {of["metadata"]["namespace"] for of in (rollout, service, rule, virtual)} == {"shop"}
    assert spec.host == service["metadata"]["name"] == rule["spec"]["host"]
    (reference,) = spec.istio.virtual_services
    assert reference.name == virtual["metadata"]["name"]
    assert list(reference.routes) == [route["name"] for route in virtual["spec"]["http"]]
    assert spec.istio.destination_rule.name == rule["metadata"]["name"]
    gateway = one(REVIEWS / "gateway.yaml", "Gateway")["metadata"]
    assert virtual["spec"]["gateways"] == [f"{gateway['namespace']}/{gateway['name']}", "mesh"]
    assert service["metadata"]["name"] in virtual["spec"]["hosts"], "callers in the mesh know it by this name"


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_each_deployment_is_a_version_behind_the_service(version: str) -> None:
    service = one(REVIEWS / "mesh.yaml", "Service")
    deployment = one(REVIEWS / f"{version}.yaml", "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] | {"version": version}
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {of["name"]: of["value"] for of in container["env"]}
    assert environment["VERSION"] == version
    assert ("FAILURE_MODE" in environment) is (version == "v3")
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}


@pytest.mark.parametrize("file", ["kind.mk", "examples/reviews/README.md"])
def test_files_that_are_named_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    base = ROOT if file == "kind.mk" else REVIEWS
    named = re.findall(r"-f ([\w./-]+\.yaml)", text)
    assert named
    assert [name for name in named if not (base / name).is_file()] == []
