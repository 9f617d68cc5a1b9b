"""Settings of sampling: the names that they accept are those that can be drawn with."""

from refimpl.sample.config import GRID_NAMES, SAMPLER_NAMES
from refimpl.sample.grids import GRIDS
from refimpl.sample.samplers import SAMPLERS


def test_the_names_are_those_of_the_functions() -> None:
    assert tuple(GRIDS) == GRID_NAMES
    assert tuple(SAMPLERS) == SAMPLER_NAMES
