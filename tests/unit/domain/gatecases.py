"""What tests of gates are made of: counts, blocks, evidence, and a judgement on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from canaryrollout.api.spec import Analysis
from canaryrollout.api.status import Baseline, Counts, FinishedStep
from canaryrollout.domain.evidence import Block, Evidence, EvidenceRequest
from canaryrollout.domain.gates import judge
from canaryrollout.domain.results import Judgement

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
INTERVAL = timedelta(seconds=10)
REQUEST = EvidenceRequest(
    provider="default",
    namespace="shop",
    host="reviews.shop.svc.cluster.local",
    stable="v1",
    canary="v2",
    version_label="version",
    start=T0,
    interval=INTERVAL,
)
ERRORS = {"errorRate": {"max": "1%"}}
RELATIVE = {"errorRate": {"maxRelative": "150%"}}
LATENCY = {"latency": {"threshold": "500ms", "maxSlow": "1%"}}
BOTH = {
    "errorRate": {"max": "1%", "maxRelative": "150%"},
    "latency": {"threshold": "500ms", "maxSlow": "2%", "maxRelative": "150%"},
}


def counts(requests: int = 0, errors: int = 0, timed: int = 0, slow: int = 0) -> Counts:
    return Counts(requests=requests, errors=errors, timed=timed, slow=slow)


def blocks(*contents: dict[str, Any]) -> tuple[Block, ...]:
    return tuple(Block(T0 + i * INTERVAL, T0 + (i + 1) * INTERVAL, **content) for i, content in enumerate(contents))


def evidence(*contents: dict[str, Any], **fields: Any) -> Evidence:
    return Evidence(REQUEST, blocks(*contents), **fields)


def one(canary: Counts, stable: Counts | None = None, unreached: int = 0) -> Evidence:
    return evidence({"canary": canary, "stable": stable or counts(10_000), "unreached": unreached})


def verdict(
    analysis: dict[str, Any],
    found: Evidence | None,
    *,
    weight: int = 10,
    finished: Sequence[FinishedStep] = (),
    baseline: Baseline | None = None,
    since: datetime | None = None,
    opening: Sequence[Block] = (),
) -> Judgement:
    model = Analysis.model_validate(analysis)
    return judge(model, found, weight=weight, finished=finished, baseline=baseline, since=since, opening=opening)


some_counts = st.builds(
    lambda requests, errors, timed, slow: counts(requests, min(errors, requests), timed, min(slow, timed)),
    st.integers(0, 3000),
    st.integers(0, 60),
    st.integers(0, 3000),
    st.integers(0, 60),
)
some_blocks = st.lists(
    st.fixed_dictionaries(
        {
            "canary": some_counts,
            "stable": some_counts,
            "unreached": st.integers(0, 5),
            "canary_seen": st.booleans(),
        }
    ),
    max_size=6,
)


def worse(contents: list[dict[str, Any]], more: int) -> list[dict[str, Any]]:
    """Return the same blocks with more failed and slow requests of the canary, as far as there are requests."""
    return [
        {
            **content,
            "canary": counts(c.requests, min(c.errors + more, c.requests), c.timed, min(c.slow + more, c.timed)),
        }
        for content in contents
        for c in [content["canary"]]
    ]
