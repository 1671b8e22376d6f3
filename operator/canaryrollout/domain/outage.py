"""What is said of a provider that gives no evidence: since when, why, and that it is back.

A metrics source gives its reasons in words, and they differ: a server that is away, a query that it refuses, a
threshold that is no bucket edge. All that they have in common is that nothing new can be judged; so that is what is
said, with the reason behind it. Since when is taken from status where that is earlier: a restart makes no outage newer.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from canaryrollout.api.status import Condition
from canaryrollout.domain.draft import Draft

HEALTHY: Final = "AnalysisHealthy"
"""The condition that tells whether the provider can be asked."""
AWAY: Final = "ProviderError"
"""Its reason while there is no evidence."""


def without_evidence(draft: Draft) -> str:
    """Return why there is no new evidence, and since when; empty while the provider answers, or was not heard yet."""
    evidence = draft.case.observation.evidence
    if evidence is None:
        return went_away(draft, "", None) if seen_outage(draft) is not None else ""
    return went_away(draft, evidence.error, evidence.error_since) if evidence.error else ""


def went_away(draft: Draft, error: str, since: datetime | None) -> str:
    """Put an outage into the condition and return its words.

    Args:
        draft: The decision in the making.
        error: Why there is no evidence; empty where that is not known again after a restart.
        since: Since when there is none.
    """
    seen = seen_outage(draft)
    if seen is not None:
        since = min(since or seen.last_transition_time, seen.last_transition_time)
    told = f" since {since:%H:%M:%S} UTC" if since is not None else ""
    words = f"no evidence from provider {draft.case.spec.analysis.provider}{told}: {error}"
    if seen is not None and not error:
        words = seen.message
    draft.condition(HEALTHY, "False", AWAY, words)
    return words


def seen_outage(draft: Draft) -> Condition | None:
    """Return the condition that status shows of an outage; ``None`` where it shows none."""
    return next(
        (c for c in draft.case.seen.conditions if (c.type, c.status, c.reason) == (HEALTHY, "False", AWAY)), None
    )


def came_back(draft: Draft) -> None:
    """Say once for each weight that evidence comes in again, unless it was missed for less than an interval."""
    seen, case = seen_outage(draft), draft.case
    if seen is None or case.now - seen.last_transition_time < case.spec.analysis.interval:
        return
    away = f"there was none since {seen.last_transition_time:%H:%M:%S} UTC"
    draft.note_once("ProviderBack", f"provider {case.spec.analysis.provider} gives evidence again; {away}")
