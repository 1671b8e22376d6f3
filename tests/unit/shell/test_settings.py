from datetime import timedelta
from pathlib import Path

import pytest

from canaryrollout.shell.main import domain_settings, engine_settings, lease_settings, providers
from canaryrollout.shell.settings import (
    LogFormat,
    Settings,
    SettingsError,
    load,
    own_namespace,
    this_replica,
    variable,
)


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANARYROLLOUT_WORKERS", "POD_NAME", "POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        """
        providers:
          default: {url: "http://prometheus:9090", scrapeInterval: 5s}
          tenant-A:
            url: https://thanos.example.com
            headers: {X-Scope-OrgID: tenant-a}
            bearerTokenFile: /token
            lag: 30s
        namespaces: [shop, payments]
        workers: 16
        logFormat: json
        httpPort: 8081
        leaderElection: {namespace: canary, leaseDuration: 30s}
        timings: {subsetSettle: 2s}
        """
    )
    return path


def test_everything_has_a_default() -> None:
    settings = load(None, {})
    assert settings.workers == 64
    assert settings.namespaces == ()
    assert settings.leader_election.enabled
    assert settings.providers == {}
    assert lease_settings(settings).duration == 15
    assert engine_settings(settings).resync == 300


def test_the_file_is_read_as_it_is_documented(file: Path) -> None:
    settings = load(file, {})
    assert settings.namespaces == ("shop", "payments")
    assert (settings.workers, settings.log_format, settings.http_port) == (16, LogFormat.JSON, 8081)
    assert settings.leader_election.namespace == "canary"
    assert settings.leader_election.lease_duration == timedelta(seconds=30)
    assert settings.leader_election.name == "canaryrollout", "what the file does not say keeps its default"
    tenant = settings.providers["tenant-A"]
    assert tenant.headers == {"X-Scope-OrgID": "tenant-a"}, "names that the administrator chose are left as they are"
    assert tenant.bearer_token_file == Path("/token")


def test_the_environment_comes_before_the_file_and_flags_before_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARYROLLOUT_WORKERS", "32")
    monkeypatch.setenv("CANARYROLLOUT_HTTP_PORT", "8082")
    monkeypatch.setenv("CANARYROLLOUT_NAMESPACES", "a, b")
    monkeypatch.setenv("CANARYROLLOUT_LEADER_ELECTION__NAME", "from-environment")
    monkeypatch.setenv("CANARYROLLOUT_PROVIDERS__DEFAULT__URL", "http://other:9090")
    settings = load(file, {"workers": "48", "leader_election": {"name": "from-flag"}})
    assert settings.workers == 48
    assert settings.http_port == 8082
    assert settings.namespaces == ("a", "b")
    assert settings.leader_election.name == "from-flag"
    assert settings.leader_election.namespace == "canary", "blocks are merged, not replaced"
    assert settings.providers["default"].url == "http://other:9090"
    assert settings.providers["default"].scrape_interval == timedelta(seconds=5)


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CANARYROLLOUT_SERVICE_HOST": "10.96.0.7",
        "CANARYROLLOUT_SERVICE_PORT": "8080",
        "CANARYROLLOUT_PORT": "tcp://10.96.0.7:8080",
        "CANARYROLLOUT_PORT_8080_TCP": "tcp://10.96.0.7:8080",
    }.items():
        monkeypatch.setenv(name, value)
    assert load(None, {}).http_port == 8080


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("workers: 0", ["workers", "0", "greater than or equal to 1", "CANARYROLLOUT_WORKERS"]),
        ("resync: 5", ["resync", "5", "30s, 2m"]),
        ("resync: 10ms", ["resync", "1s or more"]),
        ("worker: 5", ["worker is not a setting"]),
        ("leaderElection: {leaseNamespace: x}", ["leaderElection.leaseNamespace is not a setting"]),
        ("providers: {default: {}}", ["providers.default.url is missing"]),
        ("providers: {default: {url: prometheus:9090}}", ["providers.default.url", "prometheus:9090", "http"]),
        ("logFormat: yaml", ["logFormat", "yaml", "json"]),
        ("- a", ["must hold a mapping"]),
        ("a: [", ["is not YAML"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_would_be_right(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml", {})


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# nothing yet\n")
    assert load(path, {}).workers == 64


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {"workers": "0", "http_port": "70000"})
    assert len(str(caught.value).splitlines()) == 2


def test_settings_reach_the_parts_as_values(file: Path) -> None:
    settings = load(file, {})
    domain = domain_settings(settings)
    assert domain.subset_settle == timedelta(seconds=2)
    assert domain.drain == timedelta(seconds=5), "what is not set has the default of the domain"
    assert domain.lag == {"default": timedelta(seconds=2), "tenant-A": timedelta(seconds=30)}
    found = providers(settings.providers)
    assert found["default"].lag == timedelta(seconds=2), "the time to take data in, whatever the scrape interval"
    assert found["default"].timeout == timedelta(seconds=10)
    assert found["tenant-A"].headers == {"X-Scope-OrgID": "tenant-a"}


def test_headers_are_not_shown_where_settings_are(file: Path) -> None:
    assert "tenant-a" not in repr(load(file, {}))


def test_every_setting_has_a_variable_of_its_own() -> None:
    names = {variable(field) for field in Settings.model_fields}
    assert len(names) == len(Settings.model_fields)
    assert "CANARYROLLOUT_LOG_LEVEL" in names


def test_replicas_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "canaryrollout-7d9f-x")
    names = {this_replica() for _ in range(10)}
    assert len(names) == 10
    assert all(name.startswith("canaryrollout-7d9f-x_") for name in names)


def test_the_lease_lies_in_the_namespace_of_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_namespace() == "default"
    monkeypatch.setenv("POD_NAMESPACE", "canary-system")
    assert own_namespace() == "canary-system"
