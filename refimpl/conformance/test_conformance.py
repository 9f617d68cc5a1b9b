"""Each check against the implementation that --implementation names; collected by `pytest --pyargs`."""

from typing import Any

import pytest


def test_conforms(conformance_check: str, conformance_run: Any) -> None:
    """The implementation does what the check states, or deviates as it is known to."""
    from refimpl.conformance.registry import all_checks
    from refimpl.conformance.results.known import judge

    worker, known = conformance_run
    outcome = worker.run(conformance_check)
    if outcome.status == "not offered":
        pytest.skip(f"not offered: {outcome.text}")
    complaint = judge(all_checks()[conformance_check], outcome, known.get(conformance_check))
    if complaint:
        pytest.fail(complaint, pytrace=False)
