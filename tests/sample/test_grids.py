"""Grids by name, the fixed lists, and where a grid starts for a canvas or an image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.sample.config import GRID_NAMES, TERMINAL_NAMES, SampleConfig
from refimpl.sample.grids import (
    GRIDS,
    canvas,
    community_trainer,
    explicit,
    from_strength,
    grid_by_name,
    grid_of_settings,
    native,
    scale_sigma_max,
    start_at,
    terminal_level,
    with_terminal,
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


@pytest.mark.parametrize("name", ["native", "karras", "exponential", "canvas", "laplace"])
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


@pytest.mark.parametrize("name", GRID_NAMES)
def test_only_the_canvas_grid_depends_on_the_canvas(name):
    schedule = PLAIN if name == "leading" else ZERO_SNR
    small = grid_by_name(name, schedule, 10, latent_size=(8, 16))
    assert torch.equal(small, grid_by_name(name, schedule, 10)) == (name != "canvas")
    if name == "canvas":
        assert torch.equal(small, canvas(ZERO_SNR, 10, 8, 16))


@pytest.mark.parametrize("terminal", TERMINAL_NAMES[1:])
def test_a_terminal_level_replaces_infinity_and_nothing_else(terminal):
    """N App. A.2's recipe, and its like: --start-sigma 20000 would respace native, to 56.002 after it."""
    grid = with_terminal(native(ZERO_SNR, 28), terminal)
    assert float(grid[0]) == terminal_level(terminal) == float(terminal)
    assert float(grid[1]) == 56.178238948721265
    assert torch.equal(grid[1:], native(ZERO_SNR, 28)[1:])
    assert float(native(ZERO_SNR, 28, sigma_max=20000.0)[1]) == pytest.approx(56.002, abs=PRINTED_SIGMA / 100)


@given(grid_levels(from_infinity=True), st.sampled_from(TERMINAL_NAMES))
def test_terminal_levels_of_any_grid(grid, terminal):
    if terminal == "exact":
        assert terminal_level(terminal) == math.inf
        assert torch.equal(with_terminal(grid, terminal), grid)
    elif grid[1] >= terminal_level(terminal):
        with pytest.raises(InputError, match=f"terminal {terminal} is not above the grid's next level"):
            with_terminal(grid, terminal)
    else:
        assert with_terminal(grid, terminal).tolist() == [float(terminal), *grid[1:].tolist()]


def test_a_terminal_level_must_be_above_the_next():
    for level, refused in ((4096.0, True), (math.nextafter(4096, 0), False)):
        grid = torch.tensor([math.inf, level, 0.0], dtype=torch.float64)
        if refused:
            with pytest.raises(InputError, match="terminal 4096 is not above the grid's next level, 4096"):
                with_terminal(grid, "4096")
        else:
            assert with_terminal(grid, "4096")[0] == 4096


def test_a_grid_without_infinity_takes_no_terminal_level():
    for grid in (native(PLAIN, 28), native(ZERO_SNR, 28, sigma_max=29.2), community_trainer(ZERO_SNR)):
        assert torch.equal(with_terminal(grid, "exact"), grid)
        with pytest.raises(InputError, match="terminal 20000 replaces σ = ∞, but the grid starts at"):
            with_terminal(grid, "20000")


def test_the_settings_choose_grid_terminal_and_canvas():
    settings = SampleConfig(grid="canvas", terminal="4096", steps=12)
    expected = with_terminal(canvas(ZERO_SNR, 12, 8, 16), "4096")
    assert torch.equal(grid_of_settings(settings, ZERO_SNR, (8, 16)), expected)
    assert torch.equal(grid_of_settings(SampleConfig(), ZERO_SNR, (8, 16)), native(ZERO_SNR, 28))
    started = grid_of_settings(SampleConfig(), ZERO_SNR, (8, 16), start_sigma=14.6)
    assert torch.equal(started, native(ZERO_SNR, 28, sigma_max=14.6))
    with pytest.raises(InputError, match=r"terminal 4096 .* starts at 14\.6; use exact"):
        grid_of_settings(settings, ZERO_SNR, (8, 16), start_sigma=14.6)


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
