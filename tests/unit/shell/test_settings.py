import re
import traceback
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from canaryrollout.adapters.prometheus_provider import BasicAuth, CustomQueries, Provider
from canaryrollout.api.quantities import format_duration
from canaryrollout.shell.main import domain_settings, engine_settings, lease_settings, providers
from canaryrollout.shell.provider_settings import ProviderSettings
from canaryrollout.shell.settings import (
    LogFormat,
    Settings,
    SettingsError,
    camel,
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


@pytest.mark.parametrize(
    ("election", "seconds"),
    [({}, 5), ({"lease_duration": "15s", "renew_deadline": "12s"}, 3), ({"lease_duration": "30s"}, 5)],
)
def test_a_write_takes_no_longer_than_others_respect_the_lease_for(election: dict[str, object], seconds: float) -> None:
    settings = load(None, {"leader_election": {"enabled": True, **election}})
    assert engine_settings(settings).write_timeout == seconds
    alone = load(None, {"leader_election": {"enabled": False, **election}})
    assert engine_settings(alone).write_timeout == 5


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


EVERYTHING = """
providers:
  tenant_A:
    url: https://mimir.example.com/prometheus/
    timeout: 20s
    scrapeInterval: 30s
    lag: 45s
    concurrency: 8
    reporter: destination
    versionLabel: destination_canonical_revision
    serviceLabel: destination_service_name
    headers: {X-Scope-OrgID: "shop|pay"}
    headerFiles: {X-Api-Key: /creds/api-key}
    queryParameters: {dedup: true, max_source_resolution: 0, "replicaLabels[]": [replica, zone], partial_response: "no"}
    basicAuth: {usernameFile: /creds/username, passwordFile: /creds/password}
    caFile: /creds/ca.crt
    clientCertFile: /creds/tls.crt
    clientKeyFile: /creds/tls.key
    namespaces: [shop, "team-*"]
    customQueries: NamespaceEnforced
    namespaceLabel: destination_service_namespace
"""


def test_everything_about_a_provider_reaches_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EVERYTHING)
    settings = load(path, {})
    found = providers(settings.providers)["tenant_A"]
    expected = Provider(
        name="tenant_A",
        url="https://mimir.example.com/prometheus/",
        timeout=timedelta(seconds=20),
        scrape_interval=timedelta(seconds=30),
        lag=timedelta(seconds=45),
        concurrency=8,
        reporter="destination",
        version_label="destination_canonical_revision",
        service_label="destination_service_name",
        headers={"X-Scope-OrgID": "shop|pay"},
        header_files={"X-Api-Key": Path("/creds/api-key")},
        query_parameters={
            "dedup": "true",
            "max_source_resolution": "0",
            "replicaLabels[]": ("replica", "zone"),
            "partial_response": "no",
        },
        basic_auth=BasicAuth(Path("/creds/password"), username_file=Path("/creds/username")),
        ca_file=Path("/creds/ca.crt"),
        client_cert_file=Path("/creds/tls.crt"),
        client_key_file=Path("/creds/tls.key"),
        namespaces=("shop", "team-*"),
        custom_queries=CustomQueries.NAMESPACE_ENFORCED,
        namespace_label="destination_service_namespace",
    )
    assert found == expected
    changed = {field.name for field in fields(Provider) if getattr(found, field.name) != getattr(PLAIN, field.name)}
    left = {"bearer_token_file", "insecure_skip_verify"}  # these exclude others
    assert changed == {field.name for field in fields(Provider)} - left, "the example has every setting"
    assert found.credentials == ("client certificate", "basic auth", "headers")


DOCUMENTED = (Path(__file__).parents[3] / "docs" / "providers.md").read_text()


