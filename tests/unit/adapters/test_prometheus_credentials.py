import asyncio
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from prometheus_client import CollectorRegistry

from canaryrollout.adapters.prometheus_client import Metrics, PrometheusClient, Provider, QueryFailed
from canaryrollout.adapters.prometheus_credentials import Trust, words_of
from canaryrollout.adapters.prometheus_provider import BasicAuth
from tests.prometheusstub import Asked, Reply, Stub, failure, prometheus_stub, result
from tests.tlsstub import Authority, TlsStub, tls_stub

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOKEN, PASSWORD, KEY, LITERAL = "canary-token-7f3a", "canary-pass-91bd", "canary-key-4c2e", "canary-literal-08aa"
PARAMETER = "canary/parameter 6d0e"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with prometheus_stub() as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Provider], PrometheusClient]]:
    async with AsyncExitStack() as stack:

        def make(provider: Provider) -> PrometheusClient:
            client = PrometheusClient(provider, Metrics(CollectorRegistry()))
            stack.push_async_callback(client.close)
            return client

        yield make


Connect = Callable[[Provider], PrometheusClient]


async def refusal(client: PrometheusClient) -> QueryFailed:
    with pytest.raises(QueryFailed) as failed:
        await client.at("up", NOW)
    return failed.value


# Headers


async def test_password_and_name_are_read_for_every_request(stub: Stub, connect: Connect, tmp_path: Path) -> None:
    password, name = tmp_path / "password", tmp_path / "username"
    password.write_text("wörd:1\n")
    name.write_text("operator\n")
    client = connect(Provider("p", stub.url, basic_auth=BasicAuth(password, username_file=name)))
    await client.at("up", NOW)
    password.write_text("word2")
    await client.at("up", NOW)
    assert [asked.headers["Authorization"] for asked in stub.asked] == [
        "Basic b3BlcmF0b3I6d8O2cmQ6MQ==",
        "Basic b3BlcmF0b3I6d29yZDI=",
    ]


