"""The operator under audit: among objects that nobody should write, and on a Prometheus that repeats secrets."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest
import requests
import yaml

from canaryrollout.api.resource import read_rollout
from lab.demo.scene import chart_rules, grants
from lab.mesh import CLUSTER, Lab
from lab.site import Options
from tests.faults.cluster import (
    DESTINATION_RULES,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
    WORKLOAD_ENTRIES,
    Cluster,
    Document,
    Kind,
    Witness,
)
from tests.faults.life import shares
from tests.faults.traffic import running_traffic
from tests.hostile import CONTROL, is_json, nested, put, rollout, spoiled, statuses
from tests.operatorprocess import NAME, NAMESPACE, OperatorProcess, definition
from tests.prometheusstub import Asked, Reply, prometheus_stub

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

EVENTS: Final = "api/v1", "events"
LEASES: Final = ("coordination.k8s.io", "leases")
TOKENS: Final = {what: f"canary-token-{what}-5f1d9c" for what in ("bearer", "password", "header", "plain")}
PATIENCE: Final = 90.0
SPEC: Final = {
    "version": "v2",
    "host": "reviews",
    "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
    "steps": [{"weight": 50}, {"weight": 100}],
    "hold": "0s",
    "analysis": {"mode": "Threshold", "interval": "1s", "minRequests": 20, "errorRate": {"max": "1%"}},
    "progressDeadline": "2m",
}

Right = tuple[str, str, str]
"""Group, resource (with subresource) and verb."""


@dataclass
class Town:
    """An audited API server with an operator, and traffic that follows the weights."""

    lab: Lab
    cluster: Cluster
    operator: OperatorProcess
    log: Path
    fail: Callable[[str, str, float], None]

    def furnish(self, namespace: str) -> None:
        """A service whose traffic all goes to v1, with v2 ready beside it."""
        self.cluster.namespace(namespace)
        create(self.cluster, SERVICES, namespace, "reviews", {"selector": {"app": "reviews"}, "ports": [{"port": 80}]})
        for version in ("v1", "v2"):
            labels = {"app": "reviews", "version": version}
            create(self.cluster, WORKLOAD_ENTRIES, namespace, version, {"address": "127.0.0.1", "labels": labels})
        subset = {"name": "v1", "labels": {"version": "v1"}}
        create(self.cluster, DESTINATION_RULES, namespace, "reviews", {"host": "reviews", "subsets": [subset]})
        route = {"route": [{"destination": {"host": "reviews", "subset": "v1"}}]}
        create(self.cluster, VIRTUAL_SERVICES, namespace, "reviews", {"hosts": ["reviews"], "http": [route]})

    def status(self, namespace: str, name: str = "reviews") -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get(ROLLOUTS, namespace, name).get("status") or {}
        return found

    def wait(self, holds: Callable[[], object], what: str, within: float = PATIENCE) -> float:
        started = time.monotonic()
        while not holds():
            self.operator.check_alive()
            assert time.monotonic() - started < within, f"not within {within:g} s: {what}"
            time.sleep(0.1)
        return time.monotonic() - started

    def audited(self, since: int = 0) -> list[dict[str, Any]]:
        """What the operator asked the API server, and how it was answered."""
        lines = self.log.read_text().splitlines()[since:]
        return [entry for line in lines if (entry := json.loads(line)).get("user", {}).get("username") == NAME]


KINDS: Final = {
    SERVICES: ("v1", "Service"),
    WORKLOAD_ENTRIES: ("networking.istio.io/v1", "WorkloadEntry"),
    DESTINATION_RULES: ("networking.istio.io/v1", "DestinationRule"),
    VIRTUAL_SERVICES: ("networking.istio.io/v1", "VirtualService"),
    ROLLOUTS: ("canaryrollout.io/v1alpha1", "CanaryRollout"),
}


def create(cluster: Cluster, kind: Kind, namespace: str, name: str, spec: Any) -> None:
    version, kind_name = KINDS[kind]
    cluster.create(
        kind, namespace, {"apiVersion": version, "kind": kind_name, "metadata": {"name": name}, "spec": spec}
    )


def echo(asked: Asked) -> Reply:
    """Answer with everything that was sent, in every place where words may stand."""
    said = f"{CONTROL} you sent {json.dumps(asked.headers)}"
    query = asked.form.get("query", "")
    if "warn" in query:
        envelope = {"status": "success", "data": {"resultType": "vector", "result": []}, "warnings": [said]}
        return Reply(200, envelope)
    if "redirect" in query:
        return Reply(
            302, {}, {"Location": "http://elsewhere/" + asked.headers.get("Authorization", "").replace(" ", "")}
        )
    return Reply(422 if "own" in query else 500, {"status": "error", "errorType": "internal", "error": said})


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("audit")
    policy, log = directory / "policy.yaml", directory / "audit.log"
    rules = [{"level": "Metadata", "users": [NAME]}, {"level": "None"}]
    document = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    policy.write_text(yaml.safe_dump(document))
    secrets = {what: directory / what for what in TOKENS}
    for what, file in secrets.items():
        file.write_text(TOKENS[what] + "\n")
    flags = ("--endpoint-reconciler-type=none", f"--audit-policy-file={policy}", f"--audit-log-path={log}")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(f"audit-{directory.name}", CLUSTER, options=Options(apiserver_flags=flags)))
        traffic = stack.enter_context(running_traffic())
        stub = stack.enter_context(prometheus_stub())
        stub.reply = echo
        definition(lab)
        lab.namespace(NAMESPACE)
        lab.apply(*grants(NAMESPACE))
        cluster = Cluster(lab)

        def follow(kind: Kind, found: Document) -> None:
            if kind == VIRTUAL_SERVICES and found["metadata"]["name"] == "reviews":
                traffic.weigh(host(found["metadata"]["namespace"]), shares(found))

        stack.callback(Witness(cluster, follow).stop)
        usual = {"scrapeInterval": "1s", "lag": "300ms", "timeout": "5s"}
        providers = {
            "default": {"url": traffic.prometheus_url, **usual},
            "bearer": {"url": stub.url, **usual, "bearerTokenFile": str(secrets["bearer"])},
            "basic": {
                "url": stub.url,
                **usual,
                "basicAuth": {"username": "operator", "passwordFile": str(secrets["password"])},
            },
            "header": {
                "url": stub.url,
                **usual,
                "headerFiles": {"X-Api-Key": str(secrets["header"])},
                "headers": {"X-Plain": TOKENS["plain"]},
            },
            "others": {"url": traffic.prometheus_url, **usual, "namespaces": ["somebody-else"]},
        }
        operator = OperatorProcess(lab, traffic.prometheus_url, providers=providers)
        stack.callback(operator.close)
        operator.start()
        yield Town(lab, cluster, operator, log, lambda ns, version, rate: traffic.fail(host(ns), version, rate))


def host(namespace: str) -> str:
    return f"reviews.{namespace}.svc.cluster.local"


def messages(town: Town, *, forged: frozenset[str] = frozenset()) -> str:
    """Everything the operator has said so far, wherever it says something; not what others put into a status."""
    port = town.operator.settings()["httpPort"]
    spoken = [town.operator.log.read_text(errors="replace"), requests.get(f"http://127.0.0.1:{port}/metrics").text]
    spoken += [
        json.dumps(item.get("status"), ensure_ascii=False)
        for item in town.cluster.list(ROLLOUTS)["items"]
        if item["metadata"]["name"] not in forged
    ]
    spoken += [json.dumps(item, ensure_ascii=False) for item in town.cluster.list(EVENTS)["items"]]
    return "\n".join(spoken)


def test_secrets_are_never_repeated_although_the_provider_does(town: Town) -> None:
    said = ""
    for provider in ("bearer", "basic", "header"):
        namespace = f"secret-{provider}"
        town.furnish(namespace)
        metrics = [{"name": name, "query": f"vector({name})", "max": "1"} for name in ("own", "warn", "redirect")]
        analysis = SPEC["analysis"] | {"provider": provider, "metrics": metrics}  # type: ignore[operator]
        create(town.cluster, ROLLOUTS, namespace, "reviews", SPEC | {"analysis": analysis})
        town.wait(lambda ns=namespace: "you sent" in json.dumps(town.status(ns)), f"the words of {provider}")  # type: ignore[misc]
        said += messages(town)  # before the wish below changes what is waited for
        town.cluster.merge(
            ROLLOUTS,
            namespace,
            "reviews",
            {"metadata": {"annotations": {"canaryrollout.io/command": f"promote/v2/{CONTROL}"}}},
        )
    time.sleep(3)
    said += messages(town)
    assert "***" in said, "what was hidden shows where it was"
    encoded = base64.b64encode(f"operator:{TOKENS['password']}".encode()).decode()
    for secret in (*TOKENS.values(), encoded):
        assert secret not in said
    for char in set(CONTROL) - {"\n", "[", "3", "1", "m"}:
        assert char not in said, f"{char!r} came through"


def test_a_provider_that_is_not_for_this_namespace_is_not_asked(town: Town) -> None:
    town.furnish("curious")
    analysis = SPEC["analysis"] | {"provider": "others"}  # type: ignore[operator]
    create(town.cluster, ROLLOUTS, "curious", "reviews", SPEC | {"analysis": analysis})
    town.wait(lambda: "may not be used in namespace curious" in json.dumps(town.status("curious")), "refused")
    assert town.status("curious")["weight"] == 0


def test_hostile_objects_stop_nobody_and_move_nothing(town: Town) -> None:
    town.lab.kubectl(
        "patch", "crd", "canaryrollouts.canaryrollout.io", "--type=json", "-p",
        json.dumps([{
            "op": "replace",
            "path": "/spec/versions/0/schema/openAPIV3Schema",
            "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        }]),
    )  # fmt: skip
    town.furnish("hostile")
    town.furnish("peaceful")
    before = town.cluster.get(VIRTUAL_SERVICES, "hostile", "reviews")
    time.sleep(2)  # the API server takes the other schema in
    bad = list(hostile_objects())
    assert len(bad) > 80
    for number, (spec, status) in enumerate(bad):
        if number == len(bad) // 2:
            create(town.cluster, ROLLOUTS, "peaceful", "reviews", SPEC)
            started = time.monotonic()
        name = f"bad-{number}"
        create(town.cluster, ROLLOUTS, "hostile", name, spec)
        if status is not None:
            town.cluster.merge(ROLLOUTS, "hostile", f"{name}/status", {"status": status})
    took = town.wait(lambda: town.status("peaceful").get("stableVersion") == "v2", "the healthy one is done")
    seconds = time.monotonic() - started
    print(f"{len(bad)} hostile objects; the healthy rollout beside them was promoted after {seconds:.0f} s")
    assert took < 60
    unanswered: list[str] = []

    def answered() -> bool:
        told = {event["involvedObject"]["name"] for event in town.cluster.list(EVENTS)["items"]}
        found = town.cluster.list(ROLLOUTS)["items"]
        unanswered[:] = [
            item["metadata"]["name"]
            for item in found
            if item["metadata"]["namespace"] == "hostile"
            and item["metadata"]["name"] not in told
            and (item.get("status") or {}).get("phase") != "Blocked"
        ]
        return not unanswered

    town.wait(answered, f"an answer to {unanswered}")
    after = town.cluster.get(VIRTUAL_SERVICES, "hostile", "reviews")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "no traffic was moved"
    assert not [line for line in town.operator.log.read_text().splitlines() if "pass crashed" in line]
    forged = frozenset(f"bad-{number}" for number, (_, status) in enumerate(bad) if status is not None)
    said = messages(town, forged=forged)
    assert not set(said) & {"\x1b", "\u202e", "\u200b", "\x00"}


def hostile_objects() -> Iterator[tuple[Any, dict[str, Any] | None]]:
    """Specs that cannot be used, and usable ones with a status that cannot."""
    good = rollout()["spec"]
    for _, _, spec in islice(spoiled(good), None, None, 13):
        if isinstance(spec, dict) and is_json(spec) and read_rollout({"spec": spec}).problems:
            yield spec, None
    yield put(good, ("steps",), nested(100)), None
    yield good | {"padding": "x" * 900_000, "version": CONTROL}, None
    for status in statuses()[3:5]:
        for _, _, forged in islice(spoiled(status), None, None, 97):
            read = read_rollout({"spec": good, "status": forged})
            if isinstance(forged, dict) and is_json(forged) and read.status_problems:
                yield good, forged


def test_every_right_is_used_and_no_other_is_asked_for(town: Town) -> None:
    town.furnish("taken-back")
    create(town.cluster, ROLLOUTS, "taken-back", "reviews", SPEC)
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
    asked = town.audited()
    refused = [entry["requestURI"] for entry in asked if entry["responseStatus"]["code"] == 403]
    assert refused == []
    used = {right_of(entry) for entry in asked if "objectRef" in entry}
    granted = {
        (group, resource, verb)
        for rule in [*chart_rules(), *lease_rules()]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used - granted == set()
    assert granted - used == set(), "a right that nothing needs"


def right_of(entry: dict[str, Any]) -> Right:
    about = entry["objectRef"]
    resource = "/".join(part for part in (about["resource"], about.get("subresource", "")) if part)
    return about.get("apiGroup", ""), resource, entry["verb"]


def lease_rules() -> list[dict[str, Any]]:
    (role,) = (grant for grant in grants(NAMESPACE) if grant["kind"] == "Role")
    rules: list[dict[str, Any]] = role["rules"]
    return rules


def test_with_roles_in_one_namespace_it_asks_for_no_other(town: Town) -> None:
    town.operator.stop()
    town.lab.kubectl("delete", "clusterrolebinding", "canaryrollout")
    town.furnish("only-here")
    group = "rbac.authorization.k8s.io"
    metadata = {"name": "canaryrollout", "namespace": "only-here"}
    town.lab.apply(
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": chart_rules()},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "canaryrollout"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": NAME}],
        },
    )
    since = len(town.log.read_text().splitlines())
    town.operator.start(namespaces=["only-here"])
    create(town.cluster, ROLLOUTS, "only-here", "reviews", SPEC)
    town.wait(lambda: town.status("only-here").get("phase") == "Stable", "promoted")
    asked = town.audited(since)
    assert [entry["requestURI"] for entry in asked if entry["responseStatus"]["code"] == 403] == []
    places = {entry["objectRef"].get("namespace", "") for entry in asked if "objectRef" in entry}
    assert places == {"only-here", NAMESPACE}
