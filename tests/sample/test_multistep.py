"""UniPC against diffusers, and the history of the multistep samplers; test_samplers compares with k-diffusion."""

import math

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.sample.grids import native
from refimpl.sample.samplers import SAMPLERS, STOCHASTIC, sample_by_name, unipc
from refimpl.sample.stepping import noise_source
from tests.sample.gaussian import Gaussian
from tests.sample.schedules import FINITE_GRIDS, ZERO_SNR
from tests.tolerances import FLOAT64_ROUNDING

DATA = Gaussian(mean=0.7, std=0.6)
SHAPE = (3, 4, 6, 5)
KEYS = draw_key(3, torch.arange(3), 0, Purpose.INIT_NOISE)


@pytest.mark.parametrize("grid", FINITE_GRIDS.values(), ids=FINITE_GRIDS)
def test_unipc_is_diffusers_step_for_step(grid):
    n = len(grid) - 1
    scheduler = UniPCMultistepScheduler(prediction_type="v_prediction", solver_order=2, solver_type="bh2")
    scheduler.set_timesteps(n)
    scheduler.sigmas = grid
    scheduler.timesteps = torch.arange(n - 1, -1, -1)
    _, x = DATA.noised(SHAPE, float(grid[0]))
    state = x
    for t, sigma_edm in zip(scheduler.timesteps, grid, strict=False):
        state = scheduler.step(DATA.predict_v(state, sigma_edm), t, state).prev_sample
    torch.testing.assert_close(unipc(DATA.predict_v, x, grid), state, rtol=0, atol=FLOAT64_ROUNDING)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_from_infinity_stays_out_of_the_history(name):
    """After the step from ∞, a sampler does exactly what it does when started at the next level (N App. A.1)."""
    grid = native(ZERO_SNR, 12)
    n = torch.randn(SHAPE, dtype=torch.float64)
    whole = []
    x0 = sample_by_name(
        name, DATA.predict_v, n, grid, key=KEYS, callback=lambda i, estimate: whole.append((i, estimate))
    )
    state = float(grid[1]) * n - DATA.predict_v(n, grid[0])
    # step i of the rest is step i + 1 of the whole run: give the rest the noise of the whole run
    noise = {"noise": later_noise(n)} if name in STOCHASTIC else {}
    rest = []
    x = state / math.hypot(1, float(grid[1]))
    x0_rest = SAMPLERS[name](
        DATA.predict_v, x, grid[1:], callback=lambda i, estimate: rest.append(estimate), **noise
    )
    assert [i for i, _ in whole] == list(range(12))
    for (_, ours), other in zip(whole[1:], rest, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=FLOAT64_ROUNDING)
    torch.testing.assert_close(x0, x0_rest, rtol=0, atol=FLOAT64_ROUNDING)


def later_noise(x):
    source = noise_source(None, KEYS, x)
    return lambda step, like: source(step + 1, like)
