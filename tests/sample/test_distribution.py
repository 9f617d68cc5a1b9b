"""Samplers from ∞ reproduce the data's exact distribution; from a finite level they leak its mean (N §2.2)."""

import math

import pytest
import torch

from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.sample.grids import exponential, native, scale_sigma_max, start_at
from refimpl.sample.samplers import (
    SAMPLERS,
    STOCHASTIC,
    ddim,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    heun,
    sample_by_name,
    unipc,
)
from refimpl.sample.stepping import sdedit_start
from tests.sample.gaussian import FlatCanvas, Gaussian
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import FIRST_ORDER_GAIN, FLOAT64_ROUNDING, SECOND_ORDER_GAIN, STANDARD_ERRORS

DATA = Gaussian(mean=0.7, std=0.6)
KEYS = draw_key(3, torch.arange(3), 0, Purpose.INIT_NOISE)
ODE = [name for name in SAMPLERS if name not in STOCHASTIC]


@pytest.mark.parametrize("name", ODE)
def test_from_infinity_the_flow_converges_to_the_exact_one(name):
    """n maps to m + s·n except for the errors of the step from ∞ and the last denoising, both known exactly."""
    n = torch.linspace(-3, 3, 61, dtype=torch.float64).reshape(1, 1, 1, 61)
    errors = []
    for steps in (40, 80, 160):
        grid = exponential(ZERO_SNR, steps, sigma_min=0.05, finite_max=100.0)
        y = DATA.flow(grid[1] * n + DATA.mean, float(grid[1]), float(grid[-2]))
        exact = DATA.denoiser(y, grid[-2:-1])
        errors.append(float((SAMPLERS[name](DATA.predict_v, n, grid) - exact).abs().max()))
    gain = FIRST_ORDER_GAIN if name in ("euler", "ddim") else SECOND_ORDER_GAIN
    assert errors[0] > gain * errors[1] > gain**2 * errors[2]


def moments_of(sampler, grid, data):
    """(mean, std) of a sampler's exact output distribution, which is Gaussian: linear in all its noises.

    Sample k of the batch gets noise source k alone (the first noise, then each step's), and the last gets none.
    """
    sources = len(grid)
    first = torch.zeros(sources + 1, 1, 1, 1, dtype=torch.float64)
    first[0] = 1

    def one_hot(step, like):
        z = torch.zeros_like(like)
        z[step + 1] = 1
        return z

    x0 = sampler(data.predict_v, first, grid, one_hot).flatten()
    return float(x0[-1]), float((x0[:-1] - x0[-1]).square().sum().sqrt())


STOCHASTIC_RUNS = {
    "euler_ancestral": lambda p, x, grid, noise: euler_ancestral(p, x, grid, noise=noise),
    "ddim eta 1": lambda p, x, grid, noise: ddim(p, x, grid, noise=noise, eta=1.0),
    "dpmpp_2m_sde": lambda p, x, grid, noise: dpmpp_2m_sde(p, x, grid, noise=noise),
}
ODE_RUNS = {name: lambda p, x, grid, _, name=name: SAMPLERS[name](p, x, grid) for name in ODE}


@pytest.mark.parametrize("name", STOCHASTIC_RUNS | ODE_RUNS)
def test_from_infinity_the_distribution_is_the_datas(name):
    """The mean is exact with any number of steps; the std converges to the data's as steps double."""
    run = (STOCHASTIC_RUNS | ODE_RUNS)[name]
    ends = math.hypot(1, DATA.std / 100) * math.hypot(1, 0.01 / DATA.std)  # first and last step, as above
    errors = []
    for steps in (50, 100, 200):
        grid = exponential(ZERO_SNR, steps, sigma_min=0.01, finite_max=100.0)
        mean, std = moments_of(run, grid, DATA)
        assert mean == pytest.approx(DATA.mean, abs=FLOAT64_ROUNDING)
        errors.append(abs(std / DATA.std - 1))
    end_error = ends - 1
    assert errors[0] > FIRST_ORDER_GAIN * (errors[1] - end_error)
    assert errors[1] > FIRST_ORDER_GAIN * (errors[2] - end_error)
    assert errors[2] < DATA.std / 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_keyed_samples_from_infinity_have_the_datas_mean_and_std(name):
    """Actual samples on the paper's 28-step grid: 32,768 keyed values against the sampler's own moments."""
    key = draw_key(11, torch.arange(8), 0, Purpose.INIT_NOISE)
    n = keyed_normal(key, (4, 32, 32)).double()
    grid = native(ZERO_SNR, 28)
    x0 = sample_by_name(name, DATA.predict_v, n, grid, key=key)
    mean, std = moments_of((STOCHASTIC_RUNS | ODE_RUNS)[name], grid, DATA)
    error = STANDARD_ERRORS * std / math.sqrt(x0.numel())
    assert mean == pytest.approx(DATA.mean, abs=FLOAT64_ROUNDING)
    assert float(x0.mean()) == pytest.approx(DATA.mean, abs=error)
    assert float(x0.std()) == pytest.approx(std, abs=error)


def test_a_finite_start_leaks_the_mean_and_infinity_does_not():
    """N Fig. 2 to 4: zero-mean noise at a finite level tells the network that the latent has mean 0.

    The level is the one that leaks on a 32 × 32 latent what 14.6 leaks on SDXL's 128 × 128 (N §2.3).
    """
    canvas = FlatCanvas(mean=1.0, std=0.3)
    n = keyed_normal(KEYS, (1, 32, 32)).double()
    n = n - n.mean((1, 2, 3), keepdim=True)  # the mean itself, not its chance deviation
    sigma = scale_sigma_max(float(PLAIN.sigma_edm[-1]), 32, 32, base=128)
    grid = start_at(native(ZERO_SNR, 200), sigma)
    leaked = heun(canvas.predict_v, sdedit_start(torch.zeros_like(n), n, sigma), grid).mean()
    # the canvas' mean pixel has noise σ/32; its flow takes 0 to m·(1 − s/√(s² + (σ/32)²))
    exact = canvas.mean * (1 - canvas.std / math.hypot(canvas.std, sigma / 32))
    assert exact < 0.1
    assert float(leaked) == pytest.approx(exact, abs=0.01 * canvas.mean)
    for sampler in (euler, heun, unipc):
        x0 = sampler(canvas.predict_v, n, native(ZERO_SNR, 28))
        torch.testing.assert_close(x0, torch.ones_like(x0), rtol=0, atol=FLOAT64_ROUNDING)


def test_twice_the_side_needs_twice_the_sigma():
    """N §2.3: the mean leaks as much from 29.2 at side 32 as from 14.6 at side 16."""
    canvas = FlatCanvas(mean=1.0, std=0.3)
    leaks = []
    for side in (16, 32):
        sigma = scale_sigma_max(14.6, side, side, base=16)
        grid = exponential(ZERO_SNR, 100, sigma_min=1e-3, sigma_max=sigma)
        n = keyed_normal(KEYS[:1], (1, side, side)).double()
        x = sdedit_start(torch.zeros_like(n), n - n.mean(), sigma)
        leaks.append(float(heun(canvas.predict_v, x, grid).mean()))
    assert leaks[0] == pytest.approx(leaks[1], abs=1e-3)
    assert leaks[0] < 0.7
