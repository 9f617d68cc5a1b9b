"""Grids whose steps share a weight equally."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.errors import InputError
from refimpl.sample.grids import native
from refimpl.sample.weighted_grid import weighted
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import BENT_DENSITY, FLOAT64_NEAR_ZERO_SNR


@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR])
def test_equal_weights_give_the_native_grid(schedule):
    got = weighted(schedule, 28, torch.full((1000,), 0.3))
    assert torch.allclose(got, native(schedule, 28), rtol=FLOAT64_NEAR_ZERO_SNR)


@given(st.floats(1, 20), st.integers(2, 60), st.integers(0, 300), st.integers(400, 999))
def test_neighbours_of_a_weighted_grid_share_the_weight_equally(gamma, n, end, start):
    weights = min_snr_weight(ZERO_SNR.snr, gamma, "snr_plus_one")
    t = ZERO_SNR.sigma_edm_to_t(weighted(ZERO_SNR, n, weights, start, end)[:-1]).numpy()
    assert (t[0], t[-1]) == (pytest.approx(start), pytest.approx(end))
    fine = np.linspace(0, 999, 999 * 40 + 1)
    density = np.interp(fine, np.arange(1000), weights.numpy())
    below = np.concatenate(([0], np.cumsum((density[1:] + density[:-1]) / 2)))
    shares = -np.diff(np.interp(t, fine, below))
    assert shares == pytest.approx(shares.mean(), rel=BENT_DENSITY)


@pytest.mark.parametrize(
    ("weights", "ends"),
    [
        (torch.zeros(1000), (999, 0)),
        (torch.full((1000,), math.nan), (999, 0)),
        (torch.ones(999), (999, 0)),
        (torch.ones(1000), (0, 0)),
        (torch.ones(1000), (1000, 0)),
        (torch.ones(1000), (10, -1)),
    ],
)
def test_weights_and_ends_that_no_weighted_grid_has(weights, ends):
    with pytest.raises(InputError, match="weighted grid"):
        weighted(ZERO_SNR, 5, weights, *ends)
