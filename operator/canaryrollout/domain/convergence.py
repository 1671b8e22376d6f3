"""Whether a weight is in effect: does the traffic that is seen agree with it?

A weight that was written is not yet one that proxies act on, and Istio no longer reports distribution. What is left
is to look: a proxy draws the version of each request independently, so the canary's count among ``n`` requests is
binomial, and a share that a weight explains only with odds of one in a thousand contradicts that weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import exp, lgamma, log
from typing import Final

CONFIDENCE: Final = 0.999
MIN_EXPECTED: Final = 5
"""Requests that the weight must let expect of either version before the share says anything."""
MIN_REQUESTS_AT_LIMITS: Final = 20
"""The same at weights 0 and 100, where one of the two expects none."""


class Agreement(StrEnum):
    """Whether observed traffic agrees with a weight."""

    AGREES = "Agrees"
    CONTRADICTS = "Contradicts"
    TOO_FEW = "TooFew"


@dataclass(frozen=True, slots=True)
class ShareCheck:
    """The answer, and the same for people with its numbers."""

    agreement: Agreement
    message: str


def agreement(canary_requests: int, stable_requests: int, weight: int) -> ShareCheck:
    """Check whether the canary's share of requests agrees with its weight.

    The share agrees when the weight lies in the exact two-sided (Clopper-Pearson) interval of the share at 99.9 %
    confidence, that is, when neither tail of the binomial distribution beyond the observed count is less likely than
    0.05 %. At weights 0 and 100 a single request to the other version contradicts.

    Args:
        canary_requests: Requests that the canary answered.
        stable_requests: Requests that the stable version answered in the same time.
        weight: The canary's weight in percent, from 0 to 100.

    Returns:
        The agreement; `Agreement.TOO_FEW` while fewer than 5 requests are to be expected of either version (at weights
        0 and 100: fewer than 20 in all).

    Raises:
        ValueError: If a count is negative or the weight is no percentage.
    """
    if canary_requests < 0 or stable_requests < 0 or not 0 <= weight <= 100:
        raise ValueError(f"no counts and weight: canary {canary_requests}, stable {stable_requests}, weight {weight}")
    n = canary_requests + stable_requests
    needed = _needed(weight)
    if n < needed:
        return ShareCheck(
            Agreement.TOO_FEW, f"{n} of at least {needed} requests to tell whether weight {weight} is in effect"
        )
    observed = f"canary had {canary_requests} of {n} requests ({100 * canary_requests / n:.1f} %) at weight {weight}"
    rare = tail(canary_requests, n, weight / 100) <= (1 - CONFIDENCE) / 2
    return ShareCheck(Agreement.CONTRADICTS if rare else Agreement.AGREES, observed)


def _needed(weight: int) -> int:
    if weight in (0, 100):
        return MIN_REQUESTS_AT_LIMITS
    return -(-MIN_EXPECTED * 100 // min(weight, 100 - weight))


def tail(successes: int, n: int, p: float) -> float:
    """Return the probability of a binomial count at least as far out as ``successes``, on its own side of the mean.

    ``P(X <= successes)`` below the mean and ``P(X >= successes)`` above it, summed exactly from the observed count
    outwards until further terms no longer matter: some multiples of the standard deviation, not ``n`` of them.

    Args:
        successes: The observed count, from 0 to ``n``.
        n: Number of draws.
        p: Probability of a success in each.

    Returns:
        The probability, from 0 to 1.
    """
    if successes > n * p:
        successes, p = n - successes, 1 - p
    if p >= 1:
        return 1.0 if successes == n else 0.0
    if p <= 0:
        return 1.0
    term = exp(
        lgamma(n + 1)
        - lgamma(successes + 1)
        - lgamma(n - successes + 1)
        + successes * log(p)
        + (n - successes) * log(1 - p)
    )
    total = term
    for k in range(successes, 0, -1):
        term *= k * (1 - p) / ((n - k + 1) * p)
        total += term
        if term < total * 1e-12:
            break
    return min(1.0, total)
