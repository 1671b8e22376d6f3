"""Takes in what changes in the settings file while the operator runs: the providers, and nothing else.

The file is usually a mounted ConfigMap, which changes by a symbolic link that is put in the place of another. So its
content is read every few seconds and compared; nothing has to notify anybody. A file that cannot be used changes
nothing: what was good goes on, and the log and a metric say so. Readiness does not, because a replica with yesterday's
providers is of more use than none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Gauge
from pydantic import BaseModel

from canaryrollout.shell.provider_settings import ProviderSettings
from canaryrollout.shell.settings import Settings, SettingsError, camel, parse, read

PERIOD: Final = 5.0
"""Seconds between two looks at the file."""

_log = structlog.get_logger(__name__)

Providers = Mapping[str, ProviderSettings]


class Reload:
    """Watches the settings file.

    Args:
        file: The file.
        flags: What the command line says, which goes on coming before the file.
        settings: What the operator was started with.
        check: Raises `ValueError` for settings that the operator would not start with.
        apply: Takes in other providers.
        registry: Receives the metrics.
        now: Returns the time in seconds since the epoch.
    """

    def __init__(
        self,
        file: Path,
        flags: Mapping[str, Any],
        settings: Settings,
        *,
        check: Callable[[Settings], object],
        apply: Callable[[Providers], None],
        registry: CollectorRegistry,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._flags = flags
        self._running = settings
        self._check = check
        self._apply = apply
        self._providers: Providers = settings.providers
        self._seen: str | None = None
        self._problems: tuple[str, ...] = ()
        self._now = now
        self._successful = Gauge(
            "canaryrollout_config_last_reload_successful",
            "1 if the settings file could be used when it was read last.",
            registry=registry,
        )
        self._success_time = Gauge(
            "canaryrollout_config_last_reload_success_timestamp_seconds",
            "When settings were read last that could be used.",
            registry=registry,
        )
        self._succeeded()

    async def run(self) -> None:
        """Look at the file every few seconds until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                self.look()
            except Exception:  # noqa: BLE001 - whatever is wrong with a file, the operator goes on as before
                _log.exception("settings could not be taken in")
                self._successful.set(0)

    def look(self) -> None:
        """Look at the file now, and take in what has changed."""
        try:
            text = read(self._file)
        except SettingsError as error:
            self._seen = None
            self._refused(error.problems)
            return
        if text != self._seen:
            self._seen = text
            self._take(text)

    def _take(self, text: str) -> None:
        try:
            settings = parse(self._file, text, self._flags)
            self._check(settings)
        except ValueError as error:
            self._refused(error.problems if isinstance(error, SettingsError) else (str(error),))
            return
        self._succeeded()
        waiting = list(_differences((), self._running, settings))
        if waiting:
            _log.warning("settings have changed that need a restart", settings=waiting)
        if settings.providers != self._providers:
            _log.info("providers have changed", **_changes(self._providers, settings.providers))
            self._providers = settings.providers
            self._apply(settings.providers)

    def _succeeded(self) -> None:
        self._problems = ()
        self._successful.set(1)
        self._success_time.set(self._now())

    def _refused(self, problems: tuple[str, ...]) -> None:
        self._successful.set(0)
        if problems != self._problems:
            _log.error("settings cannot be used, what was good before goes on", problems=problems)
        self._problems = problems


def _differences(path: tuple[str, ...], old: BaseModel, new: BaseModel) -> Iterator[str]:
    """Return the names of settings other than providers that differ."""
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _differences((*path, name), before, after)
        elif before != after and (*path, name) != ("providers",):
            yield camel((*path, name))


def _changes(old: Providers, new: Providers) -> dict[str, list[str]]:
    """Return the names of providers that are new, gone and different, without what is empty."""
    changes = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in new.keys() & old.keys() if new[name] != old[name]),
    }
    return {what: names for what, names in changes.items() if names}
