"""Imagined traffic: requests of two versions, drawn at random, as a provider would have counted them.

Requests come independently of each other (Poisson), each goes to the canary with the probability that its weight says,
and fails with the probability of its version. Real failures come in bursts: with *bursts* the rate of each version is
multiplied, anew for each interval, by a gamma variate of mean 1 and that squared coefficient of variation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from random import Random

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import Counts
from canaryrollout.cli.draws import binomial, poisson
from canaryrollout.cli.imagined import Readings
from canaryrollout.domain.decision import Needs
from canaryrollout.domain.evidence import (
    Block,
    Evidence,
    EvidenceRequest,
    MetricReading,
    MetricValue,
    OwnQuery,
    Preflight,
    total,
)


@dataclass(frozen=True, slots=True)
class Version:
    """What is true of a version: the shares of its requests that fail and that are slow."""

    errors: float
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is true of a host.

    Attributes:
        rps: Requests per second to both versions together.
        stable: The version that serves.
        canary: The version that is judged.
        bursts: Squared coefficient of variation of the rates from interval to interval; 0 for independent failures.
    """

    rps: float
    stable: Version
    canary: Version
    bursts: float = 0.0


class ImaginedProvider:
    """Answers what a rollout needs to know, and keeps count of what really happened to the canary.

    Args:
        traffic: What is true.
        spec: The rollout; its own metrics are answered with a value within their limits.
        lag: How far behind the present the data is.
        rng: Source of randomness.
    """

    def __init__(self, traffic: Traffic, spec: CanaryRolloutSpec, lag: timedelta, rng: Random) -> None:
        self._traffic = traffic
        self._lag = lag
        self._rng = rng
        self._request: EvidenceRequest | None = None
        self._blocks: list[Block] = []
        self._opening: Evidence | None = None
        self._counted_until: datetime | None = None
        self._passing = {
            gate.name: next(value for value in (gate.max, gate.min, Fraction(1)) if value is not None)
            for gate in spec.analysis.metrics
        }
        self.canary = Counts()

    def answer(self, needs: Needs, now: datetime, weight: int) -> Readings:
        """Say what is known at a time.

        Args:
            needs: What is asked.
            now: The present time.
            weight: The canary's weight, in percent.
        """
        preflight = needs.preflight
        return Readings(
            evidence=self._step(needs.evidence, now, weight) if needs.evidence else None,
            opening=self._beginning(needs.opening, now, weight) if needs.opening else None,
            baseline=self._before(needs.baseline) if needs.baseline else None,
            preflight=Preflight(preflight, host_series=True, versions=(preflight.stable,)) if preflight else None,
        )

    def end_weight(self, now: datetime, weight: int) -> None:
        """Count what the canary had since it was counted last, at a weight that ends now."""
        since = self._counted_until or now
        self._count(self._draw(max(now - since, timedelta()), weight, self._traffic.canary), now)

    def _step(self, request: EvidenceRequest, now: datetime, weight: int) -> Evidence:
        """Return the blocks of a step; those that were drawn before stay as they are."""
        if self._request is None or self._request.start != request.start:
            self._request, self._blocks = request, []
        begin = self._blocks[-1].end if self._blocks else request.start
        for end in request.ends(begin, now - self._lag):
            if not self._blocks:
                self.end_weight(begin, weight)
            block = self._block(begin, end, weight)
            self._count(block.canary, end)
            self._blocks.append(block)
            begin = end
        metrics = {query.name: self._readings(query) for query in request.queries}
        return Evidence(request, tuple(self._blocks), metrics=metrics)

    def _readings(self, query: OwnQuery) -> tuple[MetricReading, ...]:
        value = self._passing[query.name]
        return tuple(
            MetricReading(b.end, MetricValue(value, b.end), MetricValue(value, b.end) if query.baseline else None)
            for b in self._blocks
        )

    def _beginning(self, request: EvidenceRequest, now: datetime, weight: int) -> Evidence | None:
        """Return the moments in which the proxies took the weight over: half of them came before the write."""
        end = request.first_end()
        if now - self._lag < end:
            return None
        if self._opening is None or self._opening.request.start != request.start:
            canary = self._draw((end - request.start) / 2, weight, self._traffic.canary)
            stable = self._draw(end - request.start, 100 - weight, self._traffic.stable)
            self._opening = Evidence(request, (Block(request.start, end, canary, stable),))
        return self._opening

    def _before(self, request: EvidenceRequest) -> Evidence:
        end = request.first_end()
        stable = self._draw(end - request.start, 100, self._traffic.stable)
        return Evidence(request, (Block(request.start, end, Counts(), stable, canary_seen=False),))

    def _block(self, start: datetime, end: datetime, weight: int) -> Block:
        return Block(
            start,
            end,
            canary=self._draw(end - start, weight, self._traffic.canary),
            stable=self._draw(end - start, 100 - weight, self._traffic.stable),
            stable_seen=weight < 100,
        )

    def _draw(self, span: timedelta, share: int, version: Version) -> Counts:
        requests = poisson(self._rng, self._traffic.rps * share / 100 * span.total_seconds())
        factor = self._burst()
        errors = binomial(self._rng, requests, version.errors * factor)
        slow = binomial(self._rng, requests, version.slow * factor)
        return Counts(requests=requests, errors=errors, timed=requests, slow=slow)

    def _burst(self) -> float:
        cv2 = self._traffic.bursts
        return self._rng.gammavariate(1 / cv2, cv2) if cv2 else 1.0

    def _count(self, counts: Counts, until: datetime) -> None:
        self.canary, self._counted_until = total((self.canary, counts)), until
