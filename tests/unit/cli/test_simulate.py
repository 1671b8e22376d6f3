"""What ``canaryrollout simulate`` answers, as a user asks it; seeds make every figure repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from canaryrollout.__main__ import app
from canaryrollout.cli.simulate import slow

runner = CliRunner()
RUNS = 40


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A rollout whose limits leave room for chance."""
    return written(tmp_path)


def written(directory: Path, **spec: Any) -> Path:
    analysis = {"interval": "10s", "minRequests": 200, "errorRate": {"max": "2%"}} | spec.pop("analysis", {})
    base = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
        "steps": [{"weight": 10}, {"weight": 50}, {"weight": 100}],
        "hold": "1m",
        "analysis": analysis,
    }
    file = directory / "rollout.yaml"
    metadata = {"name": "reviews", "namespace": "shop"}
    file.write_text(yaml.safe_dump({"kind": "CanaryRollout", "metadata": metadata, "spec": base | spec}))
    return file


def simulate(manifest: Path, *arguments: str, runs: int = RUNS) -> Result:
    traffic = () if "--rps" in arguments else ("--rps", "50")
    stable = () if "--stable-errors" in arguments else ("--stable-errors", "0.5%")
    return runner.invoke(
        app, ["simulate", "-f", str(manifest), *stable, *traffic, "--runs", str(runs), "--jobs", "1", *arguments]
    )


def answer(manifest: Path, *arguments: str, runs: int = RUNS) -> dict[str, Any]:
    result = simulate(manifest, *arguments, "-o", "json", runs=runs)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_healthy_canary_is_promoted_and_bad_ones_are_taken_back(manifest: Path) -> None:
    found = answer(manifest)
    healthy, double, fourfold, tenfold = found["cases"]
    assert [case["canary"]["errors"] for case in found["cases"]] == ["0.5%", "1%", "2%", "5%"]
    assert [case["healthy"] for case in found["cases"]] == [True, False, False, False]
    assert healthy["promoted"]["probability"] >= 0.9
    assert tenfold["takenBack"]["probability"] >= 0.98
    assert healthy["promoted"]["probability"] >= double["promoted"]["probability"]
    assert fourfold["takenBack"]["probability"] >= double["takenBack"]["probability"]
    assert tenfold["secondsToDetect"]["median"] < 120
    assert (healthy["requestsHurt"]["median"], healthy["requestsHurt"]["p90"]) == (0, 0)
    hurt = tenfold["requestsHurt"]["median"]
    assert 0 < hurt <= 50 * 0.05 * tenfold["secondsToDetect"]["p90"]
    assert healthy["secondsToPromotion"]["median"] >= 180


def test_the_document_keeps_its_shape(manifest: Path) -> None:
    found = answer(manifest, "--canary-errors", "5%", runs=3)
    assert list(found) == ["rollout", "traffic", "runs", "seed", "cases", "warnings", "verdict"]
    assert found["rollout"]["steps"][0] == {
        "weight": 10,
        "holdSeconds": 60.0,
        "canaryRequestsPerSecond": 5.0,
        "minRequestsAfterSeconds": 40.0,
    }
    assert found["traffic"] == {
        "requestsPerSecond": 50.0,
        "stable": {"errors": "0.5%", "slow": "0%"},
        "bursts": 0.0,
        "lagSeconds": 2.0,
    }
    assert len(found["cases"]) == 2
    case = found["cases"][1]
    assert list(case) == [
        *("healthy", "canary", "promoted", "takenBack", "outOfTime", "secondsToDetect", "takenBackAtWeight"),
        *("takenBackByGate", "requestsHurt", "requestsSlowed", "secondsToPromotion", "steps"),
    ]
    assert list(case["takenBack"]) == ["runs", "probability", "low", "high"]
    ways = [case[way]["runs"] for way in ("promoted", "takenBack", "outOfTime")]
    assert sum(ways) == found["runs"] == 3
    assert case["takenBack"]["low"] <= case["takenBack"]["probability"] <= case["takenBack"]["high"]
    assert found["verdict"].startswith("At 50 requests/s a healthy canary is ")


def test_the_seed_decides_and_the_number_of_processes_does_not(manifest: Path) -> None:
    again = ("--canary-errors", "3%", "--seed", "5")
    alone, together, other = (
        answer(manifest, *again, runs=24),
        answer(manifest, *again, "--jobs", "2", runs=24),
        answer(manifest, "--canary-errors", "3%", "--seed", "6", runs=24),
    )
    assert alone == together
    assert alone["cases"] != other["cases"]


def test_slow_canaries_need_a_latency_gate(tmp_path: Path) -> None:
    manifest = written(tmp_path, analysis={"latency": {"threshold": "500ms", "maxSlow": "5%"}})
    found = answer(manifest, "--stable-slow", "1%", "--canary-slow", "20%", runs=20)
    healthy, slow = found["cases"]
    assert slow["canary"] == {"errors": "0.5%", "slow": "20%"}
    assert slow["takenBack"]["runs"] == 20
    assert "latency" in slow["takenBackByGate"]
    assert slow["requestsSlowed"]["median"] > 0 == slow["requestsHurt"]["median"]
    assert healthy["requestsSlowed"]["median"] == 0

    refused = simulate(written(tmp_path), "--stable-slow", "1%")
    assert refused.exit_code == 2
    assert (
        "--stable-slow and --canary-slow are about spec.analysis.latency, which shop/reviews does not" in refused.stderr
    )


