"""Whether a weight is in effect: does the traffic that is seen agree with it?

A weight that was written is not yet one that proxies act on, and Istio no longer reports distribution. What is left
is to look: a proxy draws the version of each request independently, so the canary's count among ``n`` requests is
binomial, and a share that a weight explains only with odds of one in a thousand contradicts that weight. Nor does a
share agree with it that the weight before explains as well: proxies that were never told of the change show that one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from math import ceil, exp, inf, lgamma, log, log1p
from typing import Final

from canaryrollout.domain.evidence import Block

CONFIDENCE: Final = 0.999
MIN_REQUESTS_AT_LIMITS: Final = 20
"""Requests before the share says anything at weights 0 and 100, where one of the two versions expects none."""
STRETCH: Final = 4
"""How many times as many requests it takes to overrule what all traffic says by the newest: with the fewest that say
anything, a share of twice the weight would often pass for agreement."""
_RARE: Final = (1 - CONFIDENCE) / 2
_TELLING: Final = log(1 / (1 - CONFIDENCE))
"""Logarithm of how much likelier the weight has to make the requests than the weight before it does."""


class Agreement(StrEnum):
    """Whether observed traffic agrees with a weight."""

    AGREES = "Agrees"
    CONTRADICTS = "Contradicts"
    TOO_FEW = "TooFew"


class State(StrEnum):
    """What is known of a weight, as status spells it."""

    CONVERGED = "Converged"
    TOO_LITTLE_TRAFFIC = "TooLittleTraffic"
    SHARE_CONTRADICTS = "ShareContradicts"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a weight is in effect.

    Attributes:
        state: What is known of it.
        message: The same for people, with the numbers it is known from.
        since: From when on the canary is judged at this weight; ``None`` while that is not decided.
    """

    state: State
    message: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class ShareCheck:
    """The answer, and the same for people with its numbers."""

    agreement: Agreement
    message: str


def agreement(canary_requests: int, stable_requests: int, weight: int, previous: int | None = None) -> ShareCheck:
    """Check whether the canary's share of requests agrees with its weight.

    The share agrees when the weight lies in the exact two-sided (Clopper-Pearson) interval of the share at 99.9 %
    confidence, that is, when neither tail of the binomial distribution beyond the observed count is less likely than
    0.05 %. At weights 0 and 100 a single request to the other version contradicts.

    Where the weight before is known, traffic has to tell the two apart: the weight must make the requests a thousand
    times likelier than the weight before it does (Wald, Sequential Tests of Statistical Hypotheses, 1945). Proxies
    that still act on the weight before pass for agreement in less than one of a thousand cases, however often one
    looks.

    Args:
        canary_requests: Requests that the canary answered.
        stable_requests: Requests that the stable version answered in the same time.
        weight: The canary's weight in percent, from 0 to 100.
        previous: The weight before it in percent; ``None`` where there is none to tell it from.

    Returns:
        The agreement; `Agreement.TOO_FEW` while even a version that got no request at all would not contradict its
        weight, so that agreement would say nothing (at weights 0 and 100: while there are fewer than 20 requests), and
        while the requests may as well be those of the weight before.

    Raises:
        ValueError: If a count is negative or a weight is no percentage.
    """
    if canary_requests < 0 or stable_requests < 0 or not 0 <= weight <= 100:
        raise ValueError(f"no counts and weight: canary {canary_requests}, stable {stable_requests}, weight {weight}")
    if previous is not None and not 0 <= previous <= 100:
        raise ValueError(f"no weight before {weight}: {previous}")
    n = canary_requests + stable_requests
    needed = _needed(weight)
    if n < needed:
        return ShareCheck(
            Agreement.TOO_FEW, f"{n} of at least {needed} requests to tell whether weight {weight} is in effect"
        )
    observed = f"canary had {canary_requests} of {n} requests ({100 * canary_requests / n:.1f} %) at weight {weight}"
    if tail(canary_requests, n, weight / 100) <= _RARE:
        return ShareCheck(Agreement.CONTRADICTS, observed)
    if (
        previous is None
        or previous == weight
        or _favour(canary_requests, stable_requests, weight, previous) >= _TELLING
    ):
        return ShareCheck(Agreement.AGREES, observed)
    return ShareCheck(Agreement.TOO_FEW, f"{observed}, too few to tell it from weight {previous} before")