async def test_headers_come_literally_and_from_files(stub: Stub, connect: Connect, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first")
    provider = Provider("p", stub.url, headers={"X-Scope-OrgID": "shop|pay"}, header_files={"X-Api-Key": key})
    client = connect(provider)
    await client.at("up", NOW)
    key.write_text("second")
    await client.at("up", NOW)
    assert [asked.headers["X-Scope-OrgID"] for asked in stub.asked] == ["shop|pay"] * 2
    assert [asked.headers["X-Api-Key"] for asked in stub.asked] == ["first", "second"]


async def test_parameters_go_with_every_query_and_never_replace_the_operators(stub: Stub, connect: Connect) -> None:
    parameters = {"dedup": "true", "partial_response": "false", "time": "0"}
    client = connect(Provider("p", stub.url, query_parameters=parameters))
    await client.at("up", NOW)
    form = stub.asked[0].form
    assert form == {
        "query": "up", "time": "1767268800.000", "timeout": "10000ms", "dedup": "true", "partial_response": "false"
    }  # fmt: skip


async def test_a_parameter_may_have_several_values(
    stub: Stub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[Any] = []
    client = connect(Provider("p", stub.url, query_parameters={"replicaLabels[]": ("replica", "zone")}))
    adapter = client._session.get_adapter(stub.url)
    send = adapter.send

    def note(request: Any, **more: Any) -> Any:
        bodies.append(request.body)
        return send(request, **more)

    monkeypatch.setattr(adapter, "send", note)
    await client.at("up", NOW)
    assert "replicaLabels%5B%5D=replica&replicaLabels%5B%5D=zone" in bodies[0]


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two\nlines", b"\xff\xfe", "größer".encode()])
async def test_a_token_that_cannot_be_used_fails_the_query_until_it_can(
    stub: Stub, connect: Connect, tmp_path: Path, content: bytes | None
) -> None:
    token = tmp_path / "token"
    reasons = {None: "No such file", b"": "empty", b" \n": "empty", b"\xff\xfe": "not text"}
    if content is not None:
        token.write_bytes(content)
    client = connect(Provider("p", stub.url, bearer_token_file=token))
    failed = await refusal(client)
    assert failed.outcome == "NoCredentials"
    assert str(failed).startswith(f"bearer token cannot be read from {token}: ")
    assert reasons.get(content, "one line of printable ASCII") in str(failed)
    assert "lines" not in str(failed)
    assert stub.asked == [], "nothing is sent without credentials"
    token.write_text("good")
    await client.at("up", NOW)
    assert stub.asked[0].headers["Authorization"] == "Bearer good"


async def test_a_directory_in_the_place_of_a_secret_is_named(stub: Stub, connect: Connect, tmp_path: Path) -> None:
    failed = await refusal(connect(Provider("p", stub.url, header_files={"X-Api-Key": tmp_path})))
    assert str(failed) == f"header X-Api-Key cannot be read from {tmp_path}: Is a directory"


# What is secret stays secret


@pytest.fixture
def guarded(stub: Stub, tmp_path: Path) -> Provider:
    for name, content in {"password": PASSWORD, "key": KEY, "token": TOKEN}.items():
        (tmp_path / name).write_text(content)
    return Provider(
        "p",
        stub.url,
        headers={"X-Literal": LITERAL, "X-Scope-OrgID": "tenant-shop"},
        header_files={"X-Api-Key": tmp_path / "key"},
        query_parameters={"api_key": PARAMETER, "dedup": "true"},
    )


def repeated(asked: Asked) -> str:
    names = ("Authorization", "X-Api-Key", "X-Literal", "X-Scope-OrgID")
    return " ".join([*(asked.headers.get(name, "") for name in names), urlencode(asked.form), str(asked.form)])


@pytest.mark.parametrize("way", ["bearer", "basic"])
@pytest.mark.parametrize(
    "reply",
    [
        lambda asked: failure(400, "bad_data", repeated(asked)),
        lambda asked: failure(401, "unauthorized", repeated(asked)),
        lambda asked: failure(500, "internal", repeated(asked)),
        lambda asked: Reply(302, b"", {"Location": f"http://elsewhere/?{repeated(asked).replace(' ', '+')}"}),
        lambda asked: Reply(200, repeated(asked).encode()),
        lambda asked: result("vector", [], warnings=[repeated(asked)]),
        lambda asked: result(repeated(asked), []),
    ],
    ids=["400", "401", "500", "redirect", "no JSON", "warning", "type"],
)
async def test_a_server_that_repeats_credentials_does_not_make_them_known(
    stub: Stub,
    connect: Connect,
    guarded: Provider,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    reply: Callable[[Asked], Reply],
    way: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    if way == "basic":
        provider = replace(guarded, basic_auth=BasicAuth(tmp_path / "password", username="operator"))
    else:
        provider = replace(guarded, bearer_token_file=tmp_path / "token")
    stub.reply = reply
    shown = [repr(provider), str(provider)]
    try:
        answer = await connect(provider).at("up", NOW)
        shown += [repr(answer)]
        assert "tenant-shop" in repr(answer)
    except QueryFailed as error:
        shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
    (asked,) = stub.asked
    assert KEY in asked.headers["X-Api-Key"], "it was sent"
    shown += [caplog.text]
    encoded = asked.headers["Authorization"].split()[1]
    assert asked.form["api_key"] == PARAMETER
    for secret in (TOKEN, PASSWORD, KEY, LITERAL, encoded, PARAMETER, quote_plus(PARAMETER), quote(PARAMETER, safe="")):
        assert secret not in "\n".join(shown)


async def test_a_result_is_taken_as_it_is_but_for_what_files_hold(
    stub: Stub, connect: Connect, guarded: Provider, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(long := "canary-token-of-some-length")
    (tmp_path / "key").write_text("shop")
    provider = replace(guarded, bearer_token_file=tmp_path / "token", headers={"X-Team": "reviews.shop.svc"})
    host = "reviews.shop.svc.cluster.local"
    stub.reply = lambda _: result(
        "vector", [{"metric": {"a": host, long: f"b {long}"}, "value": [1, f"Bearer {long}"]}]
    )
    answer = await connect(provider).at("up", NOW)
    assert answer.result == [{"metric": {"a": host, "***": "b ***"}, "value": [1, "Bearer ***"]}]


async def test_a_server_that_is_not_there_is_told_of_without_credentials(
    connect: Connect, guarded: Provider, tmp_path: Path
) -> None:
    provider = replace(guarded, url="http://127.0.0.1:1", bearer_token_file=tmp_path / "token")
    failed = await refusal(connect(provider))
    text = "".join(traceback.format_exception(failed))
    assert "refused" in text
    for secret in (TOKEN, KEY, LITERAL, PARAMETER):
        assert secret not in text


# TLS


@pytest.fixture
def server(authority: Authority) -> Iterator[TlsStub]:
    with tls_stub(authority, clients=authority.ca_file) as running:
        yield running


async def test_a_server_of_the_named_authority_is_believed_and_no_other(
    authority: Authority, connect: Connect, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", "another authority")
    with tls_stub(authority) as server:
        assert (await connect(Provider("p", server.url, ca_file=authority.ca_file)).at("up", NOW)).result == [1, "1"]
        for provider in (Provider("p", server.url), Provider("p", server.url, ca_file=other.ca_file)):
            failed = await refusal(connect(provider))
            assert failed.outcome == "Unreachable"
            assert str(failed).startswith(f"cannot ask {server.url}: its certificate is not trusted (")
            assert str(failed).endswith("; caFile says whom to trust")
        assert len(server.callers) == 1, "nothing is sent to who is not believed"


async def test_the_name_in_the_certificate_has_to_be_the_servers(authority: Authority, connect: Connect) -> None:
    with tls_stub(authority, name="prometheus.example") as server:
        failed = await refusal(connect(Provider("p", server.url, ca_file=authority.ca_file)))
        assert "it is not the server that url names (IP address mismatch" in str(failed)
        assert server.callers == []


async def test_a_server_that_hangs_up_is_told_of_in_words(authority: Authority, connect: Connect) -> None:
    with tls_stub(authority) as server:
        failed = await refusal(connect(Provider("p", server.url.replace("https://", "http://"))))
    assert failed.outcome == "Unreachable"
    assert "(" not in str(failed), "no exception inside an exception"


async def test_verification_can_be_given_up_explicitly_only(authority: Authority, connect: Connect) -> None:
    with tls_stub(authority, name="anybody") as server:
        await connect(Provider("p", server.url, insecure_skip_verify=True)).at("up", NOW)
        assert server.callers == [""]


def test_a_named_authority_takes_the_place_of_the_public_ones(authority: Authority) -> None:
    trusted = {}
    for name, file in (("named", authority.ca_file), ("public", None)):
        context = (
            Trust(Provider("p", "https://p", ca_file=file)).adapter().poolmanager.connection_pool_kw["ssl_context"]
        )
        trusted[name] = len(context.get_ca_certs())
    assert trusted["named"] == 1
    assert trusted["public"] > 20


async def test_a_client_certificate_is_shown_where_one_is_asked_for(
    authority: Authority, server: TlsStub, connect: Connect
) -> None:
    certificate, key = authority.issue("operator")
    provider = Provider("p", server.url, ca_file=authority.ca_file)
    failed = await refusal(connect(provider))
    assert failed.outcome == "Unreachable"
    assert server.callers == []
    await connect(replace(provider, client_cert_file=certificate, client_key_file=key)).at("up", NOW)
    assert server.callers == ["operator"]


async def test_a_server_without_tls_is_told_apart(stub: Stub, connect: Connect) -> None:
    failed = await refusal(connect(Provider("p", stub.url.replace("http://", "https://"))))
    assert "it does not speak TLS" in str(failed)
    assert stub.asked == []


@pytest.mark.parametrize(
    ("reason", "text", "words"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "alert", "clientCertFile and clientKeyFile say who asks"),
        (None, "EOF occurred in violation of protocol (_ssl.c:2427)", "ended (EOF occurred in violation of protocol)"),
        ("NO_SHARED_CIPHER", "no cipher", "ended (NO_SHARED_CIPHER)"),
    ],
)
def test_openssl_speaks_in_words_for_people(reason: str | None, text: str, words: str) -> None:
    error = ssl.SSLError(1, text)
    error.reason = reason  # type: ignore[assignment]  # None where OpenSSL gives none
    assert words_of(error).endswith(words)


async def test_connections_are_released_in_the_end(stub: Stub) -> None:
    client = PrometheusClient(Provider("p", stub.url), Metrics(CollectorRegistry()))
    await client.at("up", NOW)
    pools = client._session.get_adapter(stub.url).poolmanager.pools
    assert len(pools) == 1
    await client.close()
    assert len(pools) == 0


async def test_a_rotated_certificate_is_used_from_the_next_request_on(
    authority: Authority, server: TlsStub, connect: Connect, tmp_path: Path
) -> None:
    link = tmp_path / "mounted"
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        for issued, file in zip(authority.issue(name), ("tls.crt", "tls.key"), strict=True):
            issued.rename(tmp_path / name / file)
    link.symlink_to("before")
    client = connect(
        Provider(
            "p",
            server.url,
            ca_file=authority.ca_file,
            client_cert_file=link / "tls.crt",
            client_key_file=link / "tls.key",
        )
    )
    await asyncio.gather(*(client.at(f"up + {n}", NOW) for n in range(4)))
    (tmp_path / "flip").symlink_to("after")
    (tmp_path / "flip").rename(link)  # as the kubelet changes a mounted Secret
    await asyncio.gather(*(client.at(f"up + {n}", NOW) for n in range(4)))
    assert server.callers == ["before"] * 4 + ["after"] * 4


async def test_trust_that_is_withdrawn_ends_open_connections_too(
    authority: Authority, connect: Connect, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", "another authority")
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(authority.ca_file.read_bytes())
    with tls_stub(authority) as server:
        client = connect(Provider("p", server.url, ca_file=trusted))
        await client.at("up", NOW)
        trusted.write_bytes(other.ca_file.read_bytes() + b"\n")
        assert "its certificate is not trusted" in str(await refusal(client))
        assert len(server.callers) == 1


async def test_certificates_that_cannot_be_used_are_named_and_healed(
    authority: Authority, server: TlsStub, connect: Connect, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    trusted = tmp_path / "ca.crt"
    client = connect(Provider("p", server.url, ca_file=trusted, client_cert_file=certificate, client_key_file=key))

    async def said() -> str:
        failed = await refusal(client)
        assert failed.outcome == "NoCredentials"
        return str(failed)

    good_certificate, good_key = authority.issue("operator")
    _, other_key = authority.issue("somebody")
    _, locked_key = authority.issue("locked", password=b"opensesame")
    assert await said() == f"CA certificates cannot be read from {trusted}: No such file or directory"
    trusted.write_text("not a certificate")
    key.write_bytes(good_key.read_bytes())
    assert await said() == f"client certificate cannot be read from {certificate}: No such file or directory"
    certificate.write_bytes(good_certificate.read_bytes())
    assert await said() == f"CA certificates cannot be read from {trusted}: it holds no certificate in PEM"
    trusted.write_bytes(authority.ca_file.read_bytes())
    key.write_bytes(other_key.read_bytes())
    assert await said() == (
        f"client certificate {certificate} with client key {key} cannot be used: they do not belong together"
    )
    key.write_bytes(locked_key.read_bytes())
    assert "is encrypted; the operator has no password for it" in await said()
    key.write_text("garbage")
    assert (await said()).endswith("they are not a certificate and a key in PEM")
    assert server.callers == []
    key.write_bytes(good_key.read_bytes())
    await client.at("up", NOW)
    assert server.callers == ["operator"]
