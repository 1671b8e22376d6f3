"""What ``canaryrollout backtest`` answers, on a Prometheus whose past is scripted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from canaryrollout.__main__ import app
from canaryrollout.cli import backtest as command
from canaryrollout.cli.past import AHEAD, NoAnswer, PastProvider
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import Block, Evidence, EvidenceRequest, Preflight, PreflightRequest
from tests.meshstory import Counter, Mesh
from tests.prometheusstub import Stub, failure, prometheus_stub, result

runner = CliRunner()
BEGIN = datetime(2026, 1, 31, 22, 0, tzinfo=UTC)
BREACH = BEGIN + timedelta(minutes=3)


@dataclass
class Night(Mesh):
    """The same, and failures of v2 beside its ten requests a block."""

    failing: Counter = field(default=lambda host, end: 0.0)

    def _counted(self, host: str) -> Iterable[tuple[dict[str, str], float | Counter]]:
        yield from super()._counted(host)
        labels = {"destination_service": host, "response_code": "500", "kind": "known", "destination_version": "v2"}
        yield labels, self.failing


def from_the_breach_on(host: str, end: float) -> float:
    return 5.0 if end > BREACH.timestamp() else 0.0


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Prometheus as it was on a healthy night."""
    monkeypatch.setattr(command, "configure", lambda *_: None)
    with prometheus_stub() as stub:
        stub.reply = Night()
        yield stub


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(directory: Path, **spec: Any) -> Path:
    analysis = {"interval": "10s", "minRequests": 50, "errorRate": {"max": "5%"}} | spec.pop("analysis", {})
    base = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
        "steps": [{"weight": 10}, {"weight": 50}, {"weight": 100}],
        "hold": "2m",
        "analysis": analysis,
    }
    file = directory / "rollout.yaml"
    metadata = {"name": "reviews", "namespace": "shop"}
    file.write_text(yaml.safe_dump({"kind": "CanaryRollout", "metadata": metadata, "spec": base | spec}))
    return file


def backtest(manifest: Path, prometheus: Stub, *arguments: str, minutes: int = 30) -> Result:
    window = ("--from", BEGIN.isoformat(), "--to", (BEGIN + timedelta(minutes=minutes)).isoformat())
    asked = () if "--provider-config" in arguments else ("--prometheus", prometheus.url)
    return runner.invoke(app, ["backtest", "-f", str(manifest), "--stable", "v1", *window, *asked, *arguments])


def answer(manifest: Path, prometheus: Stub, *arguments: str, minutes: int = 30) -> dict[str, Any]:
    result = backtest(manifest, prometheus, *arguments, "-o", "json", minutes=minutes)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_healthy_night(manifest: Path, prometheus: Stub) -> None:
    found = answer(manifest, prometheus)
    assert (found["outcome"], found["reason"]) == ("Promoted", "Promoted")
    assert found["window"] == {"from": "2026-01-31T22:00:00.000Z", "to": "2026-01-31T22:30:00.000Z"}
    assert found["rollout"] == {"name": "reviews", "namespace": "shop", "stable": "v1", "canary": "v2"}
    assert [(step["weight"], step["canaryShare"], step["verdict"]) for step in found["steps"]] == [
        (10, 0.1, "Pass"),
        (50, 0.1, "Pass"),
        (100, 0.1, "Pass"),
    ]
    assert len(found["notes"]) == 2
    assert "5.0 times as slowly" in found["notes"][0]


def test_few_queries_for_many_blocks(manifest: Path, prometheus: Stub) -> None:
    """A window of half an hour has 180 blocks; they come by the stretch."""
    answer(manifest, prometheus)
    assert len(prometheus.asked) < 30


