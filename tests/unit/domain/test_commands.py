from __future__ import annotations

import pytest

from canaryrollout.domain.commands import Command, Verb, parse


@pytest.mark.parametrize("verb", Verb)
def test_a_command_names_its_version_and_a_token(verb: Verb) -> None:
    assert parse(f"{verb}/v2/1") == Command(verb, "v2", "1")


@pytest.mark.parametrize("value", ["", "approve", "approve/v2", "approve/v2/", "approve//1", "/v2/1", "approve/v2/1/2"])
def test_what_is_no_command_is_answered_with_an_example(value: str) -> None:
    assert "write for example approve/v2/1" in str(parse(value))


def test_an_unknown_command_is_answered_with_the_known_ones() -> None:
    assert parse("Approve/v2/1") == (
        "canaryrollout.io/command: 'Approve' is not a command; use one of approve, retry, abort, promote"
    )
