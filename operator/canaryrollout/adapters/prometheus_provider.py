"""What the administrator says about one Prometheus: where it is, how it is asked, and who may ask it.

A CanaryRollout names a provider and nothing else, so everything here is trusted; it is also where secrets would leak
from, so secrets are files, and what may hold one in spite of that is never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from canaryrollout.adapters.prometheus_queries import Labels

RESERVED_PARAMETERS: Final = frozenset({"query", "time", "start", "end", "step", "timeout"})
"""Parameters of a query that the operator sets itself."""


class CustomQueries(StrEnum):
    """Whether rollouts may send queries of their own to a provider.

    Attributes:
        ALLOWED: As they are.
        FORBIDDEN: Not at all.
        NAMESPACE_ENFORCED: With a matcher on the rollout's own namespace in every selector.
    """

    ALLOWED = "Allowed"
    FORBIDDEN = "Forbidden"
    NAMESPACE_ENFORCED = "NamespaceEnforced"


class QueryFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A query that was not answered.

    Attributes:
        outcome: ``Timeout``, ``Unreachable``, ``Refused`` (credentials), ``NoCredentials`` (a file with credentials or
            certificates cannot be used, nothing was sent), ``BadQuery`` (it can never succeed), ``ServerError``,
            ``BadAnswer`` or ``ClocksApart`` (its evidence would be of other times than ours).
        retry_after: For how many seconds the server asked to be left alone; ``None`` where it did not.
    """

    def __init__(self, outcome: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """A user's name and the file with the password; the name may be in a file, too."""

    password_file: Path
    username: str = ""
    username_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """A Prometheus that the administrator defined.

    All files are read anew when they are needed, because Secrets and projected tokens rotate.

    Attributes:
        name: What ``analysis.provider`` calls it.
        url: Base URL, without ``/api/v1``.
        timeout: How long a query may take on the server.
        lag: How long after a block's end its counts can be read.
        scrape_interval: How often it scrapes the proxies.
        concurrency: How many queries it is asked at once.
        reporter: Value of the label ``reporter`` to count by: ``source`` also sees requests that reached no workload.
        version_label: Label of its Istio metrics that holds the version of the workload that answered.
        service_label: Label that holds the fully qualified host.
        headers: Headers of every request, such as a tenant.
        header_files: Headers whose values are the contents of files.
        query_parameters: Parameters of every query, such as ``dedup``.
        bearer_token_file: File with a token.
        basic_auth: Name and password.
        ca_file: Certificates (PEM) to trust instead of the public ones.
        client_cert_file: Certificate (PEM) to show, with intermediates.
        client_key_file: Its private key (PEM, not encrypted); ``None`` where the certificate's file holds it, too.
        insecure_skip_verify: Whether any certificate is accepted, whoever answers.
        namespaces: Namespaces whose rollouts may use it, ``*`` for any letters; empty for all.
        custom_queries: Whether rollouts may send queries of their own.
        namespace_label: Label that enforced matchers are put on.
    """

    name: str
    url: str
    timeout: timedelta = timedelta(seconds=10)
    lag: timedelta = timedelta(seconds=17)
    scrape_interval: timedelta = timedelta(seconds=15)
    concurrency: int = 4
    reporter: str = "source"
    version_label: str = "destination_version"
    service_label: str = "destination_service"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    header_files: Mapping[str, Path] = field(default_factory=dict)
    query_parameters: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict, repr=False)
    bearer_token_file: Path | None = None
    basic_auth: BasicAuth | None = None
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    insecure_skip_verify: bool = False
    namespaces: tuple[str, ...] = ()
    custom_queries: CustomQueries = CustomQueries.ALLOWED
    namespace_label: str = "namespace"

    @property
    def labels(self) -> Labels:
        """Return how its Istio metrics are labeled."""
        return Labels(reporter=self.reporter, version=self.version_label, service=self.service_label)

    @property
    def credentials(self) -> tuple[str, ...]:
        """Return the kinds of credentials it is asked with, for people; empty where there are none."""
        kinds = {
            "client certificate": self.client_cert_file is not None,
            "bearer token": self.bearer_token_file is not None,
            "basic auth": self.basic_auth is not None,
            "headers": bool(self.headers or self.header_files),
        }
        return tuple(kind for kind, used in kinds.items() if used)

    def serves(self, namespace: str) -> bool:
        """Return whether rollouts in a namespace may use it."""
        return not self.namespaces or any(fnmatchcase(namespace, pattern) for pattern in self.namespaces)
