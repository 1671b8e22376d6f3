"""Random counts, exact and fast, from a seeded generator of the standard library.

Python draws binomials from 3.12 on and Poisson counts not at all, and a numerical library would be a heavy thing to
depend on for two distributions. Both are drawn by inversion that walks outwards from the mode: no approximation, and
some multiples of the standard deviation in steps, however large the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, floor, lgamma, log
from random import Random


def poisson(rng: Random, mean: float) -> int:
    """Draw how many events there are where ``mean`` are to be expected.

    Args:
        rng: Source of randomness.
        mean: Zero or more.
    """
    if mean <= 0:
        return 0
    mode = floor(mean)
    at_mode = exp(mode * log(mean) - mean - lgamma(mode + 1))
    return _from_mode(rng, mode, at_mode, lambda k: mean / (k + 1))


def binomial(rng: Random, n: int, p: float) -> int:
    """Draw how many of ``n`` succeed where each does with probability ``p``.

    Args:
        rng: Source of randomness.
        n: Number of trials.
        p: Probability of success; beyond 0 and 1 it counts as those.
    """
    if n <= 0 or p <= 0:
        return 0
    if p >= 1:
        return n
    mode = min(n, floor((n + 1) * p))
    choose = lgamma(n + 1) - lgamma(mode + 1) - lgamma(n - mode + 1)
    at_mode = exp(choose + mode * log(p) + (n - mode) * log(1 - p))
    odds = p / (1 - p)
    return _from_mode(rng, mode, at_mode, lambda k: (n - k) / (k + 1) * odds)


def _from_mode(rng: Random, mode: int, at_mode: float, ratio: Callable[[int], float]) -> int:
    """Invert a distribution on the counts from 0 on, outwards from its mode.

    Args:
        rng: Source of randomness.
        mode: The most likely count.
        at_mode: Its probability.
        ratio: Probability of ``k + 1`` over that of ``k``.
    """
    left = rng.random() - at_mode
    above = below = mode
    p_above = p_below = at_mode
    while left > 0 and (p_above or p_below):
        p_above *= ratio(above)
        above += 1
        left -= p_above
        if left <= 0:
            return above
        if below > 0:
            p_below /= ratio(below - 1)
            below -= 1
            left -= p_below
            if left <= 0:
                return below
        else:
            p_below = 0.0
    return mode
