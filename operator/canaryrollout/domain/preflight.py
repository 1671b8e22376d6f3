"""What the provider of evidence has to be able to tell before the canary gets its first request.

A threshold that is no bucket edge, or labels that queries do not find, would otherwise show as a step that never
passes, with users' requests on the canary. An answer that speaks against the rollout is heeded before anything in the
mesh is touched; one that has not come yet is waited for last, because everything else can be made ready meanwhile.
"""

from __future__ import annotations

from canaryrollout.api.status import Baseline, Phase
from canaryrollout.domain.decision import Decision
from canaryrollout.domain.draft import Draft
from canaryrollout.domain.evidence import Preflight
from canaryrollout.domain.outage import AWAY, HEALTHY, came_back, seen_outage, went_away


def refuse(draft: Draft) -> Decision | None:
    """Return why the rollout cannot be judged, as far as is known yet; it is found out again until it can be."""
    answer = draft.case.observation.preflight
    if draft.record.promote or answer is None:
        return None
    if answer.error:
        went_away(draft, answer.error, answer.error_since)
        return None
    found = _objection(answer)
    if found is None:
        return None
    reason, message = found
    draft.condition(HEALTHY, "False", reason, message)
    return draft.move(Phase.BLOCKED, reason, message, wake_in=draft.case.settings.blocked_retry)


def await_provider(draft: Draft) -> Decision | None:
    """Wait for the provider's answers, and record how many requests reach no version while the canary has none."""
    if draft.record.promote:
        return None
    waiting = _without_answer(draft) or _partial(draft) or _measure(draft)
    if waiting is not None:
        return waiting
    came_back(draft)
    _show(draft)
    return None


def _objection(answer: Preflight) -> tuple[str, str] | None:
    """Return reason and words of what keeps the provider from judging this rollout."""
    if answer.refused:
        return "ProviderRefused", answer.refused
    if answer.edge_problem:
        return "LatencyThreshold", answer.edge_problem
    asked = answer.request
    if answer.warnings or not answer.host_series or asked.stable in answer.versions:
        return None
    others = ", ".join(repr(version) for version in answer.versions) or "no version"
    return "MetricsLabels", (
        f"provider {asked.provider} has series of requests to {asked.host} for {others}, and none for the stable "
        f"version {asked.stable!r}: either it had no request yet, or metrics name it otherwise. Compare the labels of "
        "its workloads (service.istio.io/canonical-revision, app.kubernetes.io/version, version: the first that is set "
        "is what Istio reports) with spec.versionLabel, and ask the administrator for the version label of the provider"
    )


def _without_answer(draft: Draft) -> Decision | None:
    """Return the wait for an answer that has not come, or cannot be had."""
    case = draft.case
    preflight, baseline = case.observation.preflight, case.observation.baseline
    failing = [asked for asked in (preflight, baseline) if asked is not None and asked.error]
    if failing:
        since = min((asked.error_since for asked in failing if asked.error_since is not None), default=None)
        message = f"{went_away(draft, failing[0].error, since)}; no traffic moves without"
        return draft.move(Phase.PREPARING, AWAY, message, wake_in=case.settings.retry)
    if preflight is None and seen_outage(draft) is not None:
        message = f"{went_away(draft, '', None)}; no traffic moves without"
        return draft.move(Phase.PREPARING, AWAY, message, wake_in=case.settings.retry)
    if preflight is None:
        message = f"asking provider {case.spec.analysis.provider} whether it can judge {draft.record.version}"
        return draft.move(Phase.PREPARING, "AwaitingPreflight", message, wake_in=case.settings.retry)
    return None


def _partial(draft: Draft) -> Decision | None:
    """Wait while a provider that answers in part does not show the stable version."""
    case, answer = draft.case, draft.case.observation.preflight
    if answer is None or not answer.warnings or answer.request.stable in answer.versions:
        return None
    message = (
        f"provider {case.spec.analysis.provider} shows no requests to {draft.status.stable_version}, but it may have "
        f"answered in part: {'; '.join(answer.warnings)}"
    )
    draft.condition(HEALTHY, "False", "PartialData", message)
    return draft.move(Phase.PREPARING, "PartialData", message, wake_in=case.settings.retry)


def _measure(draft: Draft) -> Decision | None:
    case, evidence = draft.case, draft.case.observation.baseline
    if draft.record.baseline is not None:
        return None
    if evidence is None or not evidence.blocks:
        message = f"asking provider {case.spec.analysis.provider} for requests before the first step"
        return draft.move(Phase.PREPARING, "AwaitingBaseline", message, wake_in=case.settings.retry)
    if evidence.warnings:
        message = f"requests before the first step may be known in part only: {'; '.join(evidence.warnings)}"
        draft.condition(HEALTHY, "False", "PartialData", message)
        return draft.move(Phase.PREPARING, "PartialData", message, wake_in=case.settings.retry)
    block = evidence.blocks[-1]
    seconds = round((block.end - block.start).total_seconds())
    draft.rollout(baseline=Baseline(seconds=seconds, unreached=block.unreached))
    return None


def _show(draft: Draft) -> None:
    """Say that the provider answers, or what remains doubtful although traffic may move."""
    answer, provider = draft.case.observation.preflight, draft.case.spec.analysis.provider
    if answer is not None and answer.warnings:
        draft.condition(HEALTHY, "False", "PartialData", "; ".join(answer.warnings))
    elif answer is not None and not answer.host_series:
        message = (
            f"provider {provider} has no series of requests to {answer.request.host}: without traffic there are none, "
            "and no step passes without"
        )
        draft.condition(HEALTHY, "Unknown", "NoSeries", message)
        draft.note_once("NoSeries", message)
    else:
        draft.condition(HEALTHY, "True", "Answering", f"provider {provider} answers")
