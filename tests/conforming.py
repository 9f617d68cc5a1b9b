"""What any trainer must do is stated in refimpl.conformance.checks; here this project is held to it.

A test of a part names the checks of that part: `conforms("target.pure_noise")`. What no adapter can express (other
schedules, wrong input, layouts) is the test's own to state. tests/conformance/test_said_once.py sees to it that every
check is named.
"""

import math

from hypothesis import settings

from refimpl.conformance.adapters.reference import Reference
from refimpl.conformance.evaluate import Effort, run_check
from refimpl.conformance.registry import all_checks

PATIENCE = 600.0  # seconds for what is this project's own: a busy machine is no hanging function
REFERENCE = Reference()
CHECKS = all_checks()


def conforms(name: str, within: float = math.inf, on: object = REFERENCE) -> None:
    """Asserts that an adapter, this project's own, conforms to a check, with as many examples as every test draws.

    within  what this project is held to where the check allows others more, in the check's unit; 0 is equality to
            the bit. Of a choice, how far it may be from the paper's
    """
    check = CHECKS[name]
    outcome = run_check(check, on, Effort(settings().max_examples, PATIENCE, PATIENCE))
    assert outcome.status == ("choice" if check.kind == "choice" else "conforms"), (check.statement, outcome)
    assert outcome.deviation is not None
    assert outcome.deviation <= within, (check.statement, outcome, within)
