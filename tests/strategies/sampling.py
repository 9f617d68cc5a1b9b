"""Grids of noise levels, and analytic data to sample."""

import math

import torch
from hypothesis import strategies as st

# --- sample: grids ---


@st.composite
def grid_levels(draw: st.DrawFn, from_infinity: bool | None = None) -> torch.Tensor:
    """A grid: 1 to 8 strictly decreasing levels, with equal ratios or large jumps, then 0."""
    ratio = st.sampled_from((1.0001, 2.0, 1e3)) | st.floats(1.01, 30)
    ratios = torch.tensor(draw(st.lists(ratio, min_size=1, max_size=8)), dtype=torch.float64)
    levels = draw(st.sampled_from((1e-6, 0.029167158151720367, 1.0))) * ratios.cumprod(0).flip(0)
    if from_infinity if from_infinity is not None else draw(st.booleans()):
        levels[0] = math.inf
    return torch.cat([levels, levels.new_zeros(1)])


def steps(most: int = 1000) -> st.SearchStrategy[int]:
    """Numbers of sampling steps, including the smallest, the paper's 28 and the largest."""
    return st.sampled_from((1, 2, 3, 28, most)) | st.integers(1, most)


# --- sample: analytic data ---


def gaussian_moments() -> st.SearchStrategy[tuple[float, float]]:
    """(mean, std) of a Gaussian data distribution, including point masses."""
    return st.tuples(st.sampled_from((0.0, -1.5, 40.0)) | st.floats(-3, 3), st.sampled_from((0.0, 1.0, 1e-3)))
