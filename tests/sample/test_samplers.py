"""Every sampler against k-diffusion or diffusers, and properties that hold for each whatever the data."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.errors import InputError
from refimpl.sample.grids import native, trailing
from refimpl.sample.samplers import (
    SAMPLERS,
    STOCHASTIC,
    ddim,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    sample_by_name,
)
from tests.oracles import k_diffusion
from tests.sample.gaussian import Gaussian
from tests.sample.schedules import FINITE_GRIDS, PLAIN, ZERO_SNR
from tests.strategies import gaussian_moments, grid_levels, latents
from tests.tolerances import BFLOAT16_ROUNDING, FLOAT64_ROUNDING

DATA = Gaussian(mean=0.7, std=0.6)
SHAPE = (3, 4, 6, 5)
KEYS = draw_key(3, torch.arange(3), 0, Purpose.INIT_NOISE)


def step_noise(step, like):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def theirs(name, y, grid, **arguments):
    """A k-diffusion sampler with noise from `step_noise`, one draw per noisy step."""
    count = iter(range(len(grid)))
    if name in ("euler_ancestral", "dpmpp_2m_sde"):
        arguments["noise_sampler"] = lambda *_: step_noise(next(count), y)
    sampler = getattr(k_diffusion("sampling"), f"sample_{name}")
    states = []
    x0 = sampler(DATA.denoiser, y, grid, disable=True, callback=states.append, **arguments)
    return x0, [state["denoised"] for state in states]


# k-diffusion's dpmpp_2m_sde raises UnboundLocalError on a single step, so the last grid is for the others
@pytest.mark.parametrize(
    ("name", "arguments", "grids"),
    [
        ("euler", {}, 5),
        ("heun", {}, 5),
        ("dpmpp_2m", {}, 5),
        ("euler_ancestral", {"eta": 1.0}, 5),
        ("euler_ancestral", {"eta": 0.4}, 5),
        ("dpmpp_2m_sde", {"eta": 1.0}, 4),
        ("dpmpp_2m_sde", {"eta": 0.4}, 4),
        ("dpmpp_2m_sde", {"eta": 1.7}, 4),
    ],
)
def test_on_finite_levels_k_diffusion_takes_the_same_steps(name, arguments, grids):
    for grid in list(FINITE_GRIDS.values())[:grids]:
        check_against_k_diffusion(name, arguments, grid)


def check_against_k_diffusion(name, arguments, grid):
    y, x = DATA.noised(SHAPE, float(grid[0]))
    expected, denoised = theirs(name, y, grid, **arguments)
    ours = {"noise": step_noise} if name in STOCHASTIC else {}
    estimates = []
    x0 = SAMPLERS[name](
        DATA.predict_v, x, grid, callback=lambda i, e: estimates.append((i, e)), **ours, **arguments
    )
    torch.testing.assert_close(x0, expected, rtol=0, atol=FLOAT64_ROUNDING)
    assert [i for i, _ in estimates] == list(range(len(grid) - 1))
    for (_, ours_i), theirs_i in zip(estimates, denoised, strict=True):
        torch.testing.assert_close(ours_i, theirs_i, rtol=0, atol=FLOAT64_ROUNDING)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [4, 20])
def test_ddim_is_diffusers_step_for_step(eta, n):
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    schedule = ZERO_SNR if eta == 0 else PLAIN  # from ∞ we take eq. 18, which has no fresh noise
    scheduler.alphas_cumprod = schedule.alpha**2
    scheduler.set_timesteps(n)
    grid = trailing(schedule, n)
    x = torch.randn(SHAPE, dtype=torch.float64)
    state = x
    for i, (t, sigma_edm) in enumerate(zip(scheduler.timesteps, grid, strict=False)):
        v = DATA.predict_v(state, sigma_edm)
        state = scheduler.step(v, t, state, eta=eta, variance_noise=step_noise(i, x)).prev_sample
    ours = ddim(DATA.predict_v, x, grid, noise=step_noise, eta=eta)
    torch.testing.assert_close(ours, state, rtol=0, atol=FLOAT64_ROUNDING)


@given(grid_levels(), gaussian_moments(), latents(SHAPE), st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
def test_ddim_is_euler_and_its_ancestral_form_in_other_terms(grid, moments, x, eta):
    data = Gaussian(*moments)
    a = ddim(data.predict_v, x, grid, noise=step_noise, eta=eta)
    b = euler_ancestral(data.predict_v, x, grid, noise=step_noise, eta=eta)
    scale = 1 + max(abs(data.mean), float(x.abs().max()))  # latents reach ±65504 here
    assert ((a - b).abs() <= FLOAT64_ROUNDING * scale).all()
    if eta == 0:
        assert torch.equal(b, euler(data.predict_v, x, grid))


@pytest.mark.parametrize("name", SAMPLERS)
@given(n=latents(SHAPE), v=latents(SHAPE))
def test_one_step_from_infinity_is_minus_v(name, n, v):
    x0 = sample_by_name(name, lambda *_: v, n, torch.tensor([math.inf, 0.0]), key=KEYS)
    assert torch.equal(x0, -v)


@pytest.mark.parametrize("name", SAMPLERS)
@given(x=latents(SHAPE), grid=grid_levels(), moments=gaussian_moments())
def test_the_result_is_the_last_denoised_estimate(name, x, grid, moments):
    estimates = []
    x0 = sample_by_name(
        name, Gaussian(*moments).predict_v, x, grid, key=KEYS, callback=lambda _, e: estimates.append(e)
    )
    assert len(estimates) == len(grid) - 1
    assert torch.equal(x0, estimates[-1])
    assert x0.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
@given(x=latents(SHAPE), grid=grid_levels())
def test_a_point_mass_is_found_in_any_number_of_steps(name, x, grid):
    data = Gaussian(mean=0.7, std=0.0)
    x0 = sample_by_name(name, data.predict_v, x, grid, key=KEYS)
    # x is at most 65504: at level σ the estimate cancels x·√(1 + σ²), most at the last level before 0
    scale = max(1.0, float(x.abs().max())) * math.hypot(1, float(grid[-2]) if grid[-2] < math.inf else 0)
    assert ((x0 - 0.7).abs() <= FLOAT64_ROUNDING * scale).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_depend_on_its_batch(name, dtype):
    n = torch.randn(SHAPE).to(dtype)
    grid = native(ZERO_SNR, 7)
    whole = sample_by_name(name, DATA.predict_v, n, grid, key=KEYS)
    for i in range(len(n)):
        alone = sample_by_name(name, DATA.predict_v, n[i : i + 1], grid, key=KEYS[i : i + 1])
        assert torch.equal(alone, whole[i : i + 1])
    assert torch.equal(sample_by_name(name, DATA.predict_v, n, grid, key=KEYS), whole)
    assert sample_by_name(name, DATA.predict_v, n[:0], grid, key=KEYS[:0]).shape == (0, *SHAPE[1:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_memory_layout_changes_no_bit_and_the_input_is_left_alone(name):
    n = torch.randn(SHAPE, dtype=torch.float64)
    grid = native(ZERO_SNR, 7)
    before, grid_before = n.clone(), grid.clone()
    expected = sample_by_name(name, DATA.predict_v, n, grid, key=KEYS)
    for layout in (
        n.to(memory_format=torch.channels_last),
        n.transpose(0, 3).contiguous().transpose(0, 3),
        torch.stack([n, n], -1)[..., 0],
    ):
        assert torch.equal(sample_by_name(name, DATA.predict_v, layout, grid, key=KEYS), expected)
    assert torch.equal(n, before)
    assert torch.equal(grid, grid_before)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("start", [4096.0, 20000.0, math.inf])
def test_a_bfloat16_network_costs_a_rounding_whatever_the_level(name, start):
    """A bfloat16 state would be off by 6.7 at 4096; a bfloat16 network is off by its own rounding of v."""

    def network(x, sigma_edm):
        return DATA.predict_v(x.bfloat16(), sigma_edm).bfloat16()

    tail = native(ZERO_SNR, 28)[1:]
    grid = torch.cat([torch.tensor([start], dtype=torch.float64), tail])
    n = torch.randn(3, 4, 16, 16)
    x0 = sample_by_name(name, network, n, grid, key=KEYS)
    exact = sample_by_name(name, DATA.predict_v, n.double(), grid, key=KEYS)
    assert x0.dtype == torch.float32
    # v is of order one and rounds once in, in the formula's few operations, and once out
    assert float((x0 - exact).mean().abs()) < BFLOAT16_ROUNDING
    assert float((x0 - exact).square().mean().sqrt()) < 4 * BFLOAT16_ROUNDING


def test_samplers_leave_no_graph_behind():
    weight = torch.ones(1, requires_grad=True)
    for name in SAMPLERS:
        x = torch.randn(SHAPE, requires_grad=True)
        x0 = sample_by_name(name, lambda x, _: weight * x, x, native(ZERO_SNR, 3), key=KEYS)
        assert not x0.requires_grad


def test_stochastic_samplers_draw_the_same_noise_in_every_run_unless_told_otherwise():
    x, grid = torch.zeros(SHAPE), native(ZERO_SNR, 3)
    places = draw_key(0, torch.arange(SHAPE[0]), 0, Purpose.INIT_NOISE)
    for sampler in (euler_ancestral, dpmpp_2m_sde):
        drawn = sampler(DATA.predict_v, x, grid)
        assert torch.equal(drawn, sampler(DATA.predict_v, x, grid, key=places))
        assert not torch.equal(drawn, sampler(DATA.predict_v, x, grid, eta=0))
    assert torch.equal(
        ddim(DATA.predict_v, x, grid, eta=0.5), ddim(DATA.predict_v, x, grid, eta=0.5, key=places)
    )


@pytest.mark.parametrize("sampler", [euler_ancestral, ddim, dpmpp_2m_sde])
@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf])
def test_impossible_etas_are_refused(sampler, eta):
    with pytest.raises(InputError, match="eta is"):
        sampler(DATA.predict_v, torch.zeros(SHAPE), native(ZERO_SNR, 3), key=KEYS, eta=eta)


@pytest.mark.parametrize(("name", "nearest"), [("dpmpp2m", "dpmpp_2m"), ("eular", "euler"), ("", "")])
def test_an_unknown_sampler_names_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"unknown; did you mean '{nearest}"):
        sample_by_name(name, DATA.predict_v, torch.zeros(SHAPE), native(ZERO_SNR, 3))
