import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from canaryrollout import __version__
from canaryrollout.__main__ import app
from canaryrollout.adapters.kube import ApiError
from canaryrollout.shell import commands, logs
from canaryrollout.shell.settings import Settings

runner = CliRunner()
ROOT = Path(__file__).parents[3]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the operator was started with, instead of starting it."""
    seen: list[Settings] = []

    async def note(settings: Settings, _: object) -> None:
        seen.append(settings)

    monkeypatch.setattr(commands, "run_operator", note)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    return seen


def test_flags_reach_the_operator(started: list[Settings]) -> None:
    result = runner.invoke(
        app,
        [
            "run",
            *("--namespace", "shop", "--namespace", "pay", "--workers", "8"),
            *("--prometheus-url", "http://p:9090", "--scrape-interval", "1s"),
            *("--no-leader-election", "--http-port", "0", "--log-format", "json"),
        ],
    )
    assert result.exit_code == 0, result.output
    (settings,) = started
    assert settings.namespaces == ("shop", "pay")
    assert settings.workers == 8
    assert settings.providers["default"].url == "http://p:9090"
    assert not settings.leader_election.enabled
    assert settings.http_port == 0


def test_without_flags_the_environment_decides(started: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARYROLLOUT_WORKERS", "9")
    monkeypatch.setenv("CANARYROLLOUT_LEADER_ELECTION__ENABLED", "false")
    assert runner.invoke(app, ["run"]).exit_code == 0
    assert started[0].workers == 9
    assert not started[0].leader_election.enabled


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "none"], "workers is 'none'"),
        (["--resync", "5"], "resync is '5'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--scrape-interval", "5s"], "providers.default.url is missing"),
    ],
)
def test_wrong_settings_end_with_status_2_and_say_which(
    started: list[Settings], arguments: list[str], words: str
) -> None:
    result = runner.invoke(app, ["run", *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert started == []


def test_lease_times_that_make_no_sense_are_wrong_settings(started: list[Settings], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("leaderElection: {leaseDuration: 5s}")
    result = runner.invoke(app, ["run", "--config", str(path)])
    assert result.exit_code == 2
    assert "renewDeadline 10 s and duration 5 s" in result.output


def test_an_operator_that_cannot_go_on_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ApiError(0, "no credentials for the Kubernetes API server")

    monkeypatch.setattr(commands, "run_operator", fail)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    assert runner.invoke(app, ["run"]).exit_code == 1


def test_the_help_names_flags_variables_precedence_and_exit_status() -> None:
    text = runner.invoke(app, ["run", "--help"], terminal_width=200).output
    for words in (
        "--kubeconfig",
        "CANARYROLLOUT_WORKERS",
        "CANARYROLLOUT_PROVIDERS__DEFAULT__URL",
        "flags come first, then environment variables",
        "canaryrollout run --prometheus-url",
        "Exit status",
    ):
        assert words in text


def test_every_variable_that_the_help_names_is_a_setting() -> None:
    text = runner.invoke(app, ["run", "--help"], terminal_width=500).output
    named = set(re.findall(r"CANARYROLLOUT_([A-Z_]+)", text))
    assert len(named) >= 14
    for name in named:
        assert name.lower().split("__")[0] in Settings.model_fields


def test_the_file_in_the_help_is_a_file_that_works(started: list[Settings], tmp_path: Path) -> None:
    text = runner.invoke(app, ["run", "--help"], terminal_width=200).output
    block = text[text.index("    providers:") : text.index("  Exit status")]
    path = tmp_path / "config.yaml"
    path.write_text(block)
    assert set(yaml.safe_load(block)) == {"providers", "leaderElection", "timings"}
    result = runner.invoke(app, ["run", "--config", str(path)])
    assert result.exit_code == 0, result.output
    assert set(started[0].providers) == {"default", "tenant-a"}


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    output = runner.invoke(app, ["version"]).output
    assert output.startswith(f"canaryrollout {__version__}\n")
    assert "kopf 1." in output


def test_the_definition_that_is_printed_is_the_one_that_is_shipped() -> None:
    printed = yaml.safe_load(runner.invoke(app, ["crd"]).output)
    assert printed == yaml.safe_load((ROOT / "deploy" / "crds" / "canaryrollouts.yaml").read_text())


def test_without_a_command_there_is_help() -> None:
    output = runner.invoke(app, []).output
    for command in ("run", "version", "crd"):
        assert command in output
