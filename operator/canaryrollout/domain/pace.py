"""Whether traffic is enough: a step that can never pass in time should say so at once, with the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import ceil, sqrt

from canaryrollout.api.quantities import format_duration

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast requests come in.

    Attributes:
        requests: Requests of the canary that were seen.
        over: In how much time.
    """

    requests: int
    over: timedelta

    @property
    def fastest(self) -> float:
        """Return the greatest rate that is still plausible, in requests per minute.

        About the upper 97.5 % bound of a Poisson mean, ``x + 2 sqrt(x) + 3``: with few requests seen the true rate may
        be well above the one seen, and a false "never" would mislead.
        """
        return (self.requests + 2 * sqrt(self.requests) + 3) / (self.over / _MINUTE)

    def too_slow(self, needed: int, left: timedelta) -> str:
        """Say that the requests a step still needs cannot come before its deadline.

        Args:
            needed: About how many more requests of the canary are needed.
            left: Time until the deadline.

        Returns:
            For people: ``needs about 300 more requests, sees 4/min, would take 1h15m; deadline in 30m``; empty where
            they may come in time, or where nothing was seen of the traffic yet.
        """
        if not needed or self.over <= timedelta() or needed / self.fastest * _MINUTE <= left:
            return ""
        per_minute = self.requests / (self.over / _MINUTE)
        if per_minute:
            shown = f"{per_minute:.0f}" if per_minute >= 1 else f"{per_minute:.1g}"
            minutes = min(ceil(needed / per_minute), 30 * 24 * 60)
            pace = f"sees {shown}/min, would take {format_duration(minutes * _MINUTE)}"
        else:
            pace = f"has seen none in {_rounded(self.over)}"
        return f"needs about {needed:,} more requests, {pace}; deadline in {_rounded(left)}"


def _rounded(time: timedelta) -> str:
    """Spell a time for people: whole minutes, or seconds where there are fewer than two."""
    unit = _MINUTE if time >= 2 * _MINUTE else timedelta(seconds=1)
    return format_duration(max(time // unit, 0) * unit)
