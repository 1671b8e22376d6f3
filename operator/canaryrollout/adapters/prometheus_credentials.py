"""Credentials of a provider as files say them now: headers for one request, and TLS for new connections.

Secrets rotate, appear late and vanish. So no file is read before it is needed and none is believed for longer than a
request; one that cannot be used fails that one query, in words that name the file and never what it holds. TLS material
is kept until a file changes; connections made with what was there before are then not used again.
"""

from __future__ import annotations

import base64
import re
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from canaryrollout.adapters.prometheus_provider import BasicAuth, Provider, QueryFailed

HIDDEN: Final = "***"
_NOT_SECRET: Final = frozenset({"x-scope-orgid", "thanos-tenant"})
"""Headers that name a tenant: a server's words about one would be of no use without it."""
_KNOWN_PARAMETERS: Final = frozenset(
    {"dedup", "engine", "extra_filters", "extra_filters[]", "extra_label", "max_source_resolution", "nocache",
     "partial_response", "replicaLabels[]", "storeMatch[]", "tenant"}
)  # fmt: skip
"""Parameters of Thanos and VictoriaMetrics that guard nothing; any other may be somebody's key."""
_SHORTEST_SECRET: Final = 4
"""What is shorter guards nothing, and would black out words that only look alike."""
_SHORTEST_IN_RESULT: Final = 16
"""What is shorter may be part of a name that evidence is told apart by."""
_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
"""Printable ASCII on one line, as headers can carry."""

_WRONG_NAMES: Final = frozenset({62, 63, 64})
"""OpenSSL's codes for a certificate of another host, mailbox or address."""
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
_SOURCE: Final = re.compile(r" \(_ssl\.c:\d+\)$")

_State = tuple[tuple[int, int, int], ...]


class Credentials:
    """Headers of a provider, made from its files whenever a request is sent."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._sent = threading.local()
        self._parameters = frozenset(
            spelling
            for name, value in provider.query_parameters.items()
            if name not in _KNOWN_PARAMETERS
            for secret in ([value] if isinstance(value, str) else value)
            for spelling in (secret, quote(secret, safe=""), quote_plus(secret))
        )

    def headers(self) -> dict[str, str]:
        """Return the headers of a request that is sent now.

        Raises:
            QueryFailed: If a file cannot be used.
        """
        provider = self._provider
        headers = dict(provider.headers)
        self._sent.contents = set()
        self._sent.secrets = {value for name, value in headers.items() if name.lower() not in _NOT_SECRET}
        for name, path in provider.header_files.items():
            headers[name] = self._secret(path, f"header {name}")
        if provider.bearer_token_file is not None:
            headers["Authorization"] = f"Bearer {self._secret(provider.bearer_token_file, 'bearer token')}"
        if provider.basic_auth is not None:
            headers["Authorization"] = self._basic(provider.basic_auth)
        return headers

    def hide(self, text: str) -> str:
        """Take what is secret out of a server's words: it may repeat what this thread sent last."""
        secrets: set[str] = getattr(self._sent, "secrets", set())
        known = (secret for secret in secrets | self._parameters if len(secret) >= _SHORTEST_SECRET)
        return _without(text, sorted(known, key=len, reverse=True))

    def hide_in(self, result: Any) -> Any:
        """Take the contents of files out of a result: a message may quote a value or a label.

        Only long ones, and none of the settings' own texts: a header may name a tenant that a host is named after.
        """
        sent: set[str] = getattr(self._sent, "contents", set())
        secrets = [secret for secret in sent if len(secret) >= _SHORTEST_IN_RESULT]
        return _hidden_in(result, secrets) if secrets else result

    def _basic(self, auth: BasicAuth) -> str:
        username = auth.username
        if auth.username_file is not None:
            username = _text_of(auth.username_file, "username")
        password = self._secret(auth.password_file, "password", ascii_only=False)
        encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._keep(encoded)
        return f"Basic {encoded}"

    def _secret(self, path: Path, what: str, *, ascii_only: bool = True) -> str:
        value = _text_of(path, what)
        if ascii_only and _VALUE.fullmatch(value) is None:
            raise _unusable(what, path, "it has to be one line of printable ASCII")
        self._keep(value)
        return value

    def _keep(self, content: str) -> None:
        self._sent.secrets.add(content)
        self._sent.contents.add(content)


