"""The part of a CanaryRollout that its user writes.

These models are the one source of the CRD: ``make generate`` writes the schema, its descriptions and its validation
rules from them, and the operator reads objects through them. The text below a field is what ``kubectl explain`` shows,
so it is written for the person who writes the YAML.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from canaryrollout.api.names import Host, LabelKey, MetricName, ObjectName, ProviderName, RouteName, Version
from canaryrollout.api.quantities import (
    DECIMAL_PATTERN,
    DURATION_PATTERN,
    Decimal,
    Duration,
    MinReady,
    Ratio,
    Share,
    between,
    parse_percent,
)
from canaryrollout.api.rules import ListMap, ListSet, Rule, cel_string, unchangeable, with_rules


class ApiModel(BaseModel):
    """Base of every API model: camelCase outside, immutable inside, unknown fields ignored as the API server prunes."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules on several fields together."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the rules of the model to its schema."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        schema.update(with_rules(schema, cls.rules))
        return reference


class Approval(StrEnum):
    """Whether a step waits for a person once its gates have passed."""

    REQUIRED = "Required"
    NOT_REQUIRED = "NotRequired"


class OnNoData(StrEnum):
    """What happens when the provider has no data on the canary."""

    HOLD = "Hold"
    ROLLBACK = "Rollback"


class OnDeadline(StrEnum):
    """What happens when a step has not passed before its deadline."""

    HOLD = "Hold"
    ROLLBACK = "Rollback"


class AnalysisMode(StrEnum):
    """How counts become a verdict."""

    SEQUENTIAL = "Sequential"
    THRESHOLD = "Threshold"


class Assurance(StrEnum):
    """What passing takes, beyond that nothing speaks against the canary."""

    STANDARD = "Standard"
    STRICT = "Strict"


class Convergence(StrEnum):
    """Whether analysis waits until observed traffic agrees with the weight, however long that takes."""

    REQUIRED = "Required"
    NOT_REQUIRED = "NotRequired"


class VirtualServiceRef(ApiModel):
    """A VirtualService in the rollout's namespace, and those of its http routes that the rollout moves."""

    name: ObjectName
    """Name of the VirtualService, in the namespace of the rollout."""
    routes: Annotated[
        tuple[RouteName, ...],
        Field(max_length=50),
        ListSet(),
        Rule(
            cel="size(self) > 0",
            message="must name at least one http route; leave it out where the VirtualService has only one",
            holds=lambda _: True,  # an empty list is read as one left out
        ),
    ] = ()
    """Names of the http routes to move. Every other route is left alone. It may be left out where the VirtualService
    has only one http route."""


class DestinationRuleRef(ApiModel):
    """The DestinationRule in the rollout's namespace that holds the subsets of the host."""

    name: ObjectName
    """Name of the DestinationRule, in the namespace of the rollout."""


class IstioRouting(ApiModel):
    """Traffic of the host is routed by Istio: by VirtualServices that split it among subsets of a DestinationRule."""

    virtual_services: Annotated[tuple[VirtualServiceRef, ...], Field(min_length=1, max_length=20), ListMap("name")]
    """The VirtualServices that route to the host, for example one for the mesh and one for a gateway. All are kept in
    step. A VirtualService may be listed once."""
    destination_rule: DestinationRuleRef
    """The DestinationRule of the host. A version that has no subset there gains one, a copy of the stable version's
    with the other label, for as long as it is needed."""


class Step(ApiModel):
    """One weight of the canary, and what it takes to go beyond it."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Share of requests that go to the canary, in percent, from 1 to 100. The stable version has the rest."""
    hold: Annotated[Duration, between("0s", "720h", example="2m")] | None = None
    """How long the canary has to keep this weight before the step can pass, such as 2m. It counts from when the weight
    is seen in effect. Where it is left out, spec.hold applies."""
    approval: Approval | None = None
    """Whether a person has to approve before the next step, once this one's gates have passed: Required or
    NotRequired, which is also what leaving it out means. Approve with the annotation
    canaryrollout.io/command: approve/VERSION/TOKEN, where TOKEN is any text not used before."""


DEFAULT_STEPS = (Step(weight=10), Step(weight=30), Step(weight=50), Step(weight=100))

