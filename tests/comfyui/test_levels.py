"""The table of levels, its two inverses, and its ends."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.comfyui.levels import STAND_IN_FOR_INFINITY, levels_for
from refimpl.errors import InputError
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import FLOAT64_ROUNDING, SNAPPED_TIMESTEP

EXACT = levels_for(ZERO_SNR, "exact", 0.0, None)


def test_the_exact_table_is_the_schedule_with_a_stand_in_for_infinity() -> None:
    table = EXACT.table()
    assert len(table) == 1000
    assert torch.equal(table[:-1], ZERO_SNR.sigma_edm[:-1])
    assert table[-1] == STAND_IN_FOR_INFINITY
    assert math.log2(STAND_IN_FOR_INFINITY).is_integer()


def test_only_the_stand_in_means_infinity() -> None:
    sigma = torch.tensor([0.03, 2254.24, STAND_IN_FOR_INFINITY, 2 * STAND_IN_FOR_INFINITY])
    assert EXACT.level(sigma).tolist() == [sigma[0], sigma[1], math.inf, math.inf]
    trivial = levels_for(ZERO_SNR, "20000", 0.0, None)
    assert trivial.sigma_max == 20000
    assert trivial.timestep(torch.tensor([19999.0, 20000.0])).tolist() == [
        999 - 2254.2379783369956 / 19999,
        999,
    ]
    assert torch.equal(trivial.level(sigma), sigma)


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR], ids=["plain", "zero SNR"])
def test_levels_that_went_through_float32_are_whole_timesteps(schedule) -> None:
    levels = levels_for(schedule, "exact", 0.0, None)
    t = torch.arange(1000)
    assert torch.equal(levels.timestep(levels.sigma(t).float()), t.double())


@given(t=st.floats(0, 999))
@example(t=998.75)  # above the last finite level of the table, which no level is rounded over
def test_levels_and_timesteps_are_inverse(t: float) -> None:
    sigma = EXACT.sigma(torch.tensor(t, dtype=torch.float64))
    back = float(EXACT.timestep(sigma))
    if float(sigma) == EXACT.sigma_max:  # the stand-in is the last timestep, also where the schedule nears it
        assert back == 999
    else:
        assert abs(back - t) <= SNAPPED_TIMESTEP


@pytest.mark.parametrize(
    ("schedule", "terminal", "canvas", "expected"),
    [
        (ZERO_SNR, "20000", (1024, 1024), 20000.0),
        (ZERO_SNR, "20000", (2048, 2048), 40000.0),
        (ZERO_SNR, "4518.7637", None, 4518.7637),
        (ZERO_SNR, "4096", (2048, 2048), 8192.0),
        (ZERO_SNR, "20000", (832, 1216), 20000 * math.sqrt(832 * 1216) / 1024),
        (ZERO_SNR, "exact", (2048, 2048), STAND_IN_FOR_INFINITY),
        (PLAIN, "exact", None, 14.614641229333639),
        (PLAIN, "exact", (2048, 2048), 2 * 14.614641229333639),
        (PLAIN, "exact", (512, 512), 14.614641229333639 / 2),
    ],
)
def test_the_upper_end_grows_with_the_canvas(schedule, terminal, canvas, expected) -> None:
    levels = levels_for(schedule, terminal, 0.0, canvas)
    table = levels.table()
    assert levels.sigma_max == pytest.approx(expected, rel=FLOAT64_ROUNDING)
    assert table[-1] == levels.sigma_max
    assert (table.diff() > 0).all()
    assert levels.exact == (terminal == "exact" and schedule is ZERO_SNR)


def test_a_small_canvas_cuts_the_table_and_starts_at_the_timestep_of_its_level() -> None:
    levels = levels_for(PLAIN, "exact", 0.0, (512, 512))
    assert len(levels.table()) < 1000
    assert levels.last_timestep == float(PLAIN.sigma_edm_to_t(levels.sigma_max))
    assert float(levels.sigma(torch.tensor(999.0))) == levels.sigma_max


def test_a_large_canvas_of_the_plain_schedule_puts_its_level_at_the_last_timestep() -> None:
    levels = levels_for(PLAIN, "exact", 0.0, (2048, 2048))
    assert levels.last_timestep == 999
    assert levels.timestep(torch.tensor([20.0, 29.229282458667278])).tolist() == [999, 999]
    assert levels.sigma(torch.tensor([998.0, 999.0])).tolist() == [
        float(PLAIN.sigma_edm[998]),
        levels.sigma_max,
    ]


def test_sigma_min_is_the_lowest_level() -> None:
    levels = levels_for(ZERO_SNR, "exact", 0.0292, None)
    assert float(levels.table()[0]) == 0.0292
    assert float(levels.sigma(torch.tensor(0.0))) == 0.0292
    with pytest.raises(InputError, match=r"sigma_min 1.0 is not below 0\.11"):
        levels_for(PLAIN, "exact", 1.0, (8, 8))
