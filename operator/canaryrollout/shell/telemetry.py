"""The operator's own figures, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from canaryrollout.engine.telemetry import Outcome

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PrometheusTelemetry:
    """`Telemetry` that counts in a registry of prometheus-client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._passes = Counter(
            "canaryrollout_passes", "Looks at a rollout, by how they ended.", ("outcome",), registry=registry
        )
        self._duration = Histogram(
            "canaryrollout_pass_duration_seconds", "How long a look took.", buckets=_FAST, registry=registry
        )
        self._lag = Histogram(
            "canaryrollout_schedule_lag_seconds",
            "How late the scheduler noticed that a rollout was due.",
            buckets=_FAST,
            registry=registry,
        )
        self._wait = Histogram(
            "canaryrollout_queue_wait_seconds",
            "How long a rollout waited for a worker.",
            buckets=_FAST,
            registry=registry,
        )
        self._leader = Gauge("canaryrollout_leader", "1 while this replica leads.", registry=registry)
        self._sweeps = Counter("canaryrollout_sweeps", "Lists of all rollouts.", ("outcome",), registry=registry)
        self.watch_restarts = Counter(
            "canaryrollout_watch_restarts", "How often the watch had to be started again.", registry=registry
        )

    def pass_done(self, outcome: Outcome, seconds: float) -> None:
        """Count a look at a rollout and how long it took."""
        self._passes.labels(outcome).inc()
        self._duration.observe(seconds)

    def schedule_lag(self, seconds: float) -> None:
        """Record by how many seconds a rollout was looked at later than it was due."""
        self._lag.observe(seconds)

    def queue_wait(self, seconds: float) -> None:
        """Record how long a rollout waited for a worker."""
        self._wait.observe(seconds)

    def leading(self, leads: bool) -> None:
        """Say whether this replica leads."""
        self._leader.set(leads)

    def sweep_done(self, succeeded: bool) -> None:
        """Count a full list of all rollouts."""
        self._sweeps.labels("ok" if succeeded else "failed").inc()


class EngineCollector(Collector):
    """Figures that are read when they are asked for: rollouts by phase and the depth of the queue."""

    def __init__(self, phases: Callable[[], dict[str, int]], queue_depth: Callable[[], int]) -> None:
        self._phases = phases
        self._queue_depth = queue_depth

    def collect(self) -> Iterable[Metric]:
        """Return the figures as they are now."""
        rollouts = GaugeMetricFamily("canaryrollout_rollouts", "Known rollouts by phase.", labels=["phase"])
        for phase, number in self._phases().items():
            rollouts.add_metric([phase], number)
        depth = GaugeMetricFamily("canaryrollout_queue_depth", "Rollouts that wait for a worker.")
        depth.add_metric([], self._queue_depth())
        return rollouts, depth
