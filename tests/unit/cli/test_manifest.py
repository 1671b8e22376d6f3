"""A manifest is read as strictly as the API server would, and what is wrong is named with file, field and value."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from canaryrollout.cli.manifest import ManifestError, read_manifest

EXAMPLE = Path(__file__).parents[3] / "examples" / "reviews" / "rollout.yaml"


def rollout(name: str = "reviews", **spec: Any) -> dict[str, Any]:
    base = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
    }
    return {"kind": "CanaryRollout", "metadata": {"name": name, "namespace": "shop"}, "spec": base | spec}


def written(directory: Path, *documents: Any) -> str:
    file = directory / "some.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return str(file)


def test_the_example_is_read() -> None:
    found = read_manifest(str(EXAMPLE))
    assert (found.key, found.spec.version, len(found.spec.steps)) == ("shop/reviews", "v2", 3)


def test_other_objects_in_the_file_are_passed_over(tmp_path: Path) -> None:
    file = written(tmp_path, {"kind": "VirtualService"}, None, rollout(), {"kind": "List", "items": [{"kind": "Pod"}]})
    assert read_manifest(file).name == "reviews"


def test_items_of_a_list_are_found(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, {"kind": "List", "items": [rollout("ratings")]})).name == "ratings"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(rollout())))
    assert read_manifest("-").name == "reviews"


def test_one_of_several_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, rollout(), rollout("ratings", version="v7"))
    assert read_manifest(file, "ratings").spec.version == "v7"
    with pytest.raises(
        ManifestError, match=r"holds several CanaryRollouts \(reviews, ratings\): choose one with --name"
    ):
        read_manifest(file)
    with pytest.raises(ManifestError, match="holds no CanaryRollout details, only reviews, ratings"):
        read_manifest(file, "details")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"steps": [{"weight": 10}, {"weight": 5}]}, "spec.steps"),
        ({"hold": "1 minute"}, "spec.hold is '1 minute': must be a duration"),
        ({"analysis": {"errorRate": {"max": "150%"}}}, "spec.analysis.errorRate.max is '150%'"),
        ({"analysis": {"minRequest": 5}}, "spec.analysis.minRequest is no field; minRequests is"),
        ({"steps": [{"weight": 100, "holds": "1m"}]}, r"spec.steps\[0\].holds is no field; hold is"),
        ({"colour": "blue"}, "spec.colour is no field of spec"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, spec: dict[str, Any], words: str) -> None:
    file = written(tmp_path, rollout(**spec))
    with pytest.raises(ManifestError, match=words) as raised:
        read_manifest(file)
    assert str(raised.value).startswith(f"{file}: spec")


def test_files_that_are_no_manifests(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nothing\.yaml cannot be read: No such file"):
        read_manifest(str(tmp_path / "nothing.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: [CanaryRollout")
    with pytest.raises(ManifestError, match=r"broken\.yaml is not YAML"):
        read_manifest(str(broken))
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not text in UTF-8"):
        read_manifest(str(broken))
    with pytest.raises(ManifestError, match="holds no CanaryRollout"):
        read_manifest(written(tmp_path, {"kind": "Pod"}))
    with pytest.raises(ManifestError, match=r"spec\.version is missing"):
        read_manifest(written(tmp_path, {"kind": "CanaryRollout", "metadata": None}))
