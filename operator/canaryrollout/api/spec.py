"""The part of a CanaryRollout that its user writes.

These models are the one source of the CRD: ``make generate`` writes the schema, its descriptions and its validation
rules from them, and the operator reads objects through them. A field's description is what ``kubectl explain`` shows.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from canaryrollout.api.quantities import Decimal, Duration, Percent, parse_percent

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
VersionValue = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]


class ApiModel(BaseModel):
    """Base of every API model: camelCase outside, immutable inside, unknown fields ignored as the API server prunes."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Approval(StrEnum):
    """Whether a step waits for a person once its gates have passed."""

    REQUIRED = "Required"
    NOT_REQUIRED = "NotRequired"


class OnNoData(StrEnum):
    """What happens when a step's deadline nears and the provider has no data on the canary."""

    HOLD = "Hold"
    ROLLBACK = "Rollback"


class OnDeadline(StrEnum):
    """What happens when a step has not passed before its deadline."""

    HOLD = "Hold"
    ROLLBACK = "Rollback"


class AnalysisMode(StrEnum):
    """How counts become a verdict."""

    THRESHOLD = "Threshold"


class VirtualServiceRef(ApiModel):
    """A VirtualService in the rollout's namespace and those of its http routes that the rollout moves."""

    name: DnsName
    routes: tuple[str, ...] = ()


class DestinationRuleRef(ApiModel):
    """The DestinationRule in the rollout's namespace that holds the subsets of the host."""

    name: DnsName


class IstioRouting(ApiModel):
    """Where the traffic of the host is routed by Istio."""

    virtual_services: tuple[VirtualServiceRef, ...] = Field(min_length=1, max_length=20)
    destination_rule: DestinationRuleRef


class Step(ApiModel):
    """One weight of the canary and what it takes to go beyond it."""

    weight: int = Field(ge=1, le=100)
    hold: Duration | None = None
    approval: Approval | None = None


DEFAULT_STEPS = (Step(weight=10), Step(weight=30), Step(weight=50), Step(weight=100))


class Readiness(ApiModel):
    """How many ready endpoints the canary needs before it is given traffic, and how long it may have none."""

    min_ready: int | str = 1
    unready_grace: Duration = timedelta(seconds=10)

    def required(self, stable_ready: int) -> int:
        """Return how many ready endpoints the canary needs while stable has ``stable_ready``; at least one."""
        if isinstance(self.min_ready, int):
            return max(1, self.min_ready)
        share: Fraction = parse_percent(self.min_ready)
        return max(1, -(-stable_ready * share.numerator // share.denominator))


class ErrorRateGate(ApiModel):
    """Limits on the fraction of the canary's requests that end in a server error."""

    max: Percent | None = None
    max_relative: Percent | None = None


class LatencyGate(ApiModel):
    """Limits on the fraction of the canary's requests that take longer than a threshold."""

    threshold: Duration
    max_slow: Percent | None = None
    max_relative: Percent | None = None


class MetricGate(ApiModel):
    """A limit on the value of a PromQL query of the user's own."""

    name: DnsLabel
    query: str = Field(min_length=1, max_length=4096)
    max: Decimal | None = None
    min: Decimal | None = None


class Analysis(ApiModel):
    """What the canary is judged by."""

    provider: DnsLabel = "default"
    mode: AnalysisMode | None = None
    interval: Duration = timedelta(seconds=10)
    min_requests: int = Field(default=100, ge=1, le=1_000_000)
    error_rate: ErrorRateGate | None = None
    latency: LatencyGate | None = None
    metrics: tuple[MetricGate, ...] = ()
    on_no_data: OnNoData = OnNoData.HOLD


class CanaryRolloutSpec(ApiModel):
    """Which version should serve a host, and how traffic gets there."""

    version: VersionValue
    initial_stable_version: VersionValue | None = None
    host: DnsName
    version_label: str = "version"
    istio: IstioRouting
    steps: tuple[Step, ...] = Field(default=DEFAULT_STEPS, min_length=1, max_length=50)
    hold: Duration = timedelta(minutes=1)
    readiness: Readiness = Readiness()
    analysis: Analysis = Analysis()
    progress_deadline: Duration = timedelta(minutes=30)
    on_deadline: OnDeadline = OnDeadline.ROLLBACK
    paused: bool = False

    def as_object(self) -> dict[str, Any]:
        """Return the spec as the API spells it, without what the user left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
