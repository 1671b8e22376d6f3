"""What written weights mean, in percent.

Istio divides by the sum of a route's weights; an absent weight is 0, but a single destination has everything anyway.
Decisions speak of percent; this is where one becomes the other.
"""

from __future__ import annotations

from collections.abc import Sequence


def percentages(written: Sequence[int | None]) -> tuple[int, ...] | None:
    """Turn the weights of a route into percent that sum to 100.

    Rounding is by largest remainder, but a destination that has any traffic keeps at least one percent.

    Args:
        written: Weight of each destination of the route as written; ``None`` where it is absent.

    Returns:
        The share of each, or ``None`` where no destination has any: Istio refuses such a route.
    """
    if len(written) == 1:
        return (100,)
    weights = [weight or 0 for weight in written]
    whole = sum(weights)
    if whole == 0:
        return None
    shares = [max(100 * weight // whole, 1 if weight else 0) for weight in weights]
    remainders = [100 * weight % whole if 100 * weight >= whole else 0 for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-remainders[i], i))
    for index in order[: max(0, 100 - sum(shares))]:
        shares[index] += 1
    while sum(shares) > 100:
        shares[shares.index(max(shares))] -= 1
    return tuple(shares)