Steps = Annotated[
    tuple[Step, ...],
    Field(min_length=1, max_length=50),
    Rule(
        cel="self.map(s, s.weight).isSorted() && self.all(a, self.exists_one(b, b.weight == a.weight))",
        message="weights must rise from step to step, such as 10, 30, 50, 100",
        holds=lambda steps: all(a.weight < b.weight for a, b in pairwise(steps)),
    ),
    Rule(
        cel="size(self) == 0 || self[size(self) - 1].weight == 100",
        message="the last step must have weight 100, add {weight: 100}",
        holds=lambda steps: steps[-1].weight == 100,
    ),
]


class Readiness(ApiModel):
    """How many ready endpoints the canary needs before it is given traffic, and for how long it may have none."""

    min_ready: MinReady = 1
    """Ready endpoints that the canary needs before its weight is raised: a count of 1 or more, or a percentage (1% to
    100%) of the stable version's ready endpoints, rounded up."""
    unready_grace: Annotated[Duration, between("0s", "1h", example="10s")] = timedelta(seconds=10)
    """For how long a canary that has traffic may be without any ready endpoint, before the traffic is taken back.
    Moments without add up, as in a crash loop, until it has had ready endpoints for this long in one go."""

    def required(self, stable_ready: int) -> int:
        """Return how many ready endpoints the canary needs while stable has ``stable_ready``; at least one."""
        if isinstance(self.min_ready, int):
            return max(1, self.min_ready)
        share: Fraction = parse_percent(self.min_ready)
        return max(1, -(-stable_ready * share.numerator // share.denominator))


class ErrorRateGate(ApiModel):
    """Limits on the share of the canary's requests that end in a server error (5xx, or a gRPC error of that kind)."""

    max: Share | None = None
    """The largest share of failed requests that passes, such as 1% or 0.5%. With 0%, a single failure fails."""
    max_relative: Ratio | None = None
    """The largest share of failed requests that passes, as a percentage of the stable version's over the same time:
    150% allows half as much again. It applies once the canary has three errors or more."""
    grpc_server_faults: Annotated[
        tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1, max_length=16), ListSet()
    ] = (2, 4, 12, 13, 14, 15)
    """The gRPC statuses that blame the server, by number. Default: 2 UNKNOWN, 4 DEADLINE_EXCEEDED, 12 UNIMPLEMENTED, 13
    INTERNAL, 14 UNAVAILABLE and 15 DATA_LOSS. A client that went away is never counted as a failure."""

    rules: ClassVar = (
        Rule(
            cel="has(self.max) || has(self.maxRelative)",
            message="must have a limit: set max (such as 1%), maxRelative (such as 150%) or both",
            holds=lambda gate: gate.max is not None or gate.max_relative is not None,
        ),
    )


class LatencyGate(ApiModel):
    """Limits on the share of the canary's requests that are slow: "p99 below 500 ms" is threshold 500ms, maxSlow 1%."""

    threshold: Annotated[Duration, between("1ms", "1h", example="500ms")]
    """A request that takes longer is slow. It has to be an edge of a bucket of the histogram that Istio reports, such
    as 5ms, 10ms, 25ms, 50ms, 100ms, 250ms, 500ms, 1s, 2s500ms, 5s or 10s."""
    max_slow: Share | None = None
    """The largest share of slow requests that passes, such as 1%."""
    max_relative: Ratio | None = None
    """The largest share of slow requests that passes, as a percentage of the stable version's over the same time: 150%
    allows half as much again."""

    rules: ClassVar = (
        Rule(
            cel="has(self.maxSlow) || has(self.maxRelative)",
            message="must have a limit: set maxSlow (such as 1%), maxRelative (such as 150%) or both",
            holds=lambda gate: gate.max_slow is not None or gate.max_relative is not None,
        ),
    )


class MetricGate(ApiModel):
    """Limits on the value of a PromQL query of your own."""

    name: MetricName
    """Name of the gate, shown in status and events, such as checkout-failures. It has to be unique."""
    query: Annotated[str, Field(min_length=1, max_length=4096)]
    """PromQL that answers with one number about the canary. $namespace, $host, $stable, $canary, $interval and $weight
    are filled in."""
    baseline_query: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """PromQL that answers with the number to compare with, usually the same query about $stable."""
    max: Decimal | None = None
    """The largest value that passes, a decimal number in quotes such as '5' or '0.25'."""
    min: Decimal | None = None
    """The smallest value that passes, a decimal number in quotes such as '0.25'."""
    max_relative: Ratio | None = None
    """The largest value that passes, as a percentage of what baselineQuery answers: 120% allows a fifth more."""
    max_increase: Decimal | None = None
    """How much larger than what baselineQuery answers the value may be, a decimal number in quotes such as '5'."""
    failure_limit: Annotated[int, Field(ge=0, le=100)] = 0
    """How many values of a step may be outside the limits before the canary fails. Default: 0, the first one fails."""
    on_no_data: OnNoData | None = None
    """What to do when this query has no data, in place of analysis.onNoData: Hold or Rollback."""

    rules: ClassVar = (
        Rule(
            cel="has(self.max) || has(self.min) || has(self.maxRelative) || has(self.maxIncrease)",
            message="must have a limit: set max, min, maxRelative (such as 120%) or maxIncrease; numbers are decimals "
            "in quotes such as '5'",
            holds=lambda gate: any(
                limit is not None for limit in (gate.max, gate.min, gate.max_relative, gate.max_increase)
            ),
        ),
        Rule(
            cel="has(self.baselineQuery) == (has(self.maxRelative) || has(self.maxIncrease))",
            message="must be set together with maxRelative or maxIncrease: one is what the other compares with",
            holds=lambda gate: (
                (gate.baseline_query is not None) == (gate.max_relative is not None or gate.max_increase is not None)
            ),
            field_path=".baselineQuery",
        ),
        Rule(
            cel="!has(self.max) || !has(self.min) || "
            f"!self.max.matches({cel_string(DECIMAL_PATTERN)}) || !self.min.matches({cel_string(DECIMAL_PATTERN)}) || "
            "double(self.min) <= double(self.max)",
            message="must not be above max: no value could pass",
            holds=lambda gate: gate.max is None or gate.min is None or gate.min <= gate.max,
            field_path=".min",
        ),
    )


class Analysis(ApiModel):
    """What the canary is judged by."""

    provider: ProviderName = "default"
    """Name of the Prometheus to ask, as the administrator of the operator has set it up; never an address."""
    mode: AnalysisMode | None = None
    """How counts become a verdict. Sequential weighs the evidence, so that looking often does not roll a good canary
    back. Threshold compares the counts of the whole step with the limits, and needs minRequests to pass and to fail.
    Where it is left out the operator chooses (Sequential), and shows it in status.analysis.mode."""
    confidence: Annotated[
        Share,
        Rule(
            cel=r"self.matches('^([5-9][0-9])(\\.[0-9]{1,6})?%$')",
            message="must be a percentage from 50% to below 100%, such as 95%",
            holds=lambda value: Fraction(1, 2) <= value < 1,
        ),
    ] = Fraction(95, 100)
    """In mode Sequential: how sure a rollback has to be. With 95% a canary within its limits is taken back by chance in
    at most 5% of rollouts, over all limits on errors and latency together."""
    assurance: Assurance = Assurance.STANDARD
    """In mode Sequential: what passing takes. Standard: enough requests, and nothing speaks against the canary. Strict:
    the evidence shows that the canary is within its limits, which takes more requests."""
    failure_limit: Annotated[int, Field(ge=0, le=1000)] | None = None
    """In mode Threshold: how many checks of a step, one for each interval, may exceed a limit before the canary fails.
    Where neither this nor consecutive is set, the first one fails."""
    consecutive: Annotated[int, Field(ge=1, le=1000)] | None = None
    """In mode Threshold: how many checks in a row have to exceed a limit before the canary fails."""
    require_convergence: Convergence = Convergence.NOT_REQUIRED
    """Whether a step waits until observed traffic agrees with its weight, however long that takes: Required or
    NotRequired. NotRequired starts the analysis after a while all the same, and says that traffic disagrees."""
    interval: Annotated[Duration, between("1s", "1h", example="10s")] = timedelta(seconds=10)
    """How often the canary is judged: how soon a breach is answered, and how often Prometheus is asked."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Requests to the canary that a step needs before it can pass. With fewer it stays where it is and says so."""
    error_rate: ErrorRateGate | None = None
    """Limits on the share of failed requests."""
    latency: LatencyGate | None = None
    """Limits on the share of slow requests."""
    metrics: Annotated[tuple[MetricGate, ...], Field(max_length=20), ListMap("name")] = ()
    """Limits on the values of PromQL queries of your own."""
    on_no_data: OnNoData = OnNoData.HOLD
    """What to do when Prometheus has no data on the canary although the step's hold is over: Hold keeps the weight
    until the deadline, Rollback takes the traffic back."""


def _deadline_is_reachable(spec: CanaryRolloutSpec) -> bool:
    return spec.progress_deadline >= spec.analysis.interval


class CanaryRolloutSpec(ApiModel):
    """Which version should serve a host, and how its traffic gets there."""

    version: Version
    """The version that should serve: the value of the version label on its workloads. Changing it starts a rollout;
    changing it back to the stable version takes the traffic back at once."""
    initial_stable_version: Version | None = None
    """The version that serves now. It is read only while status has no stable version and the mesh does not tell which
    one it is."""
    # Status is knowledge about this host under this label: which version is stable, what was changed in the mesh and
    # has to be undone. Under another host or label it would be wrong and look right, so both stay as created.
    host: Annotated[
        Host,
        unchangeable("cannot be changed, as the stable version is that of this host; create another CanaryRollout"),
    ]
    """The service whose traffic is moved, as the routes name it: a short name, which is resolved in the rollout's
    namespace, or a full one such as reviews.shop.svc.cluster.local. It belongs to the namespace of the rollout, has at
    most one CanaryRollout, and cannot be changed."""
    version_label: Annotated[
        LabelKey,
        unchangeable("cannot be changed, as the stable version is a value of this label; create another CanaryRollout"),
    ] = "version"
    """Label of the workloads that tells versions apart. It cannot be changed."""
    istio: IstioRouting
    """Traffic is routed by Istio. Exactly one kind of router has to be given, and this is the only one so far."""
    steps: Steps = DEFAULT_STEPS
    """The weights of the canary on its way to serve, and what it takes to pass each. Weights rise from step to step and
    end at 100. A change takes effect at once: the present weight stays, and the next step is the first above it.
    Default: 10, 30, 50 and 100."""
    hold: Annotated[Duration, between("0s", "720h", example="1m")] = timedelta(minutes=1)
    """How long the canary has to keep the weight of a step that names no hold of its own."""
    readiness: Readiness = Readiness()
    """How many ready endpoints the canary needs before it is given traffic, and for how long it may have none. The
    stable version has no settings: while it has lost half of its ready endpoints or more, and has fewer than its share
    of the traffic needs, the weight is not raised (StableShrinking). That ends when they are back, or after 5 minutes
    (timings.stableSettle of the operator), when the smaller number is taken for its new size; the progress deadline
    stands still meanwhile. While it has none, a canary that should be taken back keeps its weight (StableGone)."""
    analysis: Analysis = Analysis()
    """What the canary is judged by at every step. A failed gate takes all its traffic back. Where neither errorRate nor
    latency nor metrics is given, the operator's own limits apply; status.analysis shows what is in force."""
    progress_deadline: Annotated[Duration, between("1s", "720h", example="30m")] = timedelta(minutes=30)
    """How long a step may take beyond its hold, since the last one passed. The time stands still while a person is
    awaited."""
    on_deadline: OnDeadline = OnDeadline.ROLLBACK
    """What to do when a step has not passed before its deadline: Rollback takes the traffic back, Hold keeps the
    weight."""
    paused: bool = False
    """Stops raising the weight. It never stops analysis or taking traffic back."""

    rules: ClassVar = (
        Rule(
            cel="has(self.istio)",
            message="must have exactly one kind of router: set istio, with virtualServices and destinationRule",
            holds=lambda spec: spec.istio is not None,
            field_path=".istio",
            reason="FieldValueRequired",
        ),
        Rule(
            cel=f"!self.progressDeadline.matches('{DURATION_PATTERN}') || "
            f"!self.analysis.interval.matches('{DURATION_PATTERN}') || "
            "duration(self.progressDeadline) >= duration(self.analysis.interval)",
            message="must not be shorter than analysis.interval: no step could pass",
            holds=_deadline_is_reachable,
            field_path=".progressDeadline",
        ),
    )

    def as_object(self) -> dict[str, Any]:
        """Return the spec as the API spells it, without what the user left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