def test_every_setting_of_a_provider_is_documented_with_its_default() -> None:
    rows = [row.split("|") for row in DOCUMENTED.splitlines() if row.startswith("| `")]
    names = {name: row[2].strip().strip("`") for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    fields_ = ProviderSettings.model_fields
    spelled = {camel([name]): name for name in fields_}
    assert spelled.keys() <= names.keys()
    plain = load(None, {"providers": {"p": {"url": "http://p"}}}).providers["p"]
    for name, default in ((name, names[name]) for name in spelled if name not in ("url", "lag", "namespaces")):
        value = plain.model_dump(mode="json")[spelled[name]]
        assert default == ("" if value in (None, {}) else str(value).lower() if value is False else str(value)), name
    assert names["lag"] == format_duration(plain.effective_lag)


def test_the_examples_of_the_documentation_are_settings_that_work(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    seen: set[str] = set()
    for block in re.findall(r"```yaml\n(.*?)```", DOCUMENTED, flags=re.DOTALL):
        content = yaml.safe_load(block)
        if "providerSecrets" in content or "extraVolumes" in content:
            continue
        path.write_text(yaml.safe_dump(content if "providers" in content else {"providers": content}))
        seen |= load(path, {}).providers.keys()
    assert {"default", "thanos", "thanos-tls", "team-a", "grafana-cloud"} <= seen


PLAIN = Provider("default", "http://p")


def test_a_provider_is_what_its_documentation_says_where_nothing_is_set() -> None:
    found = load(None, {"providers": {"default": {"url": "http://p"}}}).providers["default"].provider("default")
    assert found == replace(PLAIN, lag=timedelta(seconds=2))


@pytest.mark.parametrize(
    ("patterns", "served", "refused"),
    [
        ((), ["shop", "kube-system"], []),
        (("shop", "team-*"), ["shop", "team-a", "team-"], ["shops", "a-team-a", "team", ""]),
        (("*",), ["shop"], []),
    ],
)
def test_a_provider_serves_the_namespaces_it_is_for(
    patterns: tuple[str, ...], served: list[str], refused: list[str]
) -> None:
    provider = replace(PLAIN, namespaces=patterns)
    assert all(provider.serves(namespace) for namespace in served)
    assert not any(provider.serves(namespace) for namespace in refused)


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        (
            "{url: 'http://p', bearerTokenFile: /t, basicAuth: {username: u, passwordFile: /p}}",
            "bearerTokenFile and basicAuth are set, but a request carries only one of them; leave one",
        ),
        (
            "{url: 'http://p', bearerTokenFile: /t, headers: {authorization: x}}",
            "bearerTokenFile and the header Authorization are set",
        ),
        ("{url: 'https://p', clientCertFile: /c}", "clientCertFile has no clientKeyFile; set it"),
        ("{url: 'https://p', clientKeyFile: /k}", "clientKeyFile has no clientCertFile; set it"),
        ("{url: 'http://p', caFile: /c}", "caFile would have no effect, because url begins with http://"),
        (
            "{url: 'https://p', caFile: /c, insecureSkipVerify: true}",
            "insecureSkipVerify accepts whatever certificate is shown",
        ),
        ("{url: 'http://p', headers: {X-A: a}, headerFiles: {x-a: /a}}", "the header x-a is set twice"),
        ("{url: 'http://p', headers: {'X A': a}}", "'X A' is no name of a header"),
        ("{url: 'http://p', headers: {Host: a}}", "the header Host is what the operator sets itself"),
        ('{url: "http://p", headers: {X-A: "a\\nb"}}', "headers.X-A has to be one line of printable ASCII"),
        ("{url: 'http://p', queryParameters: {query: up}}", "queryParameters.query is what the operator sets itself"),
        (
            "{url: 'http://p', basicAuth: {passwordFile: /p}}",
            "providers.my_default.basicAuth: set one of username and usernameFile",
        ),
        ("{url: 'http://p', basicAuth: {username: 'a:b', passwordFile: /p}}", "must not hold a colon"),
        ("{url: 'http://p', basicAuth: {username: a}}", "providers.my_default.basicAuth.passwordFile is missing"),
        ("{url: 'http://p?a=b'}", "put them into queryParameters"),
        ("{url: 'http://p/api/v1/'}", "leave /api/v1 out"),
        ("{url: 'http:///p'}", "write it as http://prometheus.istio-system:9090"),
        ("{url: 'http://p', namespaces: [Shop]}", "'Shop' is no name of a namespace"),
        ("{url: 'http://p', timeout: 0s}", "write something between 10ms and 10m"),
        ("{url: 'http://p', lag: 1h}", "no verdict can wait that long"),
        ("{url: 'http://p', concurrency: 100}", "providers.my_default.concurrency is 100"),
        ("{url: 'http://p', customQueries: Maybe}", "'Allowed', 'Forbidden' or 'NamespaceEnforced'"),
        ("{url: 'http://p', namespaceLabel: a-b}", "providers.my_default.namespaceLabel is 'a-b'"),
        (
            "{url: 'http://p', bearerToken: abc}",
            "providers.my_default.bearerToken is not a setting; write bearerTokenFile",
        ),
    ],
)
def test_a_provider_that_makes_no_sense_is_refused_with_what_would_be_right(
    tmp_path: Path, provider: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"providers: {{my_default: {provider}}}")
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert message in str(caught.value)


