"""Settings of sampling: the names that they accept are those that can be drawn with."""

import pytest

from refimpl.diffusion.preconditioner import PARITY_SIGMA_MAX
from refimpl.errors import InputError
from refimpl.sample.config import GRID_NAMES, SAMPLER_NAMES, TERMINAL_NAMES, SampleConfig
from refimpl.sample.grids import GRIDS
from refimpl.sample.samplers import SAMPLERS


def test_the_names_are_those_of_the_functions() -> None:
    assert tuple(GRIDS) == GRID_NAMES
    assert tuple(SAMPLERS) == SAMPLER_NAMES


def test_terminal_levels_are_the_exact_one_and_those_of_other_tools() -> None:
    assert TERMINAL_NAMES[0] == SampleConfig().terminal == "exact"
    assert [float(name) for name in TERMINAL_NAMES[1:]] == list(PARITY_SIGMA_MAX.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"terminal": "2000"},
            "sample.terminal '2000' is unknown; .*the nearest is '20000'",
        ),
        ({"terminal": ""}, "sample.terminal '' is unknown"),
        ({"terminal": "20000", "grid": "community_trainer"}, "its list starts at 20000; use exact"),
        ({"grid": "canvass"}, "sample.grid 'canvass' is unknown; .*the nearest is 'canvas'"),
    ],
)
def test_settings_that_fit_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SampleConfig(**changes)
