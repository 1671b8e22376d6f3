"""The one number that a query of the user's own has to give, or why an answer has none.

Users see these reasons in status, so each way of not being a number has words of its own that say what to change.
"""

from __future__ import annotations

import math
from datetime import datetime
from fractions import Fraction
from typing import Any

from canaryrollout.domain.evidence import MetricValue


def value_of(result_type: str, result: Any, at: datetime) -> MetricValue:
    """Read the one number that a query of the user's own must give.

    Args:
        result_type: Type of the result, as Prometheus names it.
        result: The result.
        at: For which time it was asked.

    Returns:
        The value, or why there is none.
    """
    if result_type == "vector" and isinstance(result, list):
        if not result:
            return MetricValue(None, at, "the query finds no series", "NoData")
        if len(result) > 1:
            problem = f"the query gives {len(result)} series; make it one, for example with sum()"
            return MetricValue(None, at, problem, "BadQuery")
        if "value" not in result[0]:
            problem = "the query gives a native histogram; make it one number, for example with histogram_fraction()"
            return MetricValue(None, at, problem, "BadQuery")
        text = str(result[0]["value"][1])
    elif result_type == "scalar" and isinstance(result, list) and len(result) == 2:
        text = str(result[1])
    else:
        return MetricValue(None, at, f"the query gives a {result_type}; make it one number", "BadQuery")
    try:
        number = float(text)
    except ValueError:
        return MetricValue(None, at, f"the query gives {text!r}, which is no number", "BadQuery")
    if math.isnan(number):
        cause = "0 divided by 0, or a histogram without requests"
        return MetricValue(None, at, f"the query gives NaN, which is no number to judge: {cause}", "NotANumber")
    if math.isinf(number):
        problem = f"the query gives {text}, which is no number to judge: a division by 0, or a bound without end"
        return MetricValue(None, at, problem, "NotANumber")
    return MetricValue(Fraction(repr(number)), at)
