"""The numbers that the package keeps, beside those computed now."""

import pytest

from refimpl.paper.computed.measures import MEASURES
from refimpl.paper.computed.quantity import Quantity
from refimpl.paper.results_file import COMPUTED, read_results
from tests.tolerances import KEPT_NUMBER


def computed(measure: str) -> dict[str, Quantity]:
    """A measure's quantities by name, after checking that the package keeps the same."""
    now = MEASURES[measure]()
    kept = read_results(COMPUTED)[measure]
    again = "refimpl claims --computed --out refimpl/paper/results/computed.json"
    assert [each.name for each in kept] == [each.name for each in now], f"measure again: {again}"
    for old, new in zip(kept, now, strict=True):
        for end in ("value", "low", "high"):
            expected = pytest.approx(getattr(new, end), rel=KEPT_NUMBER, abs=KEPT_NUMBER)
            assert getattr(old, end) == expected, f"{old.name}: measure again: {again}"
    return {each.name: each for each in now}
