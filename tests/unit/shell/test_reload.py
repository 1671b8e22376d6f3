import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from canaryrollout.shell import main, reload
from canaryrollout.shell.main import lease_settings
from canaryrollout.shell.provider_settings import ProviderSettings
from canaryrollout.shell.reload import Reload
from canaryrollout.shell.settings import load

FIRST = """
providers:
  default: {url: "http://first:9090"}
  thanos: {url: "https://thanos", lag: 30s}
workers: 8
leaderElection: {leaseDuration: 15s}
"""
BAD = FIRST.replace("http://first:9090", "first:9090").replace("workers: 8", "workers: 0")


class Site:
    """A mounted ConfigMap and what an operator would take in of it."""

    def __init__(self, directory: Path, flags: Mapping[str, Any] | None = None) -> None:
        self._directory = directory
        self._versions = 0
        self.file = directory / "config.yaml"
        self.write(FIRST)
        self.file.symlink_to("..data/config.yaml")
        self.registry = CollectorRegistry()
        self.applied: list[Mapping[str, ProviderSettings]] = []
        self.now = 100.0
        self.reload = Reload(
            self.file,
            flags or {},
            load(self.file, flags or {}),
            check=lease_settings,
            apply=self.applied.append,
            registry=self.registry,
            now=lambda: self.now,
        )

    def write(self, text: str | bytes) -> None:
        """Change the file as the kubelet does: a new directory, and a link to it in the place of the old one."""
        self._versions += 1
        version = self._directory / f"..version-{self._versions}"
        version.mkdir()
        (version / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        link = self._directory / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self._directory / "..data")

    def look(self) -> list[Any]:
        """Let it look once; return what it logged."""
        self.now += 5
        with capture_logs() as logged:
            self.reload.look()
        return logged

    @property
    def successful(self) -> float | None:
        return self.registry.get_sample_value("canaryrollout_config_last_reload_successful")

    @property
    def succeeded_at(self) -> float | None:
        return self.registry.get_sample_value("canaryrollout_config_last_reload_success_timestamp_seconds")


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANARYROLLOUT_WORKERS", raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_file_that_says_the_same_changes_nothing(site: Site) -> None:
    assert (site.successful, site.succeeded_at) == (1, 100), "what it was started with was good"
    assert site.look() == []
    site.write(FIRST + "# said differently\n")
    assert site.look() == []
    assert site.applied == []
    assert (site.successful, site.succeeded_at) == (1, 110)


def test_changed_providers_are_taken_in_and_told(site: Site) -> None:
    site.write("""
        providers:
          default: {url: "http://second:9090", scrapeInterval: 5s}
          mimir: {url: "https://mimir", headers: {X-Scope-OrgID: canary-tenant}}
        workers: 8
    """)
    logged = site.look()
    (applied,) = site.applied
    assert applied["default"].url == "http://second:9090"
    assert set(applied) == {"default", "mimir"}
    assert logged == [
        {
            "event": "providers have changed",
            "log_level": "info",
            "added": ["mimir"],
            "removed": ["thanos"],
            "changed": ["default"],
        }
    ]
    assert site.look() == []
    assert len(site.applied) == 1
    site.write(FIRST)
    site.look()
    assert site.applied[1]["default"].url == "http://first:9090"


def test_a_bad_file_keeps_the_last_good_and_names_each_problem_once(site: Site) -> None:
    site.write(BAD)
    (said,) = site.look()
    assert said["log_level"] == "error"
    assert said["event"] == "settings cannot be used, what was good before goes on"
    first, second = sorted(said["problems"])
    assert first.startswith("providers.default.url is 'first:9090': write it as http://")
    assert second.startswith("workers is 0: ")
    assert (site.successful, site.succeeded_at) == (0, 100)
    assert site.look() == [], "said once"
    assert site.applied == []
    site.write(FIRST)
    assert site.look() == []
    assert (site.successful, site.succeeded_at) == (1, 115)
    assert site.applied == [], "what was good is what it is again"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("providers: [", "is not YAML"),
        ("- a", "must hold a mapping"),
        (b"\xff", "is not text in UTF-8"),
        ("leaderElection: {leaseDuration: 5s}", "renewDeadline 10 s and duration 5 s"),
    ],
)
def test_whatever_is_wrong_with_a_file_is_told(site: Site, text: str | bytes, problem: str) -> None:
    site.write(text)
    (said,) = site.look()
    assert problem in said["problems"][0]
    assert site.applied == []
    assert site.successful == 0


def test_a_file_that_is_gone_is_told_once_and_taken_in_when_it_is_back(site: Site) -> None:
    site.file.unlink()
    (said,) = site.look()
    assert said["problems"] == (f"the file {site.file} cannot be read: No such file or directory",)
    assert site.look() == []
    assert site.successful == 0
    site.file.symlink_to("..data/config.yaml")
    assert site.look() == []
    assert site.successful == 1
    assert site.applied == []


def test_other_settings_wait_for_a_restart_by_name_while_providers_change(site: Site) -> None:
    site.write(
        FIRST.replace("workers: 8", "workers: 9\nlogLevel: debug\ntimings: {subsetSettle: 1s}")
        .replace("15s", "30s")
        .replace("first", "second")
    )
    waiting, changed = site.look()
    assert waiting["event"] == "settings have changed that need a restart"
    assert waiting["settings"] == ["workers", "logLevel", "leaderElection.leaseDuration", "timings.subsetSettle"]
    assert changed["changed"] == ["default"]
    assert len(site.applied) == 1
    assert site.successful == 1


def test_flags_and_variables_go_on_coming_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARYROLLOUT_PROVIDERS__THANOS__TIMEOUT", "3s")
    site = Site(tmp_path, {"providers": {"default": {"url": "http://flag"}}})
    site.write(FIRST.replace("http://first:9090", "http://second:9090").replace("30s", "40s"))
    site.look()
    (applied,) = site.applied
    assert applied["default"].url == "http://flag"
    assert applied["thanos"].timeout == timedelta(seconds=3)
    assert applied["thanos"].lag == timedelta(seconds=40)


async def test_it_looks_again_and_again_whatever_happens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    looked_often = asyncio.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("a defect")
        if looks == 3:
            looked_often.set()

    monkeypatch.setattr(reload, "PERIOD", 0.0)
    monkeypatch.setattr(site.reload, "look", look)
    with capture_logs() as logged:
        task = asyncio.create_task(site.reload.run())
        await asyncio.wait_for(looked_often.wait(), 10)
        task.cancel()
    assert [line["event"] for line in logged] == ["settings could not be taken in"]
    assert site.successful == 0


def test_who_is_not_verified_is_named_in_the_log() -> None:
    settings = load(
        None,
        {
            "providers": {
                "lax": {"url": "https://p", "insecure_skip_verify": True},
                "strict": {"url": "https://p"},
            }
        },
    )
    with capture_logs() as logged:
        main.warn_of_unverified(settings.providers)
    assert [(line["log_level"], line["provider"]) for line in logged] == [("warning", "lax")]
