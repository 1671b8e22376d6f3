import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from canaryrollout.__main__ import app
from tests.prometheusstub import Stub, failure, prometheus_stub, result

SECRET = "canary-token-3b9e"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        server.reply = lambda _: result("vector", [{"metric": {}, "value": [1, "42"]}])
        yield server


def check(tmp_path: Path, providers: dict[str, Any], *arguments: str) -> Result:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"providers": providers}))
    return CliRunner().invoke(app, ["providers", "check", "-c", str(file), *arguments])


def test_who_answers_and_who_does_not(stub: Stub, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    providers = {
        "good": {"url": stub.url, "bearerTokenFile": str(token), "headers": {"X-Scope-OrgID": "shop"}},
        "late": {"url": stub.url, "bearerTokenFile": str(tmp_path / "later")},
        "plain": {"url": stub.url, "reporter": "destination"},
    }
    done = check(tmp_path, providers, "-o", "json")
    assert done.exit_code == 1, done.output
    good, late, plain = json.loads(done.stdout)
    assert good.pop("milliseconds") >= 0
    assert good == {
        "name": "good",
        "url": stub.url,
        "credentials": ["bearer token", "headers"],
        "answers": True,
        "series": 42,
        "remarks": [],
    }
    assert not late["answers"]
    assert late["milliseconds"] is None
    assert late["remarks"] == [f"bearer token cannot be read from {tmp_path / 'later'}: No such file or directory"]
    assert plain["credentials"] == []
    asked = {asked.form["query"]: asked.headers.get("Authorization") for asked in stub.asked}
    assert asked == {
        'count(istio_requests_total{reporter="source"})': f"Bearer {SECRET}",
        'count(istio_requests_total{reporter="destination"})': None,
    }
    assert SECRET not in done.output


def test_the_table_says_the_same(stub: Stub, tmp_path: Path) -> None:
    done = check(tmp_path, {"good": {"url": stub.url}})
    assert done.exit_code == 0, done.output
    head, _, row = [line for line in done.stdout.splitlines() if line.strip()]
    assert head.split() == ["PROVIDER", "ANSWERS", "SERIES", "CREDENTIALS", "URL", "REMARKS"]
    assert row.split()[:2] == ["good", "in"]
    assert row.split()[-3:] == ["42", "none", stub.url]


def test_a_server_without_istios_series_and_with_warnings_is_remarked_on(stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda _: result("vector", [], warnings=["store b is away"])
    done = check(tmp_path, {"empty": {"url": stub.url}}, "-o", "json")
    assert done.exit_code == 0
    (found,) = json.loads(done.stdout)
    assert found["answers"]
    assert found["remarks"] == [
        "warning: store b is away",
        'it has no series istio_requests_total{reporter="source"}: does it scrape the proxies?',
    ]


@pytest.mark.parametrize("reply", [failure(401, "unauthorized", "who are you"), result("vector", [["odd"]])])
def test_an_answer_that_is_none_fails(stub: Stub, tmp_path: Path, reply: Any) -> None:
    stub.reply = lambda _: reply
    done = check(tmp_path, {"odd": {"url": stub.url}}, "-o", "json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)[0]["answers"] is False


def test_some_may_be_chosen(stub: Stub, tmp_path: Path) -> None:
    providers = {"a": {"url": stub.url}, "b": {"url": stub.url}}
    done = check(tmp_path, providers, "b", "-o", "json")
    assert [found["name"] for found in json.loads(done.stdout)] == ["b"]
    done = check(tmp_path, providers, "c")
    assert done.exit_code == 2
    assert "c not defined; defined are: a, b" in done.output


def test_settings_that_are_wrong_are_told(tmp_path: Path) -> None:
    done = check(tmp_path, {"a": {"url": "nowhere"}})
    assert done.exit_code == 2
    assert "providers.a.url is 'nowhere'" in done.output
    assert check(tmp_path, {}).exit_code == 2