def test_a_bad_night(manifest: Path, prometheus: Stub) -> None:
    prometheus.reply = Night(failing=from_the_breach_on)
    found = answer(manifest, prometheus)
    assert (found["outcome"], found["reason"], found["weight"]) == ("TakenBack", "GateFailed", 50)
    assert BREACH < datetime.fromisoformat(found["at"]) < BREACH + timedelta(minutes=1)
    assert found["message"].startswith("at 50 %: ")
    assert found["verdict"].startswith("The operator would have taken v2 back at 2026-01-31 22:0")
    last = found["checks"][-1]
    assert (last["verdict"], last["weight"]) == ("Fail", 50)
    assert {gate["name"]: gate["verdict"] for gate in last["gates"]}["errorRate"] == "Fail"
    assert [entry["reason"] for entry in found["history"]][-1] == "GateFailed"
    times = [check["time"] for check in found["checks"]]
    assert times == sorted(times)


def test_tables_for_people(manifest: Path, prometheus: Stub, tmp_path: Path) -> None:
    prometheus.reply = Night(failing=from_the_breach_on)
    picture = tmp_path / "night.png"
    result = backtest(manifest, prometheus, "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for words in (
        "shop/reviews, v1 to v2, 2026-01-31 22:00:00 to 2026-01-31 22:30:00 UTC (30m)",
        "GateFailed",
        "real share",
    ):
        assert words in result.stdout
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [616, 572]


def test_a_window_that_ends_too_early(manifest: Path, prometheus: Stub) -> None:
    found = answer(manifest, prometheus, minutes=1)
    assert (found["outcome"], found["at"], found["weight"]) == ("Unfinished", None, 10)
    assert found["verdict"].startswith("The operator would not be done with v2 at 22:01:00 UTC, when the window ends: ")


def test_a_stable_version_that_prometheus_does_not_know(manifest: Path, prometheus: Stub) -> None:
    result = runner.invoke(
        app,
        [
            "backtest",
            "-f",
            str(manifest),
            "--stable",
            "v0",
            "--prometheus",
            prometheus.url,
            "--from",
            "-5m",
            "-o",
            "json",
        ],
    )
    found = json.loads(result.stdout)
    assert (found["outcome"], found["weight"], found["reason"]) == ("Unfinished", 0, "MetricsLabels")
    assert "none for the stable version 'v0'" in found["message"]


def test_metrics_of_ones_own_are_asked_for_every_block(tmp_path: Path, prometheus: Stub) -> None:
    metrics = [{"name": "queue", "query": 'queue{version="$canary"}', "max": "5"}]
    manifest = written(tmp_path, analysis={"metrics": metrics})

    def queue(asked: Any) -> Any:
        start, end = float(asked.form.get("start", 0)), float(asked.form.get("end", 0))
        at = [start + 10 * k for k in range(round((end - start) / 10) + 1)]
        if "time" in asked.form:
            return result("vector", [{"metric": {}, "value": [float(asked.form["time"]), "1"]}])
        return result("matrix", [{"metric": {}, "values": [[t, "9" if t > BREACH.timestamp() else "1"] for t in at]}])

    prometheus.reply = Night(own=queue)
    found = answer(manifest, prometheus)
    assert (found["outcome"], found["weight"]) == ("TakenBack", 50)
    assert "queue" in found["message"]


def test_a_provider_that_does_not_answer(manifest: Path, prometheus: Stub) -> None:
    prometheus.reply = lambda _: failure(503, "unavailable", "starting up")
    result = backtest(manifest, prometheus)
    assert result.exit_code == 1
    assert result.stderr.startswith("provider default does not answer: ")
    assert "starting up" in result.stderr
    assert result.stdout == ""


