"""Names as the API spells them, each with the words that help who misspelled it.

Native patterns of a schema answer with the pattern; a rule answers with what would be right.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from canaryrollout.api.rules import Rule, matching

ObjectName = Annotated[
    str,
    Field(max_length=253),
    matching(
        r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$",
        "must be the name of an object in the same namespace, without the namespace, such as reviews",
    ),
]
Host = Annotated[
    str,
    Field(max_length=253),
    matching(
        r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$",
        "must be the name of a service, such as reviews or reviews.shop.svc.cluster.local: "
        "lower case, without scheme, port, path or wildcard",
    ),
]
ProviderName = Annotated[
    str,
    Field(max_length=63),
    matching(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "must be the name of a provider that the administrator has set up, such as default; never an address",
    ),
]
MetricName = Annotated[
    str,
    Field(max_length=63),
    matching(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "must be a name of lower case letters, digits and dashes, such as checkout-failures",
    ),
    Rule(
        cel="!(self in ['errorRate', 'latency'])",
        message="must not be the name of a built-in gate; choose another",
        holds=lambda name: name not in {"errorRate", "latency"},
    ),
]
Version = Annotated[
    str,
    Field(max_length=63),
    matching(
        r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        "must be a value that a label can have, such as v2 or 1.4.2: letters, digits, '-', '_' and '.' between them",
    ),
]
LabelKey = Annotated[
    str,
    Field(max_length=317),
    matching(
        r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
        "must be the key of a label, such as version or app.kubernetes.io/version",
    ),
]
RouteName = Annotated[
    str,
    Field(max_length=253),
    matching(r"^\S(.*\S)?$", "must be the name of an http route of the VirtualService, such as primary"),
]
