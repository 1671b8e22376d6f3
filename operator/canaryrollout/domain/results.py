"""What a gate says, with the numbers it says it from.

Every rule, plain or sequential, on counts or on a metric of the user's own, ends in a `GateResult`; all of them
together are a `Judgement`. Status, history, Events and the offline tools show these and nothing else, so that a person
reads the same reason everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from math import exp, log
from typing import Final

from canaryrollout.api.quantities import format_percent
from canaryrollout.api.status import Counts, Verdict


@dataclass(frozen=True, slots=True)
class Sample:
    """How many requests had a property (``bad``) out of how many."""

    bad: int
    of: int

    @property
    def rate(self) -> Fraction:
        """Return the share of bad requests; zero where there were none at all."""
        return Fraction(self.bad, self.of) if self.of else Fraction(0)


@dataclass(frozen=True, slots=True)
class LimitEvidence:
    """What the evidence says on one limit of a gate.

    Attributes:
        limit: The limit as the user wrote it, such as ``maxRelative 150%``.
        log_evidence: Natural logarithm of the e-value; ``None`` where the rule has none.
        log_threshold: Natural logarithm of the e-value at which the gate fails.
    """

    limit: str
    log_evidence: float | None = None
    log_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate says.

    Attributes:
        name: ``errorRate``, ``latency``, ``metrics/<name>``, or ``hardCeiling``.
        verdict: Pass, Fail, Inconclusive or Error.
        reason: WithinLimits, AboveMax, BelowMin, AboveRelative, AboveIncrease, HardCeiling; NoData, NoTraffic,
            LowSample, LowStableSample, OutsideLimits, NotANumber, NoBaseline, ZeroBaseline, PartialData, NotYetSure,
            Suspicious; ProviderError, BadQuery.
        message: The same for people, with its numbers.
        canary: What was counted of the canary; ``None`` where nothing is counted.
        stable: What it was compared with.
        limits: The evidence on each limit.
        value: Newest value of a metric of the user's own.
        baseline: The value it was compared with.
        at: Up to when the evidence was taken.
        needed: About how many more requests of the canary it takes before the gate can pass; 0 where none are lacking,
            or where that is not known.
    """

    name: str
    verdict: Verdict
    reason: str
    message: str
    canary: Sample | None = None
    stable: Sample | None = None
    limits: tuple[LimitEvidence, ...] = ()
    value: Fraction | None = None
    baseline: Fraction | None = None
    at: datetime | None = None
    needed: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What all gates together say: the worst of them, Fail before Error before Inconclusive before Pass.

    Attributes:
        verdict: The worst verdict.
        reason: Reason of the first gate with that verdict.
        message: Messages of the gates with that verdict, and the provider's remarks on the counts.
        gates: Every gate's result.
        canary: Requests of the canary that were judged (without those that reached no version).
        stable: Requests of the stable version in the same blocks.
        evidence: Evidence that later steps begin with, by limit; see ``FinishedStep.evidence``.
    """

    verdict: Verdict
    reason: str
    message: str
    gates: tuple[GateResult, ...]
    canary: Counts
    stable: Counts
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Return about how many more requests of the canary it takes before all gates can pass; 0 where unknown."""
        return max(gate.needed for gate in self.gates)


_SEVERITY: Final = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)


def worst(
    results: Sequence[GateResult],
    canary: Counts,
    stable: Counts,
    *,
    notes: Sequence[str] = (),
    evidence: Mapping[str, str] | None = None,
) -> Judgement:
    """Put results together.

    Args:
        results: One for each gate, at least one.
        canary: Counts of the canary that were judged.
        stable: Counts of the stable version in the same time.
        notes: Remarks on the counts that put none in doubt.
        evidence: Evidence that later steps begin with.
    """
    verdict = min((result.verdict for result in results), key=_SEVERITY.index)
    decisive = [result for result in results if result.verdict is verdict]
    message = "; ".join(dict.fromkeys([*(result.message for result in decisive), *notes]))
    return Judgement(verdict, decisive[0].reason, message, tuple(results), canary, stable, evidence or {})


def evidence_text(log_value: float) -> str:
    """Spell an e-value, given as its logarithm, for people: two digits, and an end where larger says nothing more."""
    if log_value > log(999_999):
        return "1,000,000"
    value = exp(log_value)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def percent(value: Fraction) -> str:
    """Spell a share for people, rounded to about three digits."""
    top, bottom = value.numerator, value.denominator
    digits = 1 if 10 * top >= bottom else 2 if 100 * top >= bottom else 3 if 1000 * top >= bottom else 4
    scale = 10**digits
    whole, rest = divmod((200 * scale * top + bottom) // (2 * bottom), scale)
    return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".") + " %"


def exact_percent(value: Fraction) -> str:
    """Spell a limit for people, as exactly as the user wrote it."""
    return format_percent(value).replace("%", " %")