def test_all_that_is_wrong_with_a_provider_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("providers: {a: {url: 'http://p', caFile: /c, clientKeyFile: /k, queryParameters: {step: 1}}}")
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    for part in ("caFile and clientKeyFile would have no effect", "clientKeyFile has no", "queryParameters.step"):
        assert part in str(caught.value)


SECRET = "canary-5d0e"


@pytest.mark.parametrize(
    "text",
    [
        f"providers: {{a: {{url: 'https://user:{SECRET}@p'}}}}",
        f"providers: {{a: {{url: 'https://p?key={SECRET}'}}}}",
        f"providers: {{a: {{url: 'ftp://user:{SECRET}@p'}}}}",
        f"providers: {{a: {{url: 'user:{SECRET}@p:9090'}}}}",
        f"providers: {{a: {{url: 'http://p', headers: {{X-Key: [{SECRET}]}}}}}}",
        f"providers: {{a: {{url: 'http://p', headers: {{X-Key: '{SECRET}'}}, caFile: /c}}}}",
        f"providers: {{a: {{url: 'http://p', headers: '{SECRET}'}}}}",
        f"providers: {{a: {{url: 'http://p', queryParameters: {{key: {{a: {SECRET}}}}}}}}}",
        f"providers: {{a: {{url: 'http://p', basicAuth: 'user:{SECRET}'}}}}",
        f"providers: {{a: {{url: 'http://p', basicAuth: {{username: a, password: {SECRET}}}}}}}",
        f"providers: {{a: {{url: 'http://p', bearerToken: {SECRET}}}}}",
        f"providers: {{a: {{headers: {{X-Key: '{SECRET}}}}}}}",
        f"providers: {{a: {{headers: {{X-Key: {SECRET}: x}}}}}}\n\t- b",
        f"providers: ['http://user:{SECRET}@p']",
        f"providers: 'http://user:{SECRET}@p'",
        f"providers: {{a: 'http://user:{SECRET}@p'}}",
    ],
)
def test_what_may_be_secret_is_not_repeated_in_messages(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", [f'{{"a": {SECRET}', f'["http://user:{SECRET}@p"]', f'{{"a": "{SECRET}"}}'])
def test_variables_with_secrets_are_not_repeated_in_messages(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CANARYROLLOUT_PROVIDERS", value)
    with pytest.raises(SettingsError) as caught:
        load(None, {})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_secrets_are_not_shown_where_settings_are() -> None:
    provider = {"url": "http://p", "headers": {"X-Key": SECRET}, "query_parameters": {"key": SECRET}}
    settings = load(None, {"providers": {"a": provider}})
    assert SECRET not in repr(settings)
    assert SECRET not in repr(providers(settings.providers))


def test_a_provider_can_be_defined_by_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARYROLLOUT_PROVIDERS__DEFAULT__URL", "https://p")
    monkeypatch.setenv("CANARYROLLOUT_PROVIDERS__DEFAULT__CA_FILE", "/ca.crt")
    monkeypatch.setenv("CANARYROLLOUT_PROVIDERS__DEFAULT__NAMESPACES", '["shop"]')
    provider = load(None, {}).providers["default"]
    assert (provider.url, provider.ca_file, provider.namespaces) == ("https://p", Path("/ca.crt"), ("shop",))


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