def test_the_operators_own_settings(manifest: Path, prometheus: Stub, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    provider = {"url": prometheus.url, "scrapeInterval": "5s", "headers": {"X-Scope-OrgID": "shop"}}
    settings.write_text(yaml.safe_dump({"providers": {"default": provider}, "timings": {"subsetSettle": "30s"}}))
    found = answer(manifest, prometheus, "--provider-config", str(settings))
    assert found["provider"] == {"name": "default", "url": prometheus.url}
    assert all(asked.headers["X-Scope-OrgID"] == "shop" for asked in prometheus.asked)
    first = next(entry for entry in found["history"] if entry["reason"] == "WeightSet")
    assert first["time"] > "2026-01-31T22:00:30"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--canary", "v1"), "--stable and --canary are both v1: name two versions"),
        (("--from", "2026-02-01T22:00:00Z"), "the window has to begin before it ends"),
        (("--to", "2126-02-01T22:00:00Z"), "which is in the future"),
        (("--from", "yesterday"), "'yesterday' is no time"),
        (("--prometheus", "localhost:9090"), "providers.default.url is 'localhost:9090': write it as http://"),
        (("--provider-config", "no-such-file.yaml"), "the file no-such-file.yaml cannot be read"),
        (("--scrape-interval", "fast"), "providers.default.scrapeInterval is 'fast': must be a duration"),
    ],
)
def test_wrong_questions(manifest: Path, prometheus: Stub, arguments: tuple[str, ...], words: str) -> None:
    result = backtest(manifest, prometheus, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert prometheus.asked == []


def test_a_provider_that_is_not_defined(tmp_path: Path, prometheus: Stub) -> None:
    manifest = written(tmp_path, analysis={"provider": "tenant-a"})
    result = runner.invoke(app, ["backtest", "-f", str(manifest), "--stable", "v1"])
    assert result.exit_code == 2
    assert "spec.analysis.provider is tenant-a, which is not defined (defined: none)" in result.stderr


def test_help_has_examples_and_exit_statuses() -> None:
    result = runner.invoke(app, ["backtest", "--help"])
    assert result.exit_code == 0
    assert "canaryrollout backtest -f rollout.yaml --stable v1 --canary v2" in result.stdout
    assert "its weights are imagined" in result.stdout
    assert "Exit status:" in result.stdout


# --- nothing is known before its time ---------------------------------------------------------------------------------


class Scripted:
    """A source that answers at once with everything up to the time that it is asked for."""

    def __init__(self, lag: timedelta) -> None:
        self.lag = lag
        self.asked: list[datetime] = []

    def latest(self, request: EvidenceRequest, now: datetime, wake: Callable[[], None]) -> Evidence | None:
        self.asked.append(now)
        ends = request.ends(request.start, now - self.lag)
        return Evidence(request, tuple(Block(end - request.interval, end) for end in ends))

    def preflight(self, request: PreflightRequest, now: datetime, wake: Callable[[], None]) -> Preflight | None:
        raise AssertionError("not asked")


async def test_the_provider_shows_what_could_have_been_known() -> None:
    lag, interval = timedelta(seconds=5), timedelta(seconds=10)
    source = Scripted(lag)
    past = PastProvider(source, lag, until=BEGIN + timedelta(hours=1))
    request = EvidenceRequest("p", "shop", "reviews", "v1", "v2", "version", BEGIN, interval)
    for seconds in range(0, 900, 7):
        now = BEGIN + timedelta(seconds=seconds)
        evidence = (await past.answer(Needs(evidence=request), now)).evidence
        ends = [block.end for block in evidence.blocks] if evidence is not None else []
        assert ends == list(request.ends(BEGIN, now - lag))
    assert len(source.asked) == -(-900 // (AHEAD * 10))
    assert max(source.asked) <= BEGIN + timedelta(hours=1)


async def test_a_source_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Scripted):
        def latest(self, request: EvidenceRequest, now: datetime, wake: Callable[[], None]) -> Evidence | None:
            return None

    monkeypatch.setattr("canaryrollout.cli.past.PATIENCE", 0.01)
    past = PastProvider(Silent(timedelta()), timedelta(), until=BEGIN + timedelta(hours=1))
    request = EvidenceRequest("p", "shop", "reviews", "v1", "v2", "version", BEGIN, timedelta(seconds=10))
    with pytest.raises(NoAnswer, match=r"no answer within 0\.01 s"):
        await past.answer(Needs(evidence=request), BEGIN + timedelta(minutes=1))
