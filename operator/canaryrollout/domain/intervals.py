"""Where a true share lies, given how many of how many were seen: for people to read, and for passing with assurance.

These are intervals for one look. What takes traffic back looks again and again and uses `evalues` instead.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil, log, sqrt
from statistics import NormalDist
from typing import Final

from canaryrollout.domain.convergence import tail
from canaryrollout.domain.results import Sample, percent

CONFIDENCE: Final = 0.95
_STEPS: Final = 50


def wilson(sample: Sample, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided Wilson interval of a share.

    ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` (Wilson 1927), which is sensible for small counts and
    for none at all.

    Args:
        sample: What was seen; nothing seen gives the whole range.
        confidence: How often such an interval holds the true share.
    """
    if not sample.of:
        return 0.0, 1.0
    z, n, p = NormalDist().inv_cdf(0.5 + confidence / 2), sample.of, sample.bad / sample.of
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle, scale = p + z * z / (2 * n), 1 + z * z / n
    low = 0.0 if not sample.bad else max(0.0, (middle - half) / scale)
    high = 1.0 if sample.bad == sample.of else min(1.0, (middle + half) / scale)
    return low, high


def upper(sample: Sample, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided exact (Clopper-Pearson) upper bound of a share.

    It is the greatest share under which so few would be seen with a probability of at least ``1 - confidence``; for
    none of ``n`` that is about ``3/n`` at 95 %.
    """
    return _upper(sample.bad, sample.of, confidence)


@lru_cache(maxsize=1024)
def _upper(bad: int, of: int, confidence: float) -> float:
    if bad >= of:
        return 1.0
    low, high = bad / of, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if tail(bad, of, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def ratio_upper(canary: Sample, stable: Sample, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of the ratio of two rates, from the canary's share of all bad requests.

    Given their sum, the canary's part is binomial with odds ``theta n / m`` (as in `evalues`), so the bound of that
    share gives the bound of ``theta``. Without any bad request nothing is known.
    """
    if not canary.of or not stable.of or not canary.bad + stable.bad:
        return float("inf")
    share = _upper(canary.bad, canary.bad + stable.bad, confidence)
    return float("inf") if share >= 1 else share / (1 - share) * stable.of / canary.of


def requests_needed(rate: float, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return about how many requests show that a rate is below a limit, if the rate stays as it is.

    Args:
        rate: The rate seen so far.
        limit: The limit.
        confidence: How sure that has to be.

    Returns:
        ``ln(1-confidence)/ln(1-limit)`` where nothing failed (299 for 1 % at 95 %), else the count at which Wilson's
        bound reaches the limit; ``None`` where the rate is not below the limit.
    """
    if not 0 < limit < 1 or rate >= limit:
        return None
    least = ceil(log(1 - confidence) / log(1 - limit))
    z = NormalDist().inv_cdf(confidence)
    return max(least, ceil(z * z * limit * (1 - limit) / (limit - rate) ** 2))


def spelled(sample: Sample) -> str:
    """Return the 95 % interval of a share for people, such as ``0.3 %..1.1 %``."""
    low, high = wilson(sample)
    return f"{percent(Fraction(low))}..{percent(Fraction(high))}"
