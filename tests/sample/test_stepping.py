"""What the samplers share: the step from ∞, the noise of stochastic steps, the start of image-to-image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conformance.checks.sampling.first_step import equation_18
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, philox4x32
from refimpl.errors import InputError
from refimpl.sample.grids import karras, native
from refimpl.sample.samplers import SAMPLERS, euler, sample_by_name
from refimpl.sample.stepping import (
    JUMP_RATIO,
    LARGEST_SIGMA,
    Step,
    begin,
    check_eta,
    draw_noise,
    is_jump,
    noise_source,
    sdedit_start,
)
from tests.conforming import conforms
from tests.sample.gaussian import Gaussian
from tests.sample.schedules import FINITE_GRIDS, PLAIN, ZERO_SNR
from tests.strategies import grid_levels, latents
from tests.tolerances import FLOAT64_ROUNDING, STANDARD_ERRORS

SHAPE = (2, 3, 4, 5)
KEYS = draw_key(7, torch.arange(5), 0, Purpose.INIT_NOISE)


@pytest.mark.parametrize("check", ["from_infinity", "network_sees_the_noise", "one_call"])
def test_the_first_of_28_steps_is_exact(check):
    conforms(f"first_step.{check}", within=0)


def test_the_first_of_28_steps_in_bfloat16():
    conforms("first_step.in_bfloat16")


@given(latents(SHAPE), latents(SHAPE), grid_levels(from_infinity=True))
def test_the_step_from_infinity_is_equation_18_to_the_bit(n, v, grid):
    seen = []

    def network(x, sigma_edm):
        seen.append((x, sigma_edm))
        return v

    run = begin(network, n, grid, None)
    assert torch.equal(run.y, equation_18(n, v, float(grid[1])))
    (x, sigma_edm), *others = seen
    assert not others
    assert torch.equal(x, n)
    assert sigma_edm == math.inf
    assert sigma_edm.shape == ()
    assert sigma_edm.dtype == torch.float64
    assert run.steps == [Step(i, float(grid[i]), float(grid[i + 1])) for i in range(1, len(grid) - 1)]


@given(latents(SHAPE), grid_levels(from_infinity=False).filter(lambda grid: not is_jump(*grid[:2].tolist())))
def test_a_finite_start_scales_to_variance_exploding_and_asks_nothing(x, grid):
    run = begin(lambda *_: pytest.fail("no network call is due"), x, grid, None)
    torch.testing.assert_close(run.y, x * math.hypot(1, float(grid[0])), rtol=FLOAT64_ROUNDING, atol=0)
    assert len(run.steps) == len(grid) - 1


@given(
    latents(SHAPE),
    st.sampled_from((JUMP_RATIO, 356.0, 1123.0)) | st.floats(JUMP_RATIO, 1e6),
    st.floats(1e-3, 100),
)
def test_a_start_from_a_huge_level_is_an_eulers_step_outside_every_history(x, ratio, following):
    data, sigma = Gaussian(0.7, 0.6), ratio * following
    grid = torch.tensor([sigma, following, following / 2, 0.0], dtype=torch.float64)
    seen = []
    run = begin(data.predict_v, x, grid, lambda step, estimate: seen.append((step, estimate)))
    assert run.steps == [Step(1, following, following / 2), Step(2, following / 2, 0.0)]
    y = x.double() * math.hypot(1, sigma)
    x0 = data.denoiser(y, torch.full((len(x),), sigma, dtype=torch.float64))
    scale = 1 + float(x.abs().max())  # latents reach ±65504 here
    assert [step for step, _ in seen] == [0]
    assert ((seen[0][1] - x0).abs() <= FLOAT64_ROUNDING * scale * max(1, sigma)).all()
    expected = x0 + following * (y - x0) / sigma
    assert ((run.y - expected).abs() <= FLOAT64_ROUNDING * scale * max(1, sigma)).all()


def test_what_is_a_jump():
    assert is_jump(math.inf, 0.0)
    assert is_jump(math.inf, 2254.0)
    assert is_jump(JUMP_RATIO, 1.0)
    assert not is_jump(math.nextafter(JUMP_RATIO, 0), 1.0)
    assert not is_jump(3.0, 0.0)  # the last step: every sampler returns the denoised estimate
    assert is_jump(20000.0, 56.178238948721265)
    for grid in FINITE_GRIDS.values():  # on which the samplers are k-diffusion's
        assert not is_jump(*grid[:2].tolist())
    # Karras et al.'s 80 to 0.002 in four steps
    assert not is_jump(*karras(PLAIN, 4, sigma_min=0.002, sigma_max=80.0)[:2].tolist())


def test_why_a_jump_is_of_first_order():
    """The docstring's numbers: the largest error of one step over Gaussians of all spreads, Euler's and Heun's."""
    spread = torch.logspace(-3, 7, 20001, dtype=torch.float64)

    def errors(ratio):
        exact = torch.sqrt((spread**2 + 1) / (spread**2 + ratio**2))
        euler = (spread**2 + ratio) / (spread**2 + ratio**2)
        slopes = ratio / (spread**2 + ratio**2), euler / (spread**2 + 1)
        heun = 1 + (1 - ratio) * sum(slopes) / 2
        return float((1 - euler / exact).max()), float((heun / exact - 1).abs().max())

    for ratio in (2.0, JUMP_RATIO, 356.0, 1123.0):
        of_euler, _ = errors(ratio)
        assert of_euler == pytest.approx(1 - 2 * math.sqrt(ratio) / (1 + ratio), abs=1e-4)
    assert errors(8.6)[1] < 1 < errors(8.7)[1]
    assert [round(errors(ratio)[1]) for ratio in (20000 / 56.178, 20000 / 17.8)] == [68, 215]


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_from_a_huge_level_approach_those_from_infinity(name):
    data, tail = Gaussian(0.7, 0.6), native(ZERO_SNR, 28)[1:]
    n = keyed_normal(KEYS, (4, 6, 5)).double()
    results = [
        sample_by_name(name, data.predict_v, n, torch.cat([tail.new_tensor([start]), tail]), key=KEYS)
        for start in (1e4, 1e6, math.inf)
    ]
    far, near = ((result - results[2]).abs().max() for result in results[:2])
    assert near < far / 50
    assert near < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_network_gets_the_callers_dtype_and_the_state_is_float64(dtype):
    data = Gaussian(0.5, 1.0)
    dtypes = []

    def network(x, sigma_edm):
        dtypes.append(x.dtype)
        return data.predict_v(x.double(), sigma_edm).to(dtype)

    run = begin(network, torch.randn(SHAPE).to(dtype), native(ZERO_SNR, 4), None)
    assert run.y.dtype == torch.float64
    assert run.begin_step(run.y, run.steps[0])[0].dtype == torch.float64
    assert run.finish(run.y).dtype == dtype
    assert dtypes == [dtype, dtype]


