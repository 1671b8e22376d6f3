"""What an administrator can set, and where it is read from.

Flags come before environment variables, and both before the file named by ``--config``; what none of them says has the
default shown here. What was read is handed on: no other module looks at the environment. Only the providers can change
while the operator runs, by changing the file.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from canaryrollout.api.quantities import Duration, format_duration
from canaryrollout.domain.naming import CLUSTER_DOMAIN
from canaryrollout.shell.provider_settings import Block, ProviderSettings, without_secrets

PREFIX: Final = "CANARYROLLOUT_"
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class SettingsError(ValueError):
    """Settings make no sense; the message names each with its value and what would be right.

    Attributes:
        problems: One line for each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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
    release: Duration | None = None
    stable_settle: Duration | None = None


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
    return parse(file, read(file) if file is not None else "", flags)


def read(file: Path) -> str:
    """Return the text of the file with settings.

    Raises:
        SettingsError: If it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"the file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the file {file} is not text in UTF-8") from None


def parse(file: Path | None, text: str, flags: Mapping[str, Any]) -> Settings:
    """Make settings of flags, the environment and the text of a file, see `load`.

    Raises:
        SettingsError: If they make no sense, with one line for each problem; no line holds a secret.
    """
    content = _parse_file(file, text)

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
        raise SettingsError(*(_explained(details) for details in error.errors(include_url=False))) from None
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


_FREE_KEYS: Final = ("providers", "headers", "header_files", "query_parameters")
"""Mappings whose keys are names that the administrator chose."""
_HIDDEN: Final = frozenset({"headers", "query_parameters", "basic_auth"})
"""Settings whose values are not shown, because they may be secrets."""
_INSTEAD: Final = {
    "bearer_token": "bearerTokenFile",
    "token": "bearerTokenFile",
    "password": "basicAuth.passwordFile",
    "username": "basicAuth.username",
    "client_key": "clientKeyFile",
    "client_cert": "clientCertFile",
    "ca": "caFile",
}
"""What may have been meant by a setting that does not exist: secrets are not written into settings but named."""


def _parse_file(file: Path | None, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:  # its own words would quote the line, and with it a secret
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise SettingsError(f"the file {file} is not YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, RecursionError):
        raise SettingsError(f"the file {file} is not YAML") from None
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
    snaked = {}
    for key, item in value.items():
        name = str(key) if free else re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", str(key)).lower()
        snaked[name] = _snake(item, free=not free and name in _FREE_KEYS)
    return snaked


def camel(path: Iterable[str | int]) -> str:
    """Spell the path of a setting as in the file; names that the administrator chose stay as they are."""
    spelled: list[str] = []
    free = False
    for part in map(str, path):
        spelled.append(part if free else re.sub(r"_([a-z])", lambda match: match[1].upper(), part))
        free = not free and part in _FREE_KEYS
    return ".".join(spelled)


def _explained(details: Any) -> str:
    path = [str(part) for part in details["loc"]]
    name = camel(path)
    if details["type"] == "extra_forbidden":
        meant = _INSTEAD.get(path[-1]) if path[0] == "providers" else None
        hint = f"write {meant}" if meant else "see `canaryrollout run --help`"
        return f"{name} is not a setting; {hint}"
    if details["type"] == "missing":
        return f"{name} is missing: it is required"
    problem = str(details.get("ctx", {}).get("error") or details["msg"])
    problem = problem[:1].lower() + problem[1:] if problem[:2].istitle() else problem
    variable_ = f"(environment variable {variable(*path)})"
    return f"{name}{_shown(path, details['input'])}: {problem} {variable_}"


def _shown(path: list[str], value: object) -> str:
    """Return the words that repeat what was set; none where that may be a secret, or hold one."""
    of_a_provider = path[0] == "providers"
    if isinstance(value, dict | list) or (of_a_provider and (len(path) < 3 or not _HIDDEN.isdisjoint(path[2:]))):
        return ""
    if of_a_provider and path[2] == "url" and isinstance(value, str):
        value = without_secrets(value)
    return f" is {value!r}"
