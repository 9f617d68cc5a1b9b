"""Grids by name, the fixed lists, and where a grid starts for a canvas or an image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.sample.grids import (
    GRIDS,
    community_trainer,
    explicit,
    from_strength,
    grid_by_name,
    native,
    scale_sigma_max,
    start_at,
)
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.strategies import grid_levels
from tests.tolerances import FLOAT64_ROUNDING, PRINTED_SIGMA


def test_the_community_trainers_list_is_verbatim_and_ends_in_0():
    levels = [20000, 17.8, 12.4, 9.2, 7.2, 5.4, 3.9, 2.1, 0.9, 0.0292, 0]
    assert community_trainer(ZERO_SNR).tolist() == levels
    with pytest.raises(InputError, match="fixed list of 10"):
        community_trainer(ZERO_SNR, 28)


def test_an_explicit_list_gets_its_final_0():
    assert explicit([math.inf, 3.0]).tolist() == [math.inf, 3, 0]
    assert explicit((3, 1, 0)).tolist() == [3, 1, 0]
    assert explicit(torch.tensor([3.0])).tolist() == [3, 0]


@pytest.mark.parametrize(
    "levels", [[], [0.0], [1.0, 2.0], [math.nan], [1.0, math.inf], [-1.0], [[2.0]], ["a"], "native", None]
)
def test_an_explicit_list_that_is_no_grid_is_refused(levels):
    with pytest.raises(InputError, match="explicit grid"):
        explicit(levels)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_grid_by_its_name(name):
    schedule = PLAIN if name == "leading" else ZERO_SNR
    assert torch.equal(grid_by_name(name, schedule, 10), GRIDS[name](schedule, 10))


@pytest.mark.parametrize("name", ["native", "karras", "exponential", "laplace"])
def test_a_grid_can_start_at_a_given_level(name):
    for sigma_max in (14.6, 29.2):
        grid = grid_by_name(name, ZERO_SNR, 28, sigma_max=sigma_max)
        assert grid[0] == sigma_max
        assert grid.shape == (29,)
    assert torch.equal(grid_by_name(name, ZERO_SNR, 28, sigma_max=math.inf), GRIDS[name](ZERO_SNR, 28))


@pytest.mark.parametrize("name", ["trailing", "leading", "community_trainer"])
def test_grids_with_a_fixed_start_refuse_another(name):
    with pytest.raises(InputError, match=r"fixed start.*native"):
        grid_by_name(name, PLAIN, 10, sigma_max=5.0)


@pytest.mark.parametrize(("name", "nearest"), [("kerras", "karras"), ("Native", "native"), ("", "")])
def test_an_unknown_grid_names_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"unknown; did you mean '{nearest}"):
        grid_by_name(name, PLAIN, 10)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1024, 1024, 14.6), (2048, 2048, 29.2), (512, 512, 7.3), (512, 2048, 14.6), (832, 1216, 14.3)],
)
def test_sigma_max_is_in_proportion_to_the_side(height, width, expected):
    assert scale_sigma_max(14.6, height, width) == pytest.approx(expected, abs=PRINTED_SIGMA)
    latent = scale_sigma_max(14.6, height // 8, width // 8, base=128)
    assert latent == pytest.approx(scale_sigma_max(14.6, height, width), rel=FLOAT64_ROUNDING)


def test_pure_noise_is_pure_on_every_canvas():
    assert scale_sigma_max(math.inf, 2048, 512) == math.inf


@pytest.mark.parametrize(
    "arguments", [(0, 8, 8), (14.6, 0, 8), (14.6, 8, -8), (math.nan, 8, 8), (14.6, 8, 8, 0), ("a", 8, 8)]
)
def test_sizes_that_are_none_are_refused(arguments):
    with pytest.raises(InputError, match="positive finite"):
        scale_sigma_max(*arguments)


@given(grid_levels(), st.floats(1e-9, 1e5))
def test_a_grid_from_a_level_on(grid, level):
    rest = start_at(grid, level)
    assert rest[0] == level
    assert rest[1:].tolist() == [sigma for sigma in grid.tolist() if sigma < level]


@given(grid_levels(), st.floats(0, 1, exclude_min=True))
def test_strength_takes_the_last_steps(grid, strength):
    n = len(grid) - 1
    if strength == 1:
        assert torch.equal(from_strength(grid, strength), grid)
        return
    nearest = min(round(n * strength), n - 1)
    if nearest == 0:
        with pytest.raises(InputError, match="leaves none"):
            from_strength(grid, strength)
        return
    rest = from_strength(grid, strength)
    assert torch.equal(rest, grid[-nearest - 1 :])
    assert math.isfinite(rest[0])


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, math.nan])
def test_strengths_outside_are_refused(strength):
    with pytest.raises(InputError, match="strength is"):
        from_strength(native(ZERO_SNR, 28), strength)


@pytest.mark.parametrize("level", [0, -1, math.inf, math.nan])
def test_a_start_that_is_no_finite_level_is_refused(level):
    with pytest.raises(InputError, match="start_at"):
        start_at(native(ZERO_SNR, 28), level)