def test_why_the_state_is_not_half_precision():
    """The figures in the docstring: the error of rounding the variance-exploding state itself."""
    n = keyed_normal(KEYS, (4, 64, 64)).double()
    y = 4096 * n
    assert round(float((y.bfloat16().double() - y).square().mean().sqrt()), 1) == 6.7
    assert torch.isinf((20000 * n).half()).any()


@pytest.mark.parametrize(
    ("x", "grid", "message"),
    [
        (torch.zeros(SHAPE, dtype=torch.int64), [math.inf, 0], "floating-point"),
        (torch.zeros(SHAPE, dtype=torch.complex64), [math.inf, 0], "floating-point"),
        (torch.zeros(()), [math.inf, 0], "floating-point"),
        (torch.full(SHAPE, math.inf), [math.inf, 0], "variance-preserving"),
        (torch.full(SHAPE, math.nan), [3.0, 0], "variance-preserving"),
        (torch.zeros(SHAPE), [2 * LARGEST_SIGMA, 0], "use inf"),
        (torch.zeros(SHAPE), [math.inf, 2 * LARGEST_SIGMA, 0], "use inf"),
        (torch.zeros(SHAPE), [3.0, 1.0], "sigmas: the last entry"),
        (torch.zeros(SHAPE), [3.0, math.nan, 0.0], "sigmas: entry 1 is NaN"),
        (torch.zeros(SHAPE), [3.0, math.inf, 0.0], "sigmas: entries 0 and 1"),
        (torch.zeros(SHAPE), [1.0, 3.0, 0.0], "sigmas: entries 0 and 1"),
    ],
)
def test_bad_starts_are_refused_before_the_network_is_asked(x, grid, message):
    with pytest.raises(InputError, match=message):
        begin(
            lambda *_: pytest.fail("no network call is due"), x, torch.tensor(grid, dtype=torch.float64), None
        )


@pytest.mark.parametrize("grid", [[math.inf, 1.0, 0.0], [3.0, 1.0, 0.0]])
def test_a_network_of_another_shape_is_refused(grid):
    with pytest.raises(InputError, match=r"predict_v at sigma_edm .*returned shape \[2, 1, 4, 5\]"):
        euler(lambda x, _: x[:, :1], torch.zeros(SHAPE), torch.tensor(grid))


