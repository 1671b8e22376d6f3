from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lab.faultproxy import Fault, RuleError, call_of, parse
from lab.faultproxy.answers import answer, gone_event, status

ISTIO = "/apis/networking.istio.io/v1/namespaces/shop/virtualservices"


@pytest.mark.parametrize(
    ("method", "path", "query", "kind", "namespace", "name"),
    [
        ("GET", ISTIO, {}, "list virtualservices", "shop", ""),
        ("GET", ISTIO, {"watch": "true"}, "watch virtualservices", "shop", ""),
        ("GET", ISTIO, {"watch": "false"}, "list virtualservices", "shop", ""),
        ("POST", ISTIO, {}, "create virtualservices", "shop", ""),
        ("GET", f"{ISTIO}/reviews", {}, "get virtualservices", "shop", "reviews"),
        ("PATCH", f"{ISTIO}/a%20b", {}, "patch virtualservices", "shop", "a b"),
        ("PATCH", f"{ISTIO}/reviews/status", {}, "patch virtualservices/status", "shop", "reviews"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/x/leases/l", {}, "update leases", "x", "l"),
        ("DELETE", f"{ISTIO}/reviews", {}, "delete virtualservices", "shop", "reviews"),
        ("DELETE", ISTIO, {}, "deletecollection virtualservices", "shop", ""),
        ("POST", "/api/v1/namespaces/shop/pods/p/eviction", {}, "create pods/eviction", "shop", "p"),
        ("GET", "/apis/canaryrollout.io/v1alpha1/canaryrollouts", {"watch": "1"}, "watch canaryrollouts", "", ""),
        ("GET", "/api/v1/nodes/n", {}, "get nodes", "", "n"),
        ("GET", "/api/v1/namespaces/shop", {}, "get namespaces", "", "shop"),
        ("GET", "/api/v1/namespaces", {}, "list namespaces", "", ""),
        ("GET", "/apis/networking.istio.io", {}, "get /apis/networking.istio.io", "", ""),
        ("GET", "/version", {}, "get /version", "", ""),
        ("GET", "/", {}, "get /", "", ""),
    ],
)
def test_a_request_is_read_as_kubernetes_names_it(
    method: str, path: str, query: dict[str, str], kind: str, namespace: str, name: str
) -> None:
    call = call_of(method, path, query)
    assert (call.kind, call.namespace, call.name) == (kind, namespace, name)


def test_a_rule_says_which_and_when_and_what() -> None:
    rule = parse("patch,update canaryrollouts/status name=rev.* namespace=shop n=3-5 every=2 from=1s for=2m answer=429")
    assert (sorted(rule.match.verbs), rule.match.resource) == (["patch", "update"], "canaryrollouts/status")
    path = "/apis/canaryrollout.io/v1alpha1/namespaces/{}/canaryrollouts/{}/status"
    assert rule.match(call_of("PATCH", path.format("shop", "reviews"), {}))
    assert not rule.match(call_of("PATCH", path.format("shop", "ratings"), {}))
    assert not rule.match(call_of("PATCH", path.format("mall", "reviews"), {}))
    assert not rule.match(call_of("GET", path.format("shop", "reviews"), {}))
    assert [number for number in range(1, 9) if rule.when.hits(number)] == [4]
    assert [age for age in (0.5, 1.0, 120.9, 121.0) if rule.when.open(age)] == [1.0, 120.9]
    assert (rule.effect.fault, rule.effect.code) == (Fault.ANSWER, 429)


@pytest.mark.parametrize(
    ("text", "verbs", "resource"),
    [
        ("drop", "", ""),
        ("* * drop", "", ""),
        ("leases drop", "", "leases"),
        ("write drop", "create delete deletecollection patch update", ""),
        ("watch,get drop", "get watch", ""),
    ],
)
def test_what_a_rule_leaves_out_matches_all(text: str, verbs: str, resource: str) -> None:
    rule = parse(text)
    assert (" ".join(sorted(rule.match.verbs)), rule.match.resource) == (verbs, resource)
    assert all(rule.when.hits(number) for number in (1, 2, 1000))
    assert rule.when.open(1e6)


def test_n_is_one_or_a_span_or_open() -> None:
    def hits(text: str) -> list[int]:
        return [number for number in range(1, 8) if parse(f"{text} drop").when.hits(number)]

    assert (hits("n=3"), hits("n=3-5"), hits("n=6-"), hits("every=3")) == ([3], [3, 4, 5], [6, 7], [3, 6])


def test_effects_take_their_details() -> None:
    assert parse("delay=250ms").effect.seconds == 0.25
    assert parse("hang-after").effect.after
    assert parse(f"stop=3s pid={os.getpid()}").effect.seconds == 3.0
    assert parse("cut=10").effect.size == 10
    effect = parse("answer=503 reason=Because message='so it is' retry-after=7").effect
    assert (effect.reason, effect.message, effect.retry_after) == ("Because", "so it is", 7)
    effect = parse(f"kill-after pid={os.getpid()}").effect
    assert effect.process is not None
    assert (effect.fault, effect.after, effect.process()) == (Fault.KILL, True, os.getpid())


def test_a_pid_is_that_of_the_process_it_named_and_of_no_later_one() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = parse(f"stop pid={child.pid}").effect.process
    assert process is not None
    assert process() == child.pid
    child.communicate(b"\n")
    assert process() is None
    with pytest.raises(RuleError, match="no such process"):
        parse(f"kill pid={child.pid}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patch virtualservices", "needs one effect and has none"),
        ("drop hang", "needs one effect and has drop, hang"),
        ("pacth virtualservices drop", "virtualservices means nothing here"),
        ("drop color=red", "color=red means nothing here"),
        ("delay", "delay needs a duration"),
        ("delay=soon", "'soon' is no duration"),
        ("answer=200", "answer=200 is no error"),
        ("answer", "invalid literal"),
        ("kill", "kill needs pid=NUMBER"),
        ("gone-after", "gone cannot come after"),
        ("n=0 drop", "count from 1"),
        ("n=5-3 drop", "count from 1"),
        ("name=[ drop", "no regular expression"),
        ("Patch drop", "neither a verb, nor a resource"),
        ("drop 'x", "No closing quotation"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_the_word_at_fault(text: str, says: str) -> None:
    with pytest.raises(RuleError, match=re.escape(says)):
        parse(text)


def test_errors_are_worded_as_the_api_server_words_them() -> None:
    patch = call_of("PATCH", f"{ISTIO}/reviews", {})
    conflict = status(409, patch)
    assert conflict["reason"] == "Conflict"
    assert conflict["message"].startswith(
        'Operation cannot be fulfilled on virtualservices.networking.istio.io "reviews": the object has been modified'
    )
    assert status(409, call_of("POST", ISTIO, {}))["reason"] == "AlreadyExists"
    assert status(503, patch, retry_after=3)["details"]["retryAfterSeconds"] == 3
    assert b'"type": "ERROR"' in gone_event(patch)
    assert b'"code": 410' in gone_event(patch)
    busy = answer(429, patch, retry_after=4)
    assert (busy.headers["Retry-After"], busy.body) == ("4", b"Too many requests, please try again later.\n")
