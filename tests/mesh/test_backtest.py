"""What ``canaryrollout backtest`` says of the past: what a person reads off the samples, and what the operator did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.mesh.place import Place
from tests.operatorprocess import NAME
from tests.remotewrite import Recorded, Series, recorded_prometheus

pytestmark = pytest.mark.mesh

WINDOW = timedelta(minutes=30)
BEGIN = datetime.now(UTC).replace(microsecond=0) - WINDOW - timedelta(minutes=1)
SCRAPE = timedelta(seconds=5)
BREACH = timedelta(seconds=150)
LOOKED_AT_SECONDS = 8.0


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    """A real Prometheus with half an hour of two releases: v2 is as good as v1, v3 fails 5 % after two and a half."""
    with recorded_prometheus() as server:
        server.write(counters("v1", rps=45, errors=lambda at: 0.002))
        server.write(counters("v2", rps=5, errors=lambda at: 0.0))
        server.write(counters("v3", rps=5, errors=lambda at: 0.05 if at > BREACH else 0.0))
        yield server


def counters(version: str, rps: float, errors: Any) -> Iterator[Series]:
    """Counters of a version, scraped from some minutes before the window to its end; exact, without any chance."""
    counts = {"200": 0.0, "500": 0.0}
    samples: dict[str, list[tuple[datetime, float]]] = {code: [] for code in counts}
    at = BEGIN - timedelta(minutes=3)
    while at <= BEGIN + WINDOW:
        for code in counts:
            samples[code].append((at, float(int(counts[code]))))
        at += SCRAPE
        failed = rps * SCRAPE.total_seconds() * errors(at - BEGIN)
        counts["500"] += failed
        counts["200"] += rps * SCRAPE.total_seconds() - failed
    for code, values in samples.items():
        labels = {
            "__name__": "istio_requests_total",
            "reporter": "source",
            "destination_service": "reviews.shop.svc.cluster.local",
            "destination_version": version,
            "response_code": code,
            "response_flags": "-",
            "instance": "gateway-1",
        }
        yield labels, values


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A rollout in three steps of two minutes each."""
    spec = {
        "version": "v2",
        "host": "reviews",
        "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
        "steps": [{"weight": 10}, {"weight": 50}, {"weight": 100}],
        "hold": "2m",
        "analysis": {"interval": "10s", "minRequests": 100, "errorRate": {"max": "1%"}},
    }
    file = tmp_path / "rollout.yaml"
    metadata = {"name": "reviews", "namespace": "shop"}
    body = {"apiVersion": "canaryrollout.io/v1alpha1", "kind": "CanaryRollout", "metadata": metadata, "spec": spec}
    file.write_text(yaml.safe_dump(body))
    return file


def backtest(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "canaryrollout", "backtest", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def answer(*arguments: str | Path, stdin: str = "") -> dict[str, Any]:
    """Return the document of an answer."""
    done = backtest(*arguments, "-o", "json", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def window(recorded: Recorded, manifest: Path, canary: str) -> list[str | Path]:
    """The arguments that ask for the whole window."""
    return [
        *("-f", manifest, "--stable", "v1", "--canary", canary, "--scrape-interval", "5s"),
        *("--prometheus", recorded.url, "--from", BEGIN.isoformat(), "--to", (BEGIN + WINDOW).isoformat()),
    ]


def test_a_good_release_would_have_been_promoted(recorded: Recorded, manifest: Path) -> None:
    found = answer(*window(recorded, manifest, "v2"))
    assert found["outcome"] == "Promoted"
    assert [step["weight"] for step in found["steps"]] == [10, 50, 100]
    assert 3 * 120 <= found["secondsAfterBegin"] <= 3 * 150
    first = found["steps"][0]
    assert first["canaryShare"] == pytest.approx(0.1, abs=0.01)
    assert first["stable"]["requests"] == pytest.approx(9 * first["canary"]["requests"], rel=0.02)
    assert any("at weight 50 the canary really had 10 % of the requests" in note for note in found["notes"])


def test_a_bad_release_would_have_been_taken_back_soon(recorded: Recorded, manifest: Path) -> None:
    found = answer(*window(recorded, manifest, "v3"))
    assert found["outcome"] == "TakenBack"
    assert found["reason"] == "GateFailed"
    assert found["weight"] == 50
    assert BREACH.total_seconds() < found["secondsAfterBegin"] < BREACH.total_seconds() + 90
    assert found["history"][-1]["reason"] == "GateFailed"
    assert found["checks"][-1]["verdict"] == "Fail"


def test_a_person_reads_when_and_why(recorded: Recorded, manifest: Path, tmp_path: Path) -> None:
    picture = tmp_path / "night.png"
    done = backtest(*window(recorded, manifest, "v3"), "--plot", picture)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    print(done.stdout)
    assert "\x1b[" not in done.stdout
    assert "The operator would have taken v3 back at" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_version_that_nobody_counted(recorded: Recorded, manifest: Path) -> None:
    """No evidence is no success: it would have waited at its first weight, and says for what."""
    found = answer(*window(recorded, manifest, "v9"))
    assert (found["outcome"], found["weight"]) == ("Unfinished", 10)
    assert "no series of the canary" in found["message"]


def test_it_says_what_the_operator_did(place: Place, tmp_path: Path) -> None:
    """The same decisions on the same evidence: a rollout that really was taken back, replayed with its own manifest.

    The operator and the replay cut time into intervals that begin at different moments, so a breach that takes several
    intervals to be told from chance may be told in different ones. This one begins at a known moment and is plain in
    any interval that it fills by half: what remains is where the intervals begin, and how late samples are.
    """
    reviews = place.service("reviews")
    load = reviews.send(50)
    reviews.apply("v2", steps=[{"weight": 30, "hold": "60s"}, {"weight": 100}], analysis={"minRequests": 60})
    reviews.until_weight(30, in_effect=True)
    begun = load.now()
    reviews.until(lambda: load.now() - begun > LOOKED_AT_SECONDS, "enough requests to see a share in")
    reviews.backends["v2"].set_mode(error_rate=0.4)
    status = reviews.until_taken_back("GateFailed")
    assert status.rollout is not None
    really = next(entry.time for entry in status.history if entry.reason == "GateFailed")
    weighed = next(entry.time for entry in status.history if entry.reason == "WeightSet")

    found = answer(
        *("-f", "-", "--stable", "v1", "--from", weighed.isoformat()),
        *("--provider-config", place.lab.dir / NAME / "settings.yaml"),
        stdin=reviews.kubectl("get", "canaryrollout", "reviews", "-o", "yaml"),
    )
    imagined = datetime.fromisoformat(found["at"])
    print(f"taken back at {really:%H:%M:%S.%f}, in the backtest at {imagined:%H:%M:%S.%f}: {found['message']}")
    print(f"the operator said {status.rollout.explanation}")
    assert (found["outcome"], found["reason"], found["weight"]) == ("TakenBack", "GateFailed", 30)
    assert abs(really - imagined) <= timedelta(seconds=4)
    first = found["steps"][0]
    print(f"{first['canaryShare']:.1%} of {first['canary']['requests'] + first['stable']['requests']} requests at 30 %")
    assert first["canaryShare"] == pytest.approx(0.3, abs=0.12)