def test_bursts_make_it_harder_to_tell(tmp_path: Path) -> None:
    manifest = written(tmp_path, analysis={"mode": "Threshold", "errorRate": {"max": "2%"}})
    calm, bursty = (answer(manifest, "--bursts", bursts, runs=40)["cases"][0] for bursts in ("0", "3"))
    assert bursty["takenBack"]["runs"] > calm["takenBack"]["runs"]


def test_too_little_traffic_is_said_beforehand(tmp_path: Path) -> None:
    manifest = written(tmp_path, progressDeadline="5m")
    found = answer(manifest, "--rps", "2", "--canary-errors", "0.5%", runs=10)
    (case,) = found["cases"]
    assert case["outOfTime"]["runs"] == 10
    assert found["warnings"][0].startswith(
        "step 1 (weight 10) sees 0.2 requests/s: minRequests 200 takes 16m40s, and it can never pass"
    )
    assert any("does not pass in time in 100 % of rollouts" in warning for warning in found["warnings"])
    assert "does not pass in time" in found["verdict"]


def test_holding_at_the_deadline_ends_a_run_too(tmp_path: Path) -> None:
    manifest = written(tmp_path, progressDeadline="2m", onDeadline="Hold")
    (case,) = answer(manifest, "--rps", "2", "--canary-errors", "0.5%", runs=3)["cases"]
    assert case["outOfTime"]["runs"] == 3


def test_what_is_not_simulated_is_said(tmp_path: Path) -> None:
    steps = [{"weight": 50, "approval": "Required"}, {"weight": 100}]
    metrics = [{"name": "checkouts", "query": "vector(1)", "max": "5"}, {"name": "ratio", "query": "x", "min": "2"}]
    manifest = written(tmp_path, steps=steps, paused=True, hold="10s", analysis={"metrics": metrics})
    found = answer(manifest, "--canary-errors", "0.5%", runs=20)
    (case,) = found["cases"]
    assert case["promoted"]["runs"] >= 18
    said = "\n".join(found["warnings"])
    assert "metrics of your own are taken to pass: checkouts, ratio" in said
    assert "approvals are given at once" in said
    assert "spec.paused is true and was ignored" in said
    assert "the hold at weight 50, 100 is shorter than one interval and the provider's lag (12s)" in said


def test_a_table_for_people_without_color_in_a_pipe(manifest: Path) -> None:
    arguments = ["-f", str(manifest), "--stable-errors", "0.5%", "--rps", "50", "--runs", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "canaryrollout", "simulate", *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for words in ("healthy canary", "promoted after", "requests hurt", "minRequests after", "At 50 requests/s"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stable-errors", "0.5"), "'0.5' must be a percentage, such as 1%, 0.5% or 150%"),
        (("--stable-errors", "150%"), "150% is not between 0% and 100%"),
        (("--stable-errors", "0%"), "say how bad the canary is with --canary-errors"),
        (("--rps", "0"), "'--rps': Input should be greater than or equal to 0.001"),
        (("--runs", "0"), "'--runs': Input should be greater than or equal to 1"),
        (("--lag", "2 s"), "'2 s' must be a duration, such as 30s"),
        (("--plot", "picture.gif"), "picture.gif is no name for a picture: it has to end in .png or .svg"),
        (("--plot", "no/such/place.png"), "there is no directory no/such"),
        (("-o", "xml"), "'xml' is not one of 'table', 'json'"),
    ],
)
def test_wrong_questions(manifest: Path, arguments: tuple[str, ...], words: str) -> None:
    result = simulate(manifest, *arguments, runs=1)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_manifests(tmp_path: Path) -> None:
    result = simulate(written(tmp_path, hold="soon"))
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"{tmp_path / 'rollout.yaml'}: spec.hold is 'soon': must be a duration, such as 30s, 2m, 1h30m or 500ms\n"
    )
    result = simulate(tmp_path / "nothing.yaml")
    assert (result.exit_code, result.stderr) == (
        2,
        f"{tmp_path / 'nothing.yaml'} cannot be read: No such file or directory\n",
    )


def test_long_simulations_say_how_long_they_take() -> None:
    assert slow(0.5, 10, 500) == ""
    assert slow(12.0, 10, 500) == "500 rollouts of this many checks take about 10m; fewer --runs answer sooner"


def test_help_has_examples_and_exit_statuses() -> None:
    result = runner.invoke(app, ["simulate", "--help"])
    assert result.exit_code == 0
    assert "canaryrollout simulate -f rollout.yaml --stable-errors 0.5% --rps 50" in result.stdout
    assert "Exit status:" in result.stdout


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture(manifest: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"out.{kind}"
    result = simulate(manifest, "--plot", str(file), runs=5)
    assert result.exit_code == 0, result.output
    content = file.read_bytes()
    if kind == "svg":
        assert b"<svg" in content
        return
    assert content.startswith(b"\x89PNG\r\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1232, 572)


def test_a_picture_without_the_library(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    result = simulate(manifest, "--plot", str(tmp_path / "out.png"), runs=1)
    assert result.exit_code == 2
    assert "pip install 'canaryrollout[plot]'" in result.stderr
