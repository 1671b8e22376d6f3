"""The operator as a user runs it: a process of its own, seen by its log and its HTTP port only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from prometheus_client.parser import text_string_to_metric_families

SOURCE = Path(__file__).parents[2] / "operator"
STARTUP = 90.0


def is_slowness(line: str) -> bool:
    """Whether a line of the log has an exception whose reason is an API server that is too slow for the moment."""
    if "Traceback" not in line or not line.startswith("{"):
        return False
    return str(json.loads(line).get("exception", "")).rstrip().endswith("TimeoutError")


class Program:
    """``python -m canaryrollout run`` with some flags; a context manager that ends it."""

    def __init__(self, kubeconfig: Path, *flags: str, **environment: str) -> None:
        self._command = [sys.executable, "-m", "canaryrollout", "run", "--kubeconfig", str(kubeconfig)]
        self._command += ["--http-port", "0", "--log-format", "json", "--log-level", "debug", *flags]
        self._environment = os.environ | {"PYTHONPATH": str(SOURCE)} | environment
        self.log: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, env=self._environment, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if kind is not None:
            print(*[line for line in self.log if line.get("level") != "debug"][-30:], sep="\n")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.rstrip(), "level": "unreadable"})

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines with this event."""
        return [line for line in self.log if line["event"] == event]

    def wait(self, holds: Callable[[], object], what: str, within: float = STARTUP) -> float:
        """Wait until a condition holds, and return for how many seconds that took."""
        started = time.monotonic()
        while not holds():
            assert self.process.poll() is None, f"the operator ended with status {self.process.poll()}: {self.log[-3:]}"
            assert time.monotonic() - started < within, f"not within {within:g} s: {what}"
            time.sleep(0.02)
        return time.monotonic() - started

    @property
    def url(self) -> str:
        """Where probes and metrics are."""
        self.wait(lambda: self.said("serving probes and metrics"), "probes")
        return f"http://{self.said('serving probes and metrics')[0]['address']}"

    def probe(self, path: str) -> tuple[int, str]:
        """Return status and text of a probe."""
        answer = requests.get(self.url + path, timeout=5)
        return answer.status_code, answer.text.strip()

    def wait_ready(self) -> None:
        """Wait until the readiness probe answers 200."""
        self.wait(lambda: self.probe("/readyz")[0] == 200, "ready")

    @property
    def leads(self) -> bool:
        """Whether it says that it leads."""
        return self.metrics()[("canaryrollout_leader",)] == 1

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Return its figures by name and label values."""
        text = requests.get(f"{self.url}/metrics", timeout=5).text
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def stop(self, within: float = 10.0) -> tuple[int, float]:
        """Ask it to stop; return its exit status and how many seconds it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(within)
        return status, time.monotonic() - started
