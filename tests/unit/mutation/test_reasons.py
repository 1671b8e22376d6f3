"""The reasons why faults that no test notices may stay: each is given for a fault that the core can still have."""

from __future__ import annotations

import pytest

from tests.mutation.mutants import mutants
from tests.mutation.page import reasons_given
from tests.mutation.reach import DOMAIN

GIVEN = reasons_given()


@pytest.mark.parametrize("module", GIVEN)
def test_every_reason_answers_a_fault_that_exists(module: str) -> None:
    possible = {mutant.key for mutant in mutants((DOMAIN / f"{module}.py").read_text())}
    assert set(GIVEN[module]) - possible == set(), "the code has changed: drop the reason, or give it anew"
