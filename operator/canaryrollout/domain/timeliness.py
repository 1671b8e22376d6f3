"""Whether evidence is recent enough to go on with: passing is a statement about now, and answers may come late.

Evidence comes in pieces. After an outage or a restart the oldest pieces come first, and queries of the user's own are
answered when the provider gets to them, after the counts of the same time. What was good then says nothing about a
canary that has broken since, so more traffic waits for the rest. Taking traffic back waits for nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from canaryrollout.api.spec import Analysis
from canaryrollout.domain.evidence import Evidence

INTERVALS: Final = 3
"""How many intervals evidence may be behind what could be known."""
AT_LEAST: Final = timedelta(minutes=1)
"""How far behind it may be however short the interval is: a slow provider is not one that catches up."""


def judged_until(analysis: Analysis, evidence: Evidence) -> datetime:
    """Return up to when all gates have evidence: blocks, and readings of each metric of the user's own.

    Args:
        analysis: What the canary is judged by.
        evidence: What was read in the step so far.
    """
    newest = [evidence.until]
    for metric in analysis.metrics:
        readings = evidence.metrics.get(metric.name, ())
        newest.append(readings[-1].at if readings else evidence.request.start)
    return min(newest)


def is_behind(analysis: Analysis, until: datetime, now: datetime, lag: timedelta) -> bool:
    """Return whether so much more can be known by now that nothing should be concluded from what is at hand.

    Args:
        analysis: What the canary is judged by.
        until: Up to when there is evidence.
        now: The present time.
        lag: How far behind the present the provider's data is.
    """
    return now - lag - until > max(INTERVALS * analysis.interval, AT_LEAST)
