"""The operator under audit: what it asks the API server for, and what it never says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.demo.scene import chart_rules, grants
from tests.audit import granted, refused, used
from tests.cluster.program import SOURCE, Program
from tests.cluster.town import SPEC, TOKENS, Town, create, messages
from tests.faults.cluster import ROLLOUTS
from tests.faults.rows import Row
from tests.hostile import CONTROL
from tests.operatorprocess import NAME, NAMESPACE
from tests.tlsstub import Authority

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_secrets_are_never_repeated_although_the_provider_does(town: Town, table: list[Row]) -> None:
    said = ""
    for provider in ("bearer", "basic", "header", "parameter", "unusable"):
        said += words_of(town, provider, f"secret-{provider}")
    time.sleep(3)
    said += messages(town)
    assert '"level": "debug"' in said
    assert "***" in said, "what was hidden shows where it was"
    town.operator.stop()
    lines = len(town.operator.log.read_text().splitlines())
    town.operator.start(logFormat="console")
    said += words_of(town, "bearer", "secret-for-people") + words_of(town, "parameter", "secret-in-a-form")
    assert not [line for line in console(town, lines) if line.startswith("{")]
    assert [line for line in console(town, lines) if "rollout=secret-for-people/reviews" in line]
    encoded = base64.b64encode(f"operator:{TOKENS['password']}".encode()).decode()
    for secret in (*TOKENS.values(), encoded):
        assert secret not in said
    for char in set(CONTROL) - {"\n", "[", "3", "1", "m"}:
        assert char not in said, f"{char!r} came through"
    town.operator.restart()
    table.append(
        Row(
            "secrets and control characters in a provider's words",
            "a Prometheus that repeats bearer token, password, headers and parameters in errors, warnings and "
            "redirects, and certificate files that hold no certificate",
            len(TOKENS) + 1,
            f"none of them in {len(said) >> 10} KiB of log (debug; JSON and console), status, Events and metrics; "
            "no control character either",
        )
    )


def words_of(town: Town, provider: str, namespace: str) -> str:
    """Everything that is said once a rollout has met a provider."""
    town.furnish(namespace)
    metrics = [{"name": name, "query": f"vector({name})", "max": "1"} for name in ("own", "warn", "redirect")]
    analysis = SPEC["analysis"] | {"provider": provider, "metrics": metrics}
    create(town.cluster, ROLLOUTS, namespace, "reviews", SPEC | {"analysis": analysis})
    words = "cannot be used" if provider == "unusable" else "you sent"
    town.wait(lambda: words in json.dumps(town.status(namespace)), f"the words of {provider}")
    said = messages(town)  # before the wish below changes what is waited for
    wish = {"metadata": {"annotations": {"canaryrollout.io/command": f"promote/v2/{CONTROL}"}}}
    town.cluster.merge(ROLLOUTS, namespace, "reviews", wish)
    return said


def console(town: Town, since: int) -> list[str]:
    return town.operator.log.read_text().splitlines()[since:]


def test_a_provider_that_is_not_for_this_namespace_is_not_asked(town: Town) -> None:
    town.furnish("curious")
    analysis = SPEC["analysis"] | {"provider": "others"}
    create(town.cluster, ROLLOUTS, "curious", "reviews", SPEC | {"analysis": analysis})
    town.wait(lambda: "may not be used in namespace curious" in json.dumps(town.status("curious")), "refused")
    assert town.status("curious")["weight"] == 0


def test_every_right_is_used_and_no_other_is_asked_for(town: Town, table: list[Row]) -> None:
    town.furnish("taken-back")
    create(town.cluster, ROLLOUTS, "taken-back", "reviews", SPEC | {"hold": "10m", "progressDeadline": "20m"})
    town.wait(lambda: town.status("taken-back").get("weight") == 50, "under way")
    town.fail("taken-back", "v2", 1.0)
    town.wait(lambda: town.status("taken-back").get("phase") == "RolledBack", "taken back")
    town.fail("taken-back", "v2", 0.0)
    retry = {"metadata": {"annotations": {"canaryrollout.io/command": "retry/v2/1"}}}
    town.cluster.merge(ROLLOUTS, "taken-back", "reviews", retry)
    town.wait(lambda: town.status("taken-back").get("weight") == 50, "under way again: an Event is counted up")
    town.furnish("elsewhere")
    create(town.cluster, ROLLOUTS, "elsewhere", "external", SPEC | {"host": "api.example.com"})
    town.wait(lambda: town.status("elsewhere", "external").get("phase"), "answered")
    town.lab.kubectl("delete", "canaryrollout", "reviews", "-n", "taken-back", "--timeout=60s")
    asked = town.audit.asked()
    assert refused(asked) == []
    assert used(asked) - granted() == set()
    assert granted() - used(asked) == set(), "a right that nothing needs"
    table.append(
        Row(
            "the rights of the chart's Role",
            "promotions, a rollback, a retry, a deletion, hosts outside the mesh, under audit",
            len(granted()),
            f"each of the {len(granted())} rights was used; of {len(asked)} requests none was refused",
        )
    )


@pytest.mark.parametrize("trusted", ["another authority", "the public ones"])
def test_an_api_server_that_cannot_show_who_it_is_is_told_nothing(town: Town, tmp_path: Path, trusted: str) -> None:
    kubeconfig = yaml.safe_load(town.lab.kubeconfig_for(NAME).read_text())
    cluster = kubeconfig["clusters"][0]["cluster"]
    cluster.pop("certificate-authority-data", None)
    cluster.pop("certificate-authority", None)
    if trusted == "another authority":
        cluster["certificate-authority"] = str(Authority(tmp_path / "authority").ca_file)
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(kubeconfig))
    town.operator.stop()
    since = settled(town)
    with Program(file, "--config", str(town.operator.directory / "settings.yaml")) as program:
        program.wait(lambda: "CERTIFICATE_VERIFY_FAILED" in str(program.log), "it says that it does not trust it")
        assert program.probe("/readyz")[0] == 503
    assert town.audit.asked(since) == [], "not even its token"
    assert not any(token in str(program.log) for token in town.lab.site.tokens.values())
    town.operator.start()


def settled(town: Town) -> int:
    """How many requests there were once the API server has noticed the end of the last watch, which it notes then."""
    size, since, began = town.audit.size(), time.monotonic(), time.monotonic()
    while time.monotonic() < since + 1.0:
        assert time.monotonic() < began + 30.0, "requests of an operator that is stopped"
        time.sleep(0.1)
        if (now := town.audit.size()) != size:
            size, since = now, time.monotonic()
    return size


def test_credentials_in_an_address_are_refused_and_not_repeated(town: Town, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("providers: {a: {url: 'https://operator:canary-token-url-5f1d9c@prometheus:9090'}}")
    command = [sys.executable, "-m", "canaryrollout", "run", "--config", str(settings)]
    command += ["--kubeconfig", str(town.lab.kubeconfig_for(NAME)), "--log-level", "debug"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(SOURCE)}
    )
    assert done.returncode
    assert "basicAuth" in done.stdout + done.stderr
    assert "canary-token-url" not in done.stdout + done.stderr


@pytest.fixture
def without_cluster_role(town: Town) -> Iterator[Town]:
    """A town whose operator is stopped and has no rights; in the end it has all that it had before."""
    town.operator.stop()
    town.lab.kubectl("delete", "clusterrolebinding", "canaryrollout")
    yield town
    town.operator.stop()
    town.lab.apply(*grants(NAMESPACE))
    town.operator.start()


def test_with_roles_in_two_namespaces_it_asks_for_no_other(without_cluster_role: Town, table: list[Row]) -> None:
    town, served = without_cluster_role, ("only-here", "and-there")
    for namespace in (*served, "not-here"):
        town.furnish(namespace)
        if namespace in served:
            town.lab.apply(*roles(namespace))
        create(town.cluster, ROLLOUTS, namespace, "reviews", SPEC)
    since = town.audit.size()
    town.operator.start(namespaces=list(served))
    for namespace in served:
        town.wait(lambda ns=namespace: town.status(ns).get("phase") == "Stable", f"{namespace} promoted")  # type: ignore[misc]
    asked = town.audit.asked(since)
    assert refused(asked) == []
    places = {entry["objectRef"].get("namespace", "") for entry in asked if "objectRef" in entry}
    assert places == {*served, NAMESPACE}
    assert town.status("not-here") == {}
    table.append(
        Row(
            "rights in two namespaces only",
            "two Roles and no ClusterRole, a rollout in each and one elsewhere",
            1,
            f"both promoted; {len(asked)} requests in the audit log, none refused and none for another namespace or "
            "the whole cluster",
        )
    )


def roles(namespace: str) -> tuple[dict[str, Any], ...]:
    group = "rbac.authorization.k8s.io"
    metadata = {"name": "canaryrollout", "namespace": namespace}
    return (
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": chart_rules()},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "canaryrollout"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": NAME}],
        },
    )