def test_keyed_noise_is_a_function_of_sample_and_step():
    like = torch.zeros(5, 4, 3, 7, dtype=torch.float64)
    source = noise_source(None, KEYS, like)
    z = source(3, like)
    assert torch.equal(z, source(3, like))
    # its definition, which other implementations can reproduce
    step_keys = philox4x32(torch.tensor([3, 0, 0, 1]).expand(5, 4), KEYS)[:, :2]
    assert torch.equal(z, keyed_normal(step_keys, (4, 3, 7)))
    one_by_one = [noise_source(None, KEYS[i : i + 1], like[:1])(3, like[:1]) for i in range(5)]
    assert torch.equal(z, torch.cat(one_by_one))
    others = [source(step, like) for step in (0, 1, 2, 4)] + [keyed_normal(KEYS, (4, 3, 7))]
    assert all((z != other).all() for other in others)


def test_keyed_noise_is_standard_normal_and_uncorrelated_with_the_first_noise():
    like = torch.zeros(5, 4, 64, 64)
    source = noise_source(None, KEYS, like)
    draws = (
        torch.stack([keyed_normal(KEYS, (4, 64, 64)), source(0, like), source(1, like)]).flatten(1).double()
    )
    error = STANDARD_ERRORS / math.sqrt(draws.shape[1])
    assert (draws.mean(1).abs() < error).all()
    assert ((draws.cov() - torch.eye(3)).abs() < math.sqrt(2) * error).all()


@pytest.mark.parametrize(
    ("noise", "key", "message"),
    [
        (lambda step, like: like, KEYS[:2], "both noise= and key="),
        (None, KEYS, r"key: shape \[5, 2\] for x of shape \[2, 3, 4, 5\]"),
        (None, KEYS[:2, :1], "key: shape"),
        (None, KEYS[0], "key: shape"),
        (None, KEYS[:2].double(), "int64"),
    ],
)
def test_noise_comes_from_one_place_that_fits(noise, key, message):
    x = torch.zeros(SHAPE)
    with pytest.raises(InputError, match=message):
        noise_source(noise, key, x)(0, x)


def test_noise_without_a_source_is_keyed_by_the_place_in_the_batch():
    like = torch.zeros(5, 4, 3, 7)
    places = draw_key(0, torch.arange(5), 0, Purpose.INIT_NOISE)
    assert torch.equal(noise_source(None, None, like)(3, like), noise_source(None, places, like)(3, like))


def test_keyed_noise_of_any_shape_is_the_same_row_of_numbers():
    like = torch.zeros(5, 4, 3, 7)
    z = noise_source(None, KEYS, like)(3, like)
    for shape in ((5, 84), (5, 12, 7)):
        assert torch.equal(noise_source(None, KEYS, like.view(shape))(3, like.view(shape)), z.view(shape))
    assert noise_source(None, KEYS, torch.zeros(5))(3, torch.zeros(5)).shape == (5,)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(InputError, match="noise at step 4: shape"):
        draw_noise(lambda _, like: like[:1], Step(4, 2.0, 1.0), torch.zeros(SHAPE))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(InputError, match="eta is"):
        check_eta(eta, most=1)


@given(latents(SHAPE), latents(SHAPE), st.floats(0, 1e6))
def test_image_to_image_starts_from_the_noised_image(x0, noise, sigma):
    x = sdedit_start(x0, noise, sigma)
    expected = (x0 + sigma * noise) / math.hypot(1, sigma)
    scale = (x0.abs().max() + sigma * noise.abs().max()) / math.hypot(1, sigma)
    assert ((x - expected).abs() <= FLOAT64_ROUNDING * scale).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image_skips_the_step_from_infinity(name):
    """N App. A.1: the network is never asked at ∞; its first level is the one that the image starts at."""
    data, asked = Gaussian(0.7, 0.6), []
    grid = native(ZERO_SNR, 28, sigma_max=14.6)

    def network(x, sigma_edm):
        asked.append(float(sigma_edm.max()))
        return data.predict_v(x, sigma_edm)

    x0, noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = sdedit_start(x0, noise, float(grid[0]))
    run = begin(network, x, grid, None)
    assert not asked
    assert run.steps == [Step(i, float(grid[i]), float(grid[i + 1])) for i in range(len(grid) - 1)]
    torch.testing.assert_close(
        run.y, x0 + float(grid[0]) * noise, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING
    )
    sample_by_name(name, network, x, grid, key=KEYS[:2])
    assert asked[0] == float(grid[0]) == pytest.approx(14.6)
    assert max(asked) == asked[0]


def test_image_to_image_at_the_ends_of_the_noise():
    x0, noise = torch.randn(2, *SHAPE)
    assert torch.equal(sdedit_start(x0, noise, 0.0), x0)
    assert torch.equal(sdedit_start(x0, noise, math.inf), noise)
    assert sdedit_start(x0.bfloat16(), noise, 1.0).dtype == torch.bfloat16
    with pytest.raises(InputError, match="shape"):
        sdedit_start(x0, noise[:1], 1.0)
    for sigma in (-1.0, math.nan):
        with pytest.raises(InputError, match="sigma_edm"):
            sdedit_start(x0, noise, sigma)
