"""What an administrator can set, and where it is read from.

Flags come before environment variables, and both before the file named by ``--config``; what none of them says has the
default shown here. Everything is read once, at the start, and handed on: no other module looks at the environment.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from canaryrollout.api.quantities import Duration, format_duration
from canaryrollout.domain.naming import CLUSTER_DOMAIN

PREFIX: Final = "CANARYROLLOUT_"
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_INGESTION: Final = timedelta(seconds=2)


class SettingsError(ValueError):
    """Settings make no sense; the message names each with its value and what would be right."""


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least important lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Block(BaseModel):
    """A part of the settings; names that do not exist are refused rather than ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProviderSettings(Block):
    """A Prometheus that rollouts may name."""

    url: str = Field(pattern=r"^https?://\S+$")
    timeout: Duration = timedelta(seconds=10)
    scrape_interval: Duration = timedelta(seconds=15)
    lag: Duration | None = None
    concurrency: int = Field(default=4, ge=1, le=64)
    reporter: str = "source"
    version_label: str = "destination_version"
    service_label: str = "destination_service"
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    bearer_token_file: Path | None = None
    ca_file: Path | None = None

    @property
    def effective_lag(self) -> timedelta:
        """Return how far behind the present its data is: as set, or the time a sample takes to be queryable.

        The scrape interval is no part of it: a block ends with the newest sample at or before its end, and what came
        after that sample belongs to the next block.
        """
        return self.lag if self.lag is not None else _INGESTION


class LeaderElection(Block):
    """How replicas agree on the one that acts."""

    enabled: bool = True
    namespace: str = ""
    name: str = "canaryrollout"
    lease_duration: Duration = timedelta(seconds=15)
    renew_deadline: Duration = timedelta(seconds=10)
    retry_period: Duration = timedelta(seconds=2)


class Timings(Block):
    """Times between the steps of a change, see ``DomainSettings``; what is not set has its default there."""

    subset_settle: Duration | None = None
    drain: Duration | None = None
    propagation: Duration | None = None
    baseline_window: Duration | None = None
    convergence_bound: Duration | None = None
    poll: Duration | None = None
    retry: Duration | None = None
    blocked_retry: Duration | None = None


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    kubeconfig: str | None = None
    context: str | None = None
    namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    workers: int = Field(default=64, ge=1, le=1024)
    resync: Duration = timedelta(minutes=5)
    sweep: Duration = timedelta(minutes=5)
    http_host: str = ""
    http_port: int = Field(default=8080, ge=0, le=65535)
    log_format: LogFormat = LogFormat.AUTO
    log_level: LogLevel = LogLevel.INFO
    cluster_domain: str = CLUSTER_DOMAIN
    leader_election: LeaderElection = LeaderElection()
    providers: dict[str, ProviderSettings] = Field(default_factory=dict)
    timings: Timings = Timings()

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read ``shop,payments`` as two namespaces."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("resync", "sweep")
    @classmethod
    def _at_least_a_second(cls, value: timedelta) -> timedelta:
        if value < timedelta(seconds=1):
            raise ValueError(f"{format_duration(value)} is too short; write 1s or more, 5m is usual")
        return value


def load(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Read the settings from flags, the environment and a file.

    Args:
        file: YAML file, or ``None``.
        flags: What the command line says, by field name, nested blocks as mappings.

    Returns:
        The settings.

    Raises:
        SettingsError: If they make no sense.
    """
    content = _read_file(file) if file is not None else {}

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=content)

    try:
        return Loaded(**flags)
    except ValidationError as error:
        raise SettingsError("\n".join(_explained(details) for details in error.errors(include_url=False))) from None
    except SourceError as error:
        raise SettingsError(f"{error}; objects in environment variables are written as JSON") from None


def this_replica() -> str:
    """Return a name for this process that no other has: the Pod's or machine's, and something random."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def own_namespace() -> str:
    """Return the namespace this process runs in, as far as it can be known; ``default`` elsewhere."""
    if namespace := os.environ.get("POD_NAMESPACE"):
        return namespace
    return _SERVICE_ACCOUNT.read_text().strip() if _SERVICE_ACCOUNT.exists() else "default"


def in_a_pod() -> bool:
    """Return whether this process runs in a Pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def variable(*path: str) -> str:
    """Return the environment variable of a setting, given its field names from the outside in."""
    return PREFIX + "__".join(path).upper()


_FREE_KEYS: Final = ("providers", "headers")
"""Mappings whose keys are names that the administrator chose."""


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise SettingsError(f"the file {file} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"the file {file} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"the file {file} must hold a mapping, such as 'workers: 64'")
    snaked: dict[str, Any] = _snake(content)
    return snaked


def _snake(value: Any, *, free: bool = False) -> Any:
    """Rewrite ``leaseDuration`` as ``lease_duration`` in all keys but those that are names."""
    if not isinstance(value, dict):
        return value
    return {
        (key if free else re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", str(key)).lower()): _snake(
            item, free=key in _FREE_KEYS
        )
        for key, item in value.items()
    }


def _explained(details: Any) -> str:
    path = ".".join(str(part) for part in details["loc"])
    camel = re.sub(r"_([a-z])", lambda match: match[1].upper(), path)
    if details["type"] == "extra_forbidden":
        return f"{camel} is not a setting; see `canaryrollout run --help`"
    if details["type"] == "missing":
        return f"{camel} is missing: it is required"
    problem = str(details.get("ctx", {}).get("error") or details["msg"])
    problem = problem[:1].lower() + problem[1:] if problem[:2].istitle() else problem
    return f"{camel} is {details['input']!r}: {problem} (environment variable {variable(*map(str, details['loc']))})"
