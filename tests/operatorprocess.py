"""The operator as its users run it: a process of its own, with a settings file and no more rights than the chart gives.

Times are short, so that a test waits for seconds where a user waits for minutes. Nothing else is different.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client.parser import text_string_to_metric_families

from lab import probe
from lab.demo.scene import OPERATOR, grants
from lab.errors import PartFailed
from lab.mesh import Lab
from lab.paths import REPO_DIR
from lab.ports import LOOPBACK, Reservation
from lab.process import Guard, Processes

NAME: Final = OPERATOR
"""Its user in the lab, and its process."""
NAMESPACE: Final = "canaryrollout-system"
CRD: Final = REPO_DIR / "deploy" / "crds" / "canaryrollouts.yaml"
SCRAPE_INTERVAL: Final = "1s"
READY_SECONDS: Final = 30.0
TIMINGS: Final = {
    "subsetSettle": "1s",
    "drain": "1s",
    "propagation": "1s",
    "baselineWindow": "2s",
    "convergenceBound": "4s",
    "poll": "1s",
    "blockedRetry": "2s",
}

Figures = dict[tuple[str, tuple[str, ...]], float]
"""Value by name of the metric and values of its labels, in the order of the labels' names."""


def definition(lab: Lab) -> None:
    """Teach the API server CanaryRollouts."""
    lab.kubectl("apply", "--server-side", "-f", str(CRD))
    lab.kubectl.wait_served("canaryrollouts.canaryrollout.io")


class OperatorProcess:
    """The operator of a lab; at most one at a time.

    Args:
        lab: The lab; only its API server is needed.
        prometheus_url: What the provider ``default`` asks.
        settings: Top-level settings in place of the usual ones.
    """

    def __init__(self, lab: Lab, prometheus_url: str, **settings: Any) -> None:
        self._lab = lab
        self.directory = lab.dir / NAME
        """Where its settings are."""
        self._prometheus_url = prometheus_url
        self._overrides = settings
        self._ports = Reservation()
        self._port = self._ports.take()
        self.processes = Processes(self.directory, logs=lab.dir / "logs")
        self._guard = Guard(self.directory)
        self._logged = self.log.stat().st_size if self.log.exists() else 0

    @property
    def log(self) -> Path:
        """Its log."""
        return self.processes.log(NAME)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.processes.alive(NAME)

    def settings(self) -> dict[str, Any]:
        """The settings file. A resync is far away, so that what happens has another cause."""
        provider = {"url": self._prometheus_url, "scrapeInterval": SCRAPE_INTERVAL, "lag": "300ms", "timeout": "5s"}
        election = {"leaseDuration": "6s", "renewDeadline": "4s", "retryPeriod": "1s"}
        return {
            "providers": {"default": provider},
            "resync": "24h",
            "sweep": "24h",
            "logFormat": "json",
            "httpHost": LOOPBACK,
            "httpPort": self._port,
            "leaderElection": {"namespace": NAMESPACE, "name": "canaryrollout", **election},
            "timings": TIMINGS,
            **self._overrides,
        }

    def start(self, **settings: Any) -> None:
        """Start it and wait until it is ready.

        Raises:
            PartFailed: It died or was not ready in time; the end of its log is in the message.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "settings.yaml"
        file.write_text(yaml.safe_dump(self.settings() | settings, sort_keys=False))
        kubeconfig = str(self._lab.kubeconfig_for(NAME))
        command = [
            sys.executable, "-m", "canaryrollout", "run", "--kubeconfig", kubeconfig, "--config", str(file)
        ]  # fmt: skip
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.directory),
            "PYTHONPATH": str(REPO_DIR / "operator"),
            "PYTHONUNBUFFERED": "1",
        }
        self._ports.release([self._port])
        self.processes.spawn(NAME, command, environment, cwd=REPO_DIR)
        deadline = time.monotonic() + READY_SECONDS
        while missing := probe.waiting_for(f"http://{LOOPBACK}:{self._port}/readyz"):
            self.check_alive()
            if time.monotonic() > deadline:
                raise PartFailed(NAME, self.processes.obituary(NAME, f"was not ready: {missing}"))
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as Kubernetes ends a Pod."""
        self.processes.stop([NAME], grace=10.0)

    def kill(self) -> None:
        """End it without a warning (SIGKILL), in the middle of whatever it does."""
        record = self.processes.record(NAME)
        assert record is not None
        assert record.signal(signal.SIGKILL), "the operator was not running"
        deadline = time.monotonic() + 5
        while self.alive:
            assert time.monotonic() < deadline, "the operator survived SIGKILL"
            time.sleep(0.01)

    def restart(self, **settings: Any) -> None:
        """End it in order, and start it with other settings."""
        self.stop()
        self.start(**settings)

    def check_alive(self) -> None:
        """Raise `PartFailed` with the end of its log if it has died."""
        if not self.alive:
            raise PartFailed(NAME, self.processes.obituary(NAME, "died"))

    def figures(self) -> Figures:
        """Everything its ``/metrics`` says."""
        with probe.session() as client:
            text = client.get(f"http://{LOOPBACK}:{self._port}/metrics", timeout=5).text
        return {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def complaints(self) -> list[str]:
        """Lines of its log that nothing in a test gives it a reason for: errors, and what its rights did not allow."""
        with self.log.open("rb") as log:
            log.seek(self._logged)
            lines = log.read().decode(errors="replace").splitlines()
        bad = ('"level": "error"', '"level": "critical"', "Traceback", "orbidden")
        return [line for line in lines if any(sign in line for sign in bad)]

    def close(self) -> None:
        """End it for good."""
        self.processes.stop_all(grace=10.0)
        self._guard.dismiss()
        self._ports.close()


@contextmanager
def running_operator(lab: Lab, prometheus_url: str, **settings: Any) -> Iterator[OperatorProcess]:
    """Run the operator to the end of the block, with the definition installed and its rights granted."""
    definition(lab)
    lab.namespace(NAMESPACE)
    lab.apply(*grants(NAMESPACE))
    operator = OperatorProcess(lab, prometheus_url, **settings)
    try:
        operator.start()
        yield operator
    finally:
        operator.close()
