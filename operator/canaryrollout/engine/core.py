"""The pure core as the engine calls it, with the settings of the domain already bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus
from canaryrollout.domain.decision import Decision, Needs
from canaryrollout.domain.observation import Identity, Observation


@dataclass(frozen=True, slots=True)
class Core:
    """The functions that decide.

    Attributes:
        needs: Says what a pass has to read.
        decide: Says what is to be done, given what was read.
        decide_invalid: Says what is to be done about an object that cannot be read as a CanaryRollout.
        decide_unread: Says what is to be done about an object whose status cannot be read.
    """

    needs: Callable[[CanaryRolloutSpec, CanaryRolloutStatus, Identity, datetime], Needs]
    decide: Callable[[CanaryRolloutSpec, CanaryRolloutStatus, Observation, datetime], Decision]
    decide_invalid: Callable[[CanaryRolloutStatus, Identity, tuple[str, ...], datetime], Decision]
    decide_unread: Callable[[CanaryRolloutSpec | None, Identity, tuple[str, ...], datetime], Decision]
