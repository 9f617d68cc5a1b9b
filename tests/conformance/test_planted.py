"""Every check notices a planted mistake; that this project passes it is said by the tests of its parts."""

from functools import cache

import pytest

from refimpl.conformance.check import Outcome
from refimpl.conformance.evaluate import Effort, run_check
from refimpl.conformance.registry import GROUPS, all_checks
from tests.conformance.planted import PLANTED, REFERENCE
from tests.conforming import PATIENCE

CHECKS = all_checks()
EFFORT = Effort(15, PATIENCE, PATIENCE)


@cache
def of_the_reference(name: str) -> Outcome:
    return run_check(CHECKS[name], REFERENCE, EFFORT)


def test_there_are_enough() -> None:
    assert len(CHECKS) >= 40
    assert len({check.group for check in CHECKS.values()}) == len(GROUPS) >= 14
    for check in CHECKS.values():
        assert check.statement.endswith("."), check.name
        assert check.cites, check.name
        assert check.unit, check.name
    assert set(PLANTED) == set(CHECKS)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_noticed(name: str) -> None:
    outcome = run_check(CHECKS[name], PLANTED[name], EFFORT)
    if CHECKS[name].kind == "choice":
        assert outcome.status == "choice"
        assert outcome.text != of_the_reference(name).text
        return
    assert outcome.status == "deviates", outcome
    assert outcome.deviation is None or outcome.deviation > CHECKS[name].limit  # which NaN is not
    assert bool(outcome.counterexample) == bool(CHECKS[name].draws)
