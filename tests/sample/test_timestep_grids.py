"""Grids spaced in timesteps against the pinned vectors, N's figures and diffusers."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_grid
from refimpl.sample.grids import leading, native, trailing
from tests.conforming import conforms
from tests.sample.schedules import PLAIN, ZERO_SNR, small_schedule
from tests.strategies import steps
from tests.tolerances import FLOAT64_NEAR_ZERO_SNR, PRINTED_SIGMA

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "schedule.json").read_text())["f64_28step"]


def pinned(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(timesteps, sigma_edm) of the vector whose name starts with this prefix."""
    vector = next(value for key, value in VECTORS.items() if key.startswith(name))
    sigmas = [float(sigma) for sigma in vector["sigmas"]][:28]
    return torch.tensor(vector["timesteps"]), torch.tensor(sigmas, dtype=torch.float64)


def timesteps_of(grid: torch.Tensor, schedule) -> list[int]:
    t = schedule.sigma_edm_to_t(grid[:-1])
    assert ((t - t.round()).abs() <= FLOAT64_NEAR_ZERO_SNR).all()
    return t.round().long().tolist()


@pytest.mark.parametrize(
    ("grid", "name"),
    [
        (native(ZERO_SNR, 28), "linspace"),
        (trailing(ZERO_SNR, 28), "trailing"),
        (leading(ZERO_SNR, 28, force=True), "leading"),
    ],
    ids=["native", "trailing", "leading"],
)
def test_28_steps_are_the_pinned_ones(grid, name):
    t, sigmas = pinned(name)
    assert timesteps_of(grid, ZERO_SNR) == t.tolist()
    torch.testing.assert_close(grid[:-1], sigmas, rtol=FLOAT64_NEAR_ZERO_SNR, atol=0)


def test_28_steps_start_and_end_where_the_paper_has_them():
    conforms("grid.native_start")
    conforms("grid.native_second", within=FLOAT64_NEAR_ZERO_SNR)
    conforms("grid.lowest_level", within=0)
    conforms("grid.trailing_start")


@pytest.mark.parametrize("check", ["length", "ends_in_zero", "decreases"])
def test_grids_of_any_length_are_grids(check):
    conforms(f"grid.{check}")


@pytest.mark.parametrize(("start", "printed"), [(880, 14.6), (932, 29.0)])
def test_native_starts_of_figures_6_and_7(start, printed):
    grid = native(ZERO_SNR, 28, start=start)
    assert float(grid[0]) == pytest.approx(printed, abs=PRINTED_SIGMA)
    t = torch.linspace(start, 0, 28, dtype=torch.float64)
    assert torch.equal(grid[:-1], ZERO_SNR.t_to_sigma_edm(t))
    by_level = native(ZERO_SNR, 28, sigma_max=float(grid[0]))
    assert by_level[0] == grid[0]
    torch.testing.assert_close(by_level, grid, rtol=FLOAT64_NEAR_ZERO_SNR, atol=0)


@given(steps(3000), st.sampled_from([PLAIN, ZERO_SNR]))
def test_native_of_any_length(n, schedule):
    grid = native(schedule, n)
    assert grid.dtype == torch.float64
    assert torch.equal(check_grid(grid), grid)
    assert grid.shape == (n + 1,)
    assert grid[0] == schedule.sigma_edm[-1]
    assert n == 1 or grid[-2] == schedule.sigma_edm[0]


@given(st.floats(1e-3, 999), steps(100))
def test_native_from_any_start(start, n):
    grid = native(ZERO_SNR, n, start=start)
    assert grid.shape == (n + 1,)
    # One level by itself and in a batch may differ in the last bit: vectorised and scalar log are different code.
    torch.testing.assert_close(grid[0], ZERO_SNR.t_to_sigma_edm(start), rtol=FLOAT64_NEAR_ZERO_SNR, atol=0)


@given(st.integers(3, 60), st.booleans(), st.data())
def test_trailing_and_leading_on_any_schedule(timesteps, zero_terminal, data):
    schedule = small_schedule(timesteps, zero_terminal)
    n = data.draw(st.integers(1, timesteps))
    last = timesteps - 1
    t = timesteps_of(trailing(schedule, n), schedule)
    assert t == [round(Fraction(timesteps * (n - i), n)) - 1 for i in range(n)]  # round: half to even
    assert t[0] == last
    offset = data.draw(st.integers(0, 3))
    t = timesteps_of(leading(schedule, n, offset=offset, force=True), schedule)
    assert len(t) == n
    assert t[-1] <= offset
    assert t[0] < last or n * (timesteps // n) + offset > last


def test_trailing_is_diffusers_but_for_its_float_steps():
    """diffusers steps in floating point: for some n it overshoots to n + 1 entries; it breaks ties by rounding."""
    conforms("grid.trailing_length")
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        theirs = scheduler.timesteps.tolist()
        ours = timesteps_of(trailing(ZERO_SNR, n), ZERO_SNR)
        tie = 2 * 1000 * np.arange(n, 0, -1) % (2 * n) == n
        assert (np.abs(np.subtract(ours, theirs[:n])) <= tie).all(), n


def test_leading_is_diffusers_but_for_the_timestep_it_does_not_have():
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    for n in range(1, 1000):
        scheduler.set_timesteps(n)
        assert timesteps_of(leading(PLAIN, n), PLAIN) == scheduler.timesteps.tolist()
    assert timesteps_of(leading(PLAIN, 1000), PLAIN) == list(range(999, -1, -1))


def test_leading_with_zero_terminal_snr_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r"skips that step.*native or trailing.*force=True"):
        leading(ZERO_SNR, 28)
    assert math.isfinite(leading(ZERO_SNR, 28, force=True)[0])


@pytest.mark.parametrize("grid", [trailing, leading], ids=["trailing", "leading"])
@pytest.mark.parametrize("n", [0, -1, 1001, 2.5, "28", None])
def test_impossible_numbers_of_steps_are_refused(grid, n):
    with pytest.raises(InputError, match=r"steps.*1 to 1000"):
        grid(PLAIN, n)


@pytest.mark.parametrize("n", [0, -3, 10**9, 1.0])
def test_native_refuses_impossible_numbers_of_steps(n):
    with pytest.raises(InputError, match="steps"):
        native(PLAIN, n)


@pytest.mark.parametrize("start", [-1, 0, 999.5, 1000, math.nan, math.inf])
def test_native_refuses_starts_outside_the_schedule(start):
    with pytest.raises(InputError, match=r"start .* is not in"):
        native(ZERO_SNR, 28, start=start)


@pytest.mark.parametrize("sigma_max", [-1, 0, math.nan, 14.7, math.inf])
def test_native_refuses_levels_outside_the_schedule(sigma_max):
    with pytest.raises(InputError, match="sigma_max"):
        native(PLAIN, 28, sigma_max=sigma_max)


def test_native_takes_one_start():
    with pytest.raises(InputError, match="give one"):
        native(ZERO_SNR, 28, start=880, sigma_max=14.6)


def test_leading_refuses_a_negative_offset():
    with pytest.raises(InputError, match="offset -1"):
        leading(PLAIN, 28, offset=-1)