def _favour(canary: int, stable: int, weight: int, previous: int) -> float:
    """Return the logarithm of how much likelier the counts are at a weight than at the weight before."""
    counts = ((canary, weight, previous), (stable, 100 - weight, 100 - previous))
    return sum(n * (_log(now) - _log(before)) for n, now, before in counts if n)


def _needed_to_tell(weight: int, previous: int | None) -> int:
    """Return how many requests tell a weight that is in effect from the weight before, on average."""
    gain = _favour(weight, 100 - weight, weight, previous) / 100 if previous is not None else 0.0
    return ceil(_TELLING / gain) if gain > 0 else 0


def _log(share: int) -> float:
    return log(share) if share else -inf


def _needed(weight: int) -> int:
    if weight in (0, 100):
        return MIN_REQUESTS_AT_LIMITS
    return ceil(log(_RARE) / log1p(-min(weight, 100 - weight) / 100))


def look(
    blocks: Sequence[Block], weight: int, *, start: datetime, bound: datetime | None, previous: int | None = None
) -> Finding:
    """Find out since when a weight is in effect, from all traffic since it was written.

    Block by block, the first of these that holds decides, so that the answer depends on the data alone and not on how
    often somebody looked:

    - All traffic so far agrees with the weight: it is in effect from the start.
    - It does not, but the newest stretch that is long enough to tell agrees: the proxies took the weight
      over late, and it is in effect from the beginning of that stretch.
    - The bound is reached: with too little traffic to tell, the weight is taken to be in effect from the start; where
      traffic contradicts it, the canary is judged from here on all the same.

    Args:
        blocks: Blocks from ``start`` on, without gaps, oldest first.
        weight: The canary's weight in percent.
        start: Where the evidence of the weight begins.
        bound: How long traffic may disagree before analysis starts anyway; ``None`` for as long as it does.
        previous: The weight before it in percent, which proxies that are late still act on; ``None`` if there is none.
    """
    canary = stable = 0
    newest = _Stretch(max(STRETCH * _needed(weight), 2 * _needed_to_tell(weight, previous)))
    found = Finding(State.TOO_LITTLE_TRAFFIC, "no complete interval of data yet")
    for block in blocks:
        canary += block.canary.requests
        stable += block.stable.requests
        newest.add(block)
        whole = agreement(canary, stable, weight, previous)
        if whole.agreement is Agreement.AGREES:
            return Finding(State.CONVERGED, whole.message, start)
        if newest.suffices:
            latest = agreement(newest.canary, newest.stable, weight, previous)
            if latest.agreement is Agreement.AGREES:
                return Finding(State.CONVERGED, latest.message, newest.start)
        few = whole.agreement is Agreement.TOO_FEW
        late = bound is not None and block.end >= bound
        state = State.TOO_LITTLE_TRAFFIC if few else State.SHARE_CONTRADICTS
        found = Finding(state, whole.message, (start if few else block.end) if late else None)
        if late:
            break
    return found


class _Stretch:
    """The newest blocks that together have enough requests, or all while there are not enough."""

    def __init__(self, needed: int) -> None:
        self._needed = needed
        self._blocks: deque[Block] = deque()
        self.canary = self.stable = 0

    @property
    def start(self) -> datetime:
        return self._blocks[0].start

    @property
    def suffices(self) -> bool:
        return self.canary + self.stable >= self._needed

    def add(self, block: Block) -> None:
        self._blocks.append(block)
        self._count(block, 1)
        while self.canary + self.stable - _requests(self._blocks[0]) >= self._needed:
            self._count(self._blocks.popleft(), -1)

    def _count(self, block: Block, sign: int) -> None:
        self.canary += sign * block.canary.requests
        self.stable += sign * block.stable.requests


def _requests(block: Block) -> int:
    return block.canary.requests + block.stable.requests


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
        if term <= total * 1e-12:
            break
    return min(1.0, total)
