"""Objects past the schema: the API server takes anything for a while, as an older definition may have done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.faults.cluster import ROLLOUTS
from tests.faults.life import Ground, Life

_DEFINITION: Final = "canaryrollouts.canaryrollout.io"
_SCHEMA: Final = "/spec/versions/0/schema/openAPIV3Schema"
_PROBE: Final = "probe"
_SECONDS: Final = 20.0


@contextmanager
def anything_goes(ground: Ground, life: Life) -> Iterator[None]:
    """Let the API server store any CanaryRollout to the end of the block; what was stored stays after it."""
    (version,) = json.loads(ground.lab.kubectl("get", "crd", _DEFINITION, "-o", "json"))["spec"]["versions"]
    _demand(ground, {"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    try:
        _until(lambda: _answer(life) == "taken", "it takes any object")
        yield
    finally:
        _demand(ground, version["schema"]["openAPIV3Schema"])
        _until(lambda: _answer(life) == "refused", "it minds the schema again")
        _until(lambda: _lists(life), "it lists them again")


def _demand(ground: Ground, schema: object) -> None:
    patch = json.dumps([{"op": "replace", "path": _SCHEMA, "value": schema}])
    ground.lab.kubectl("patch", "crd", _DEFINITION, "--type=json", "-p", patch)


def _answer(life: Life) -> str:
    """How the API server answers an object past the schema: it takes the definition in after a while."""
    cluster = life.ground.cluster
    metadata = {"name": _PROBE, "namespace": life.namespace}
    document = {"apiVersion": "canaryrollout.io/v1alpha1", "kind": "CanaryRollout", "metadata": metadata, "spec": 7}
    try:
        cluster.create(ROLLOUTS, life.namespace, document)
        cluster.delete(ROLLOUTS, life.namespace, _PROBE)
        cluster.list(ROLLOUTS)
    except AssertionError as error:
        return "refused" if ": 422 " in str(error) else str(error)
    return "taken"


def _lists(life: Life) -> bool:
    try:
        life.ground.cluster.list(ROLLOUTS)
    except AssertionError:
        return False
    return True


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {_SECONDS:g} s: {what}"
        time.sleep(0.2)
