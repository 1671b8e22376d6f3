"""E-processes on counts: how strongly requests speak against a canary, valid however often one looks.

An *e-process* is a wealth that starts at 1 and that, as long as the canary keeps its limit, does not grow on average
whatever is bet on. By Ville's inequality it then ever reaches ``1/alpha`` with probability ``alpha`` at most, so a gate
that fails when it does is wrong that seldom although it looks at every block. The wealth here is a ratio of
likelihoods, block by block (Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon, arXiv 1810.08240):

- **against stable** (`relative`): of the ``k = x + y`` failures of a block, the canary's ``x`` are binomial with share
  ``rho theta / (rho theta + 1 - rho)``, where ``rho`` is the canary's share of requests and ``theta`` the ratio of the
  rates. That holds at any weight and whatever failed on both sides at once: a dependency that takes both versions down
  says nothing. The null is ``theta <= theta0``.
- **against a number** (`absolute`): failures are Poisson with mean ``n p``. The null is ``p <= p0``.

**Bursts.** Failures come in bursts (one Pod, one dependency), and a plain likelihood takes a burst for proof. Each
side's rate is therefore thought to be multiplied, block by block, by a gamma variate with mean 1 and an unknown squared
coefficient of variation, the *dispersion*: the counts are negative binomial, and the share of failures is a binomial
whose log odds are shifted by that of a symmetric beta variate (integrated over numerically). Every likelihood, of null
and bets alike, is a mixture over a few dispersions; what the counts of both versions say about them shifts its weights.
For a dispersion on the list, the chance of a false alarm is at most ``alpha`` over its prior weight, and simulations
show far less: docs/analysis.md. (Against stable that holds up to weight 50. Above, how many failed says a little on
whose burst it was, which is left out: at weight 90 a bet on one block may gain a tenth on average.)

**Changes.** A canary may be fine for an hour and then break. Wealth that was lost in that hour would have to be earned
again, so some of it is kept out of every bet, and after each block a little is spread over all bets anew (*fixed
share*, Herbster and Warmuth 1998). Bets may be chosen by what was seen before, so the guarantee stays.

What is assumed: failures are rare among requests (where they are not, binomial counts vary less than Poisson ones and
the guarantee only gets stronger), the blocks' bursts are independent of each other, and stable is what it was.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil, exp, floor, lgamma, log, log1p, pi, sqrt, tanh
from operator import mul
from typing import Final

_MANY: Final = 12
MULTIPLES: Final = tuple(1.5 * (20 / 1.5) ** (k / (_MANY - 1)) for k in range(_MANY))
"""What is bet on: the rate is so many times the limit. Twelve points, spaced evenly on a log scale from 1.5 to 20."""
DISPERSIONS: Final = (0.0, 0.05, 0.3, 1.0)
DISPERSION_WEIGHTS: Final = (0.5, 0.38, 0.07, 0.05)
"""How likely each dispersion is before anything is seen. Many services hardly deviate from independence, and what
speaks for more is learned within a few blocks; chosen by simulation, as docs/analysis.md tells."""
RESERVE: Final = 0.1
"""Part of the wealth that is never bet."""
LATER_RESERVE: Final = 0.5
"""The same in later steps: a step that went well has lost most of what was bet, and another may not lose it all."""
SHARE: Final = 0.002
"""Part of the wealth that is spread over all bets anew after each block."""
_RECALLED: Final = 0.9
"""How much a step trusts what the one before learned about dispersion; the rest is the prior."""

_LIKELIEST: Final = 3.5
_WIDTH: Final = 1.0


def _stakes(reserve: float) -> tuple[float, ...]:
    """Return what part of the wealth lies on no change (first) and on each of `MULTIPLES`: log-normal around 3.5."""
    bets = [exp(-(log(multiple / _LIKELIEST) ** 2) / (2 * _WIDTH**2)) for multiple in MULTIPLES]
    return (reserve, *((1 - reserve) * bet / sum(bets) for bet in bets))


STAKES: Final = _stakes(RESERVE)
LATER_STAKES: Final = _stakes(LATER_RESERVE)
_HYPOTHESES: Final = (1.0, *MULTIPLES)
_KEPT: Final = 1 - SHARE
_CLIP: Final = 60.0
_LARGEST: Final = 1e60
_SMALLEST: Final = 1e-300
_LITTLE: Final = 1e-100
"""Bets are counted in smaller coin once they are worth less: a step of days loses a little in each block."""

Table = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]
"""For each dispersion: the log-likelihood of the null, and for each hypothesis its likelihood relative to the null."""


@dataclass(frozen=True, slots=True)
class Wealth:
    """The state of an e-process.

    Attributes:
        log_value: Logarithm of the e-value now.
        log_peak: The highest it ever was: a test that has rejected has rejected.
        weights: What the counts say about the dispersions; sums to 1.
        bets: For each dispersion, the wealth on each hypothesis, relative to ``log_base``.
        log_base: Logarithm of the unit that bets are counted in: the wealth that the present step began with, or less
            once little of it was left.
        stable_bad: Failures of stable in the step.
        stable_of: Requests of stable in the step.
        blocks: Blocks of the step that stable had requests in.
    """

    log_value: float
    log_peak: float
    weights: tuple[float, ...]
    bets: tuple[tuple[float, ...], ...]
    log_base: float
    stable_bad: int = 0
    stable_of: int = 0
    blocks: int = 0


def begin() -> Wealth:
    """Return the state at the beginning of the first step."""
    return Wealth(0.0, 0.0, DISPERSION_WEIGHTS, (STAKES,) * len(DISPERSIONS), 0.0)


def resume(log_value: float, weights: Sequence[float]) -> Wealth:
    """Return the state at the beginning of a later step.

    Args:
        log_value: Logarithm of the e-value that the step before ended with.
        weights: What the steps before have said about the dispersions, at least one of them above 0.
    """
    return Wealth(log_value, log_value, _mixed(weights), (LATER_STAKES,) * len(DISPERSIONS), log_value)


def _mixed(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(
        _RECALLED * weight / total + (1 - _RECALLED) * prior
        for weight, prior in zip(weights, DISPERSION_WEIGHTS, strict=True)
    )


def relative(wealth: Wealth, canary: tuple[int, int], stable: tuple[int, int], limit: float) -> Wealth:
    """Take in a block, against the null that the canary's rate is at most ``limit`` times stable's.

    Args:
        wealth: The state before.
        canary: The canary's bad requests and all of its requests.
        stable: The same of the stable version.
        limit: The greatest ratio of rates that is allowed, above 0.

    Returns:
        The state after; the same where either version had no requests.
    """
    (bad, of), (stable_bad, stable_of) = canary, stable
    if not of or not stable_of:
        return wealth
    known = _dispersion_of_stable(wealth, stable_bad, stable_of)
    table = _share_table(bad, bad + stable_bad, log(of / stable_of * limit)) if bad + stable_bad else _NOTHING
    after = _bet(wealth, table, known)
    return Wealth(
        after.log_value,
        after.log_peak,
        after.weights,
        after.bets,
        after.log_base,
        wealth.stable_bad + stable_bad,
        wealth.stable_of + stable_of,
        wealth.blocks + 1,
    )


def absolute(wealth: Wealth, bad: int, of: int, limit: float) -> Wealth:
    """Take in a block, against the null that the canary's rate is at most ``limit``.

    Args:
        wealth: The state before.
        bad: The canary's bad requests.
        of: All of its requests.
        limit: The greatest rate that is allowed. At 0 a single bad request is proof.

    Returns:
        The state after; the same where there were no requests.
    """
    if not of:
        return wealth
    if limit <= 0:
        peak = _CLIP if bad else wealth.log_peak
        return Wealth(peak if bad else wealth.log_value, peak, wealth.weights, wealth.bets, wealth.log_base)
    return _bet(wealth, _rate_table(bad, of * limit), None)


def _bet(wealth: Wealth, table: Table, known: tuple[float, ...] | None) -> Wealth:
    """Settle the bets on a block and spread a little of the wealth anew."""
    nulls, ratios = table
    logs = [log(weight or _SMALLEST) + null for weight, null in zip(wealth.weights, nulls, strict=True)]
    if known is not None:
        logs = [value + more for value, more in zip(logs, known, strict=True)]
    largest = max(logs)
    weights = [exp(value - largest) for value in logs]
    total = sum(weights)
    bets, value = [], 0.0
    for row, gains, weight in zip(wealth.bets, ratios, weights, strict=True):
        spread = SHARE * sum(row)
        after = [(_KEPT * bet + spread * stake) * gain for bet, stake, gain in zip(row, STAKES, gains, strict=True)]
        if max(after) > _LARGEST:
            after = [min(bet, _LARGEST) for bet in after]
        bets.append(tuple(after))
        value += weight * sum(after)
    log_base = wealth.log_base
    if value < _LITTLE:
        bets = [tuple([bet / _LITTLE for bet in row]) for row in bets]
        log_base, value = log_base + log(_LITTLE), value / _LITTLE
    log_value = log_base + log(max(value, _SMALLEST) / total)
    return Wealth(
        log_value,
        max(wealth.log_peak, log_value),
        tuple([weight / total for weight in weights]),
        tuple(bets),
        log_base,
        wealth.stable_bad,
        wealth.stable_of,
        wealth.blocks,
    )


def _dispersion_of_stable(wealth: Wealth, bad: int, of: int) -> tuple[float, ...] | None:
    """Return what stable's own count in a block says about each dispersion, as log-likelihoods.

    The count is predicted from the blocks before, whose mean is itself uncertain; its uncertainty adds to the
    dispersion. The first block predicts nothing.
    """
    if not wealth.blocks:
        return None
    seen = wealth.stable_bad + 0.5
    mean = of * seen / wealth.stable_of
    return tuple(_log_negative_binomial(bad, mean, d + 1 / seen + d / wealth.blocks) for d in DISPERSIONS)


def _log_negative_binomial(count: int, mean: float, dispersion: float) -> float:
    """Return the log-probability of a count with the given mean and variance ``mean + dispersion mean^2``."""
    if dispersion <= 0:
        return count * log(mean) - mean - lgamma(count + 1)
    shape = 1 / dispersion
    return (
        lgamma(count + shape)
        - lgamma(shape)
        - lgamma(count + 1)
        + count * log(mean / (shape + mean))
        - shape * log1p(mean / shape)
    )


def _table(likelihoods: Iterable[Sequence[float]]) -> Table:
    """Return a table from the log-likelihoods of all hypotheses, the null first, for each dispersion."""
    nulls, ratios = [], []
    for row in likelihoods:
        null = row[0]
        nulls.append(null)
        ratios.append(tuple(exp(min(max(value - null, -_CLIP), _CLIP)) for value in row))
    return tuple(nulls), tuple(ratios)


_NOTHING: Final = _table([[0.0] * len(_HYPOTHESES)] * len(DISPERSIONS))


@lru_cache(maxsize=2048)
def _rate_table(bad: int, expected: float) -> Table:
    """Return the table of a count whose mean under the null is ``expected``."""
    return _table([[_log_negative_binomial(bad, expected * h, d) for h in _HYPOTHESES] for d in DISPERSIONS])


@lru_cache(maxsize=2048)
def _share_table(bad: int, total: int, log_odds: float) -> Table:
    """Return the table of a share of failures.

    The likelihood of the share is integrated over the densities of the shifted log odds. These depend on the distance
    from the null alone, so they are known beforehand at nodes that lie around the null; where the likelihood is too
    narrow for any nodes it is as good as a normal density, and the integral has a closed form.

    Args:
        bad: Failures of the canary.
        total: Failures of both versions, at least one.
        log_odds: Log odds under the null that a failure is the canary's, without bursts.
    """
    rows = [[_log_binomial(bad, total, log_odds + offset) for offset in _OFFSETS]]
    a, b = max(bad, 0.5), max(total - bad, 0.5)
    mode, width = log(a / b) - log_odds, sqrt(1 / a + 1 / b)
    level = next((level for level, spacing in enumerate(_SPACINGS) if spacing <= 1.2 * width), None)
    if level is None:
        peak = _log_binomial(bad, total, mode + log_odds) + log(width * sqrt(2 * pi))
        return _table([*rows, *([peak + _pulled(shape, mode - o, width) for o in _OFFSETS] for shape in _SHAPES)])
    first, last = _window(bad, total, mode, width, level)
    spacing = _SPACINGS[level]
    likelihoods = [_log_binomial(bad, total, log_odds + i * spacing) for i in range(first, last)]
    peak = max(likelihoods)
    scaled = [exp(value - peak) for value in likelihoods]
    middle = int(_FARTHEST / spacing)
    for densities in _densities(level):
        sums = [sum(map(mul, scaled, density[middle + first : middle + last])) for density in densities]
        rows.append([peak + log(max(value * spacing, _SMALLEST)) for value in sums])
    return _table(rows)


_OFFSETS: Final = tuple(log(h) for h in _HYPOTHESES)
_SHAPES: Final = tuple(1 / d for d in DISPERSIONS if d)
_SPACINGS: Final = (0.3, 0.075, 0.02)
"""Distances of nodes; the widest is about the standard deviation of the narrowest density."""
_FARTHEST: Final = 30.0
"""How far from the null nodes reach, in log odds."""


@cache
def _densities(level: int) -> tuple[tuple[array[float], ...], ...]:
    """Return, for each dispersion above 0 and each hypothesis, the density of the log odds at the nodes of a level."""
    count = int(_FARTHEST / _SPACINGS[level])
    nodes = [i * _SPACINGS[level] for i in range(-count, count + 1)]
    return tuple(
        tuple(array("d", [exp(_log_density(shape, node - offset)) for node in nodes]) for offset in _OFFSETS)
        for shape in _SHAPES
    )


def _log_density(shape: float, shift: float) -> float:
    """Return the log-density of the log odds of a ``Beta(shape, shape)`` variate: ``(s(u) s(-u))^a / B(a, a)``."""
    distance = abs(shift)
    return shape * (-distance - 2 * log1p(exp(-distance))) + lgamma(2 * shape) - 2 * lgamma(shape)


def _pulled(shape: float, shift: float, width: float) -> float:
    """Return the log of a density's mean under a narrow normal likelihood: its value, and what its slope adds."""
    slope = shape * tanh(shift / 2) * width
    return _log_density(shape, shift) + slope * slope / 2


