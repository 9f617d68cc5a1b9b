"""The limit of the first step, and DPM++'s weight of it (N eq. 3–9, App. A.1)."""

import math

import pytest
import torch

from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.paper.computed.first_step import dpmpp_weight
from refimpl.sample.samplers import dpmpp_2m
from tests.paper.computed.kept import computed
from tests.tolerances import FLOAT64_ROUNDING, SAME_END


@pytest.mark.parametrize(("second", "third"), [(56.2, 26.6), (3.0, 0.5)])
def test_the_weight_is_that_of_the_sampler_and_0_at_infinity(second, third):
    """A network whose estimate is 1 at the first level and 0 after it shows what becomes of the first one."""
    start = 2 * second  # an ordinary step: no jump

    def estimate(x, sigma_edm):
        alpha, sigma = (float(part) for part in alpha_sigma(sigma_edm))
        return (alpha * x - float(sigma_edm == start)) / sigma

    grid = torch.tensor([start, second, third, 0.0], dtype=torch.float64)
    seen = []

    def watch(step, _):
        seen.append(step)

    states = {}

    def remember(x, sigma_edm):
        alpha, _ = (float(part) for part in alpha_sigma(sigma_edm))
        states[round(float(sigma_edm), 9)] = float(x) / alpha
        return estimate(x, sigma_edm)

    dpmpp_2m(remember, torch.zeros(1, 1, 1, 1, dtype=torch.float64), grid, callback=watch)
    at_second, at_third = states[round(second, 9)], states[round(third, 9)]
    carried = third / second * at_second  # what the state holds of the estimate already
    assert carried - at_third == pytest.approx(dpmpp_weight(start, second, third), rel=FLOAT64_ROUNDING)
    found = computed("first step")
    assert found["DPM++ 2M's weight of the estimate at σ = ∞"].value == 0
    assert found["DPM++ 2M's weight of the estimate at σ = 20000"].value > 0.03
    assert dpmpp_weight(math.inf, second, third) == 0


def test_the_finite_first_step_errs_by_sigma_1_over_sigma_0():
    """Eq. 3 as printed, on a network that estimates D = 1, less eq. 9."""
    found = computed("first step")
    second = 56.178238948721265
    for start in (2254.0, 20000.0, 1e6):
        n = 0.7
        printed = start * n + (second - start) * (start * n - 1.0) / start
        missing = second * n + 1.0 - printed
        assert missing == pytest.approx(found[f"D missing from x₁ at σ₀ = {start:g}"].value, abs=1e-9)
    assert found["D missing from x₁ at σ₀ = ∞"].value == 0


def test_laplace_keeps_a_twentieth_of_the_spread():
    found = computed("laplace")
    for sampler in ("euler", "dpmpp_2m"):
        assert found[f"share kept by laplace 28 with {sampler}"].value == pytest.approx(0.0472, abs=SAME_END)
        others = [
            found[f"share kept by {grid} 28 with {sampler}"].value for grid in ("native", "karras", "canvas")
        ]
        assert min(others) > 0.5
