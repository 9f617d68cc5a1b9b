"""What the best linear guess leaves of eps and v (N §2.1)."""

import numpy as np
import pytest

from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.paper.computed.triviality import left_open, power_spectra
from tests.paper.computed.kept import computed
from tests.tolerances import FLOAT64_ROUNDING, STANDARD_ERRORS


def test_eps_is_trivial_at_zero_snr_and_v_never_is():
    found = computed("triviality")
    assert found["eps left open at t = 999"].value == 0
    assert found["v left open at t = 999"].value == pytest.approx(1, rel=FLOAT64_ROUNDING)
    assert found["eps left open at t = 962"].high < 0.001
    assert all(quantity.low > 0.1 for name, quantity in found.items() if name.startswith("v "))


def test_spectra_hold_the_variance_of_the_canvases():
    spectra = power_spectra()
    assert spectra.mean() == pytest.approx(1, rel=FLOAT64_ROUNDING)
    assert spectra.mean(0)[0] > 1000  # the average: redundant signal


@pytest.mark.parametrize("t", [100, 700])
@pytest.mark.parametrize("target", ["eps", "v"])
def test_it_is_what_a_regression_leaves(t, target):
    """On Gaussian coefficients of two powers, fitted each by least squares."""
    schedule = zero_terminal_snr(sdxl_schedule())
    alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
    power, rng, count = np.array([1.8, 0.2]), np.random.default_rng(0), 200_000
    x0 = rng.standard_normal((count, 2)) * np.sqrt(power)
    eps = rng.standard_normal((count, 2))
    x_t = alpha * x0 + sigma * eps
    aim = eps if target == "eps" else alpha * eps - sigma * x0
    slope = (aim * x_t).mean(0) / np.square(x_t).mean(0)
    share = np.square(aim - slope * x_t).mean() / np.square(aim).mean()
    assert float(left_open(power, t, target)) == pytest.approx(share, rel=STANDARD_ERRORS / count**0.5)