def _window(bad: int, total: int, mode: float, width: float, level: int) -> tuple[int, int]:
    """Return the first node and the one after the last between which the integrand matters.

    The integrand has its mode between a hypothesis and that of the likelihood. Where the likelihood is narrow it pins
    the mode down: a density, whose logarithm is nowhere steeper than its shape, moves it by the shape times the
    likelihood's variance at most.
    """
    low, high = min(_OFFSETS[0], mode) - 9, max(_OFFSETS[-1], mode) + 9
    reach = 6 * width + width**2 * max(_SHAPES)
    if bad:
        low = max(low, mode - reach)
    if bad < total:
        high = min(high, mode + reach)
    end = int(_FARTHEST / _SPACINGS[level])
    first = min(max(floor(low / _SPACINGS[level]), -end), end - 1)
    return first, max(min(ceil(high / _SPACINGS[level]) + 1, end + 1), first + 1)


def _log_binomial(bad: int, total: int, log_odds: float) -> float:
    """Return the log-likelihood of ``bad`` of ``total``, without the binomial coefficient."""
    if log_odds > 0:
        return -bad * log1p(exp(-log_odds)) - (total - bad) * (log_odds + log1p(exp(-log_odds)))
    return bad * (log_odds - log1p(exp(log_odds))) - (total - bad) * log1p(exp(log_odds))
