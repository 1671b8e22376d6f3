"""Errors of the lab, all written to be shown to a person as they are."""

from __future__ import annotations


class LabError(Exception):
    """Something about the lab is wrong; the message says what, where, and what to do."""


class ToolError(LabError):
    """A tool of the lab is missing or could not be built."""


class PartFailed(LabError):  # noqa: N818 - reads better where it is caught
    """A part died, or was not ready within its deadline.

    Attributes:
        part: name of the part.
        address_in_use: whether its log says that another process holds its port.
    """

    def __init__(self, part: str, message: str, *, address_in_use: bool = False) -> None:
        super().__init__(message)
        self.part = part
        self.address_in_use = address_in_use
