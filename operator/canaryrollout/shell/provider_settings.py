"""What an administrator can set about a Prometheus, and what of it makes no sense.

Everything here is checked when it is read, because a mistake that shows only in the first query of the night's first
rollout has nobody to correct it. What lies in files is not looked at: files may come later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from canaryrollout.adapters.prometheus_provider import RESERVED_PARAMETERS, BasicAuth, CustomQueries, Provider
from canaryrollout.api.quantities import Duration, format_duration

_INGESTION: Final = timedelta(seconds=2)
_LONGEST: Final = timedelta(minutes=10)
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_OWN_HEADERS: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})
_NAMESPACES: Final = re.compile(r"[a-z0-9*]([a-z0-9*-]*[a-z0-9*])?")


class Block(BaseModel):
    """A part of the settings; names that do not exist are refused rather than ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_text(value: object) -> object:
    """Read YAML's ``true`` and ``3600`` as a URL spells them."""
    if isinstance(value, list | tuple):
        return tuple(_as_text(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


Parameter = Annotated[str | tuple[str, ...], BeforeValidator(_as_text)]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class BasicAuthSettings(Block):
    """Name and password of basic authentication."""

    username: str = ""
    username_file: Path | None = None
    password_file: Path

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if bool(self.username) == (self.username_file is not None):
            raise ValueError("set one of username and usernameFile, and not both")
        if ":" in self.username:
            raise ValueError("username must not hold a colon, which ends a name in basic authentication")
        return self


class ProviderSettings(Block):
    """A Prometheus that rollouts may name."""

    url: str
    timeout: Duration = timedelta(seconds=10)
    scrape_interval: Duration = timedelta(seconds=15)
    lag: Duration | None = None
    concurrency: int = Field(default=4, ge=1, le=64)
    reporter: str = Field(default="source", min_length=1)
    version_label: LabelName = "destination_version"
    service_label: LabelName = "destination_service"
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    header_files: dict[str, Path] = Field(default_factory=dict)
    query_parameters: dict[str, Parameter] = Field(default_factory=dict, repr=False)
    bearer_token_file: Path | None = None
    basic_auth: BasicAuthSettings | None = None
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    insecure_skip_verify: bool = False
    namespaces: tuple[str, ...] = ()
    custom_queries: CustomQueries = CustomQueries.ALLOWED
    namespace_label: LabelName = "namespace"

    @property
    def effective_lag(self) -> timedelta:
        """Return how far behind the present its data is: as set, or the time a sample takes to be queryable.

        The scrape interval is no part of it: a block ends with the newest sample at or before its end, and what came
        after that sample belongs to the next block.
        """
        return self.lag if self.lag is not None else _INGESTION

    def provider(self, name: str) -> Provider:
        """Return the provider of this name."""
        values: dict[str, Any] = {field: getattr(self, field) for field in type(self).model_fields}
        auth = self.basic_auth
        values["basic_auth"] = (
            None if auth is None else BasicAuth(auth.password_file, auth.username, auth.username_file)
        )
        values["lag"] = self.effective_lag
        return Provider(name=name, **values)

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*(\?\S*)?(#\S*)?", value) is None:
            raise ValueError("write it as http://prometheus.istio-system:9090, with http or https")
        parts = urlsplit(value)
        if "@" in parts.netloc:
            raise ValueError(
                "it holds credentials, which would show in logs; put them into basicAuth: {username, passwordFile}"
            )
        if parts.query or parts.fragment:
            raise ValueError("it ends in parameters; put them into queryParameters")
        if parts.path.rstrip("/").endswith("/api/v1"):
            raise ValueError("leave /api/v1 out, it is added")
        return value

    @field_validator("timeout", "scrape_interval")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if not timedelta(milliseconds=10) <= value <= _LONGEST:
            raise ValueError(f"write something between 10ms and {format_duration(_LONGEST)}")
        return value

    @field_validator("lag")
    @classmethod
    def _bounded(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value > _LONGEST:
            raise ValueError(f"no verdict can wait that long; write {format_duration(_LONGEST)} or less")
        return value

    @field_validator("namespaces")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if _NAMESPACES.fullmatch(pattern) is None:
                raise ValueError(f"{pattern!r} is no name of a namespace; '*' stands for any letters, as in 'team-*'")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        problems = [*self._credential_problems(), *self._tls_problems(), *self._header_problems()]
        problems += [
            f"queryParameters.{name} is what the operator sets itself; leave it out"
            for name in self.query_parameters
            if name in RESERVED_PARAMETERS
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _credential_problems(self) -> Iterator[str]:
        ways = {
            "bearerTokenFile": self.bearer_token_file is not None,
            "basicAuth": self.basic_auth is not None,
            "the header Authorization": "authorization" in {name.lower() for name in self._header_names()},
        }
        used = [way for way, is_used in ways.items() if is_used]
        if len(used) > 1:
            yield f"{' and '.join(used)} are set, but a request carries only one of them; leave one"

    def _tls_problems(self) -> Iterator[str]:
        tls = {
            "caFile": self.ca_file is not None,
            "clientCertFile": self.client_cert_file is not None,
            "clientKeyFile": self.client_key_file is not None,
            "insecureSkipVerify": self.insecure_skip_verify,
        }
        used = [name for name, is_used in tls.items() if is_used]
        if used and not self.url.startswith("https://"):
            yield f"{' and '.join(used)} would have no effect, because url begins with http://; write https://"
        if tls["clientCertFile"] and not tls["clientKeyFile"]:
            yield "clientCertFile has no clientKeyFile; set it, to the same file where that holds both"
        if tls["clientKeyFile"] and not tls["clientCertFile"]:
            yield "clientKeyFile has no clientCertFile; set it"
        if tls["caFile"] and tls["insecureSkipVerify"]:
            yield "insecureSkipVerify accepts whatever certificate is shown, so caFile would not be used; leave one"

    def _header_problems(self) -> Iterator[str]:
        seen: set[str] = set()
        for name in self._header_names():
            if _HEADER_NAME.fullmatch(name) is None:
                yield f"{name!r} is no name of a header"
            if name.lower() in _OWN_HEADERS:
                yield f"the header {name} is what the operator sets itself; leave it out"
            if name.lower() in seen:
                yield f"the header {name} is set twice; leave one"
            seen.add(name.lower())
        for name, value in self.headers.items():
            if _HEADER_VALUE.fullmatch(value) is None:
                yield f"headers.{name} has to be one line of printable ASCII"

    def _header_names(self) -> tuple[str, ...]:
        return (*self.headers, *self.header_files)


def without_secrets(url: str) -> str:
    """Return a URL, or what was written for one, without what stands before the host and without parameters."""
    shown = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?***", shown, flags=re.DOTALL)