class Trust:
    """The connections of a provider, with the TLS material of its files."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._adapter: HTTPAdapter | None = None
        if provider.insecure_skip_verify:  # said once in the log; urllib3 would say it for each request
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def adapter(self) -> HTTPAdapter:
        """Return the connections to use now.

        Raises:
            QueryFailed: If a file cannot be used.
        """
        with self._lock:
            state = self._files_now()
            if self._adapter is None or state != self._state:
                context = _context(self._provider) if self._provider.url.startswith("https://") else None
                # Who is in the middle of a request keeps the old connections, which close when nobody does.
                self._adapter, self._state = _Connections(context, self._provider.concurrency), state
            return self._adapter

    def close(self) -> None:
        """Close all connections that nobody uses."""
        with self._lock:
            if self._adapter is not None:
                self._adapter.close()

    def _files_now(self) -> _State:
        named = {
            "CA certificates": self._provider.ca_file,
            "client certificate": self._provider.client_cert_file,
            "client key": self._provider.client_key_file,
        }
        found = []
        for what, path in named.items():
            if path is not None:
                try:
                    stat = path.stat()
                except OSError as error:
                    raise _unusable(what, path, _reason(error)) from None
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def _hidden_in(value: Any, secrets: Sequence[str]) -> Any:
    """Return a value of JSON without secrets; most of it are numbers, which are shorter than any."""
    if isinstance(value, str):
        return value if len(value) < _SHORTEST_IN_RESULT else _without(value, secrets)
    if isinstance(value, list):
        return [_hidden_in(item, secrets) for item in value]
    if isinstance(value, dict):
        return {_hidden_in(key, secrets): _hidden_in(item, secrets) for key, item in value.items()}
    return value


def words_of(error: ssl.SSLError) -> str:
    """Return why there is no TLS connection, and what may help, instead of OpenSSL's words."""
    reason = error.reason or _SOURCE.sub("", error.args[-1] if error.args else "no reason given")
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        if error.verify_code in _WRONG_NAMES:
            return f"it is not the server that url names ({said})"
        return f"its certificate is not trusted ({said}); caFile says whom to trust"
    if "_ALERT_" in reason:
        return f"it refuses the TLS connection ({reason}); clientCertFile and clientKeyFile say who asks"
    if reason in _NOT_TLS:
        return f"it does not speak TLS ({reason}); does its URL begin with http:// rather than https://?"
    return f"the TLS connection ended ({reason})"


class _Connections(HTTPAdapter):
    """Connections with a TLS context of our own; none is retried."""

    def __init__(self, context: ssl.SSLContext | None, size: int) -> None:
        self._context = context
        super().__init__(max_retries=0, pool_connections=1, pool_maxsize=size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if self._context is not None:
            kwargs["ssl_context"] = self._context
        super().init_poolmanager(*args, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: bool | str | None, cert: object) -> None:
        """Keep requests from adding the public certificates to the context's own."""
        conn.cert_reqs = "CERT_REQUIRED" if self._context is None else self._context.verify_mode


def _context(provider: Provider) -> ssl.SSLContext:
    authorities = provider.ca_file or Path(DEFAULT_CA_BUNDLE_PATH)
    try:
        context = ssl.create_default_context(cafile=str(authorities))
    except ssl.SSLError:
        raise _unusable("CA certificates", authorities, "it holds no certificate in PEM") from None
    except OSError as error:
        raise _unusable("CA certificates", authorities, _reason(error)) from None
    if provider.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if provider.client_cert_file is not None:
        _load_client(context, provider.client_cert_file, provider.client_key_file or provider.client_cert_file)
    return context


def _load_client(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for what, path in (("client certificate", certificate), ("client key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise _unusable(what, path, _reason(error)) from None
    try:
        context.load_cert_chain(certificate, key, password=_encrypted)
    except _Encrypted:
        raise _unusable("client key", key, "it is encrypted; the operator has no password for it") from None
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        reason = "they do not belong together" if mismatch else "they are not a certificate and a key in PEM"
        files = f"client certificate {certificate} with client key {key}"
        raise QueryFailed("NoCredentials", f"{files} cannot be used: {reason}") from None


class _Encrypted(Exception):  # noqa: N818 - says what was found
    """OpenSSL asked for a password, which it would otherwise ask from a terminal."""


def _encrypted() -> str:
    raise _Encrypted


def _text_of(path: Path, what: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _unusable(what, path, _reason(error)) from None
    except UnicodeDecodeError:
        raise _unusable(what, path, "it is not text in UTF-8") from None
    if not text:
        raise _unusable(what, path, "it is empty")
    return text


def _unusable(what: str, path: Path, reason: str) -> QueryFailed:
    return QueryFailed("NoCredentials", f"{what} cannot be read from {path}: {reason}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
