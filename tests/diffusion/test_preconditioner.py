"""The preconditioner against high-precision arithmetic, k-diffusion, and its limits."""

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conformance.checks.sampling.scalings import printed_scalings
from refimpl.diffusion.preconditioner import PARITY_SIGMA_MAX, alpha_sigma, denoise, scalings
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.diffusion.v_prediction import add_noise, v_target
from refimpl.errors import InputError
from tests.conforming import conforms
from tests.oracles import k_diffusion
from tests.strategies import latent_shapes, latents, noise_levels
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING

ZTSNR = zero_terminal_snr(sdxl_schedule())
DTYPES = pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, FLOAT64_ROUNDING), (torch.float32, FLOAT32_ROUNDING)], ids=str
)
OTHER_SIGMA_DATA = st.sampled_from((0.5, 3.0, 0.13025)) | st.floats(1e-3, 1e3)
SIGMA_DATA = st.sampled_from((1.0, 0.5, 3.0, 0.13025)) | st.floats(1e-3, 1e3)


@pytest.mark.parametrize("check", ["without_noise", "at_infinity", "finite_levels", "huge_levels"])
def test_scalings_conform(check):
    conforms(f"scalings.{check}", within=FLOAT32_ROUNDING)


@DTYPES
@given(sigma_data=OTHER_SIGMA_DATA)
def test_limits_are_exact_whatever_the_datas_deviation(dtype, rounding, sigma_data):
    sigma_data = torch.tensor(sigma_data, dtype=dtype).item()
    c_skip, c_out, c_in = scalings(torch.tensor([0.0, math.inf], dtype=dtype), sigma_data)
    assert c_skip.tolist() == [1, 0]
    assert c_out.tolist() == [0, -sigma_data]
    assert c_in.tolist() == [torch.tensor(sigma_data, dtype=dtype).reciprocal().item(), 0]


@DTYPES
@given(sigma=noise_levels(), sigma_data=SIGMA_DATA)
def test_scalings_equal_the_printed_equations(dtype, rounding, sigma, sigma_data):
    sigma = torch.tensor(sigma, dtype=dtype)  # what the dtype makes of it, inf included
    results = scalings(sigma, sigma_data)
    expected = printed_scalings(sigma.item(), sigma_data)
    smallest = torch.finfo(dtype).tiny * (1 + sigma_data)  # below it a result may be flushed to 0
    for actual, value in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert actual.item() == pytest.approx(value, rel=rounding, abs=smallest)


@DTYPES
@given(sigma=noise_levels())
def test_alpha_and_sigma_of_a_level(dtype, rounding, sigma):
    alpha, vp_sigma = alpha_sigma(torch.tensor(sigma, dtype=dtype))
    assert alpha.item() ** 2 + vp_sigma.item() ** 2 == pytest.approx(1, rel=rounding)
    assert 0 <= alpha.item() <= 1
    assert 0 <= vp_sigma.item() <= 1


def test_alpha_and_sigma_are_those_of_the_schedule():
    alpha, sigma = alpha_sigma(ZTSNR.sigma_edm)
    assert torch.allclose(alpha, ZTSNR.alpha, rtol=FLOAT64_ROUNDING, atol=0)
    assert torch.allclose(sigma, ZTSNR.sigma, rtol=FLOAT64_ROUNDING, atol=0)
    assert (alpha[999].item(), sigma[999].item()) == (0, 1)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_scalings_of_k_diffusion(sigma_data):
    theirs = k_diffusion("external").VDenoiser(None)
    theirs.sigma_data = sigma_data
    sigma = torch.logspace(-6, 6, 200, dtype=torch.float64)
    for ours, other in zip(scalings(sigma, sigma_data), theirs.get_scalings(sigma), strict=True):
        assert torch.allclose(ours, other, rtol=FLOAT64_ROUNDING, atol=0)


def test_numbers_shapes_and_dtypes():
    assert [c.item() for c in scalings(14.6)] == [
        c.item() for c in scalings(torch.tensor(14.6, dtype=torch.float64))
    ]
    assert scalings(1)[0].dtype == torch.float64
    assert scalings(torch.ones(2, 3, dtype=torch.bfloat16))[0].dtype == torch.float32
    assert scalings(torch.ones(2, 3))[2].shape == (2, 3)
    assert scalings(torch.ones(0))[0].shape == (0,)


# --- the denoiser D(x; σ) ---


@DTYPES
@given(data=st.data())
def test_a_perfect_network_denoises_perfectly(dtype, rounding, data):
    shape = data.draw(latent_shapes())
    x0, n = data.draw(latents(shape, dtype)), data.draw(latents(shape, dtype))
    t = torch.tensor(
        data.draw(st.lists(st.integers(0, 999), min_size=shape[0], max_size=shape[0])), dtype=torch.long
    )
    alpha, sigma = ZTSNR.at(t)
    v = v_target(x0, n, alpha, sigma)
    level = ZTSNR.sigma_edm[t]
    column = level.to(dtype)[:, None, None, None]
    x = torch.where(torch.isinf(column), n, x0 + torch.where(torch.isinf(column), 0, column) * n)
    seen = {}

    def network(x_vp, sigma_edm):
        seen["x_vp"], seen["sigma_edm"] = x_vp, sigma_edm
        return v

    estimate = denoise(network, x, level)
    scale = max([1.0, *(float(z.abs().max()) for z in (x0, n) if z.numel())])
    assert estimate.dtype == dtype
    assert torch.allclose(estimate, x0, rtol=0, atol=rounding * scale)
    assert torch.allclose(seen["x_vp"], add_noise(x0, n, alpha, sigma), rtol=0, atol=rounding * scale)
    assert torch.equal(seen["sigma_edm"], level)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_at_infinity_the_network_gets_the_noise_itself(sigma_data):
    n, v = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = []
    estimate = denoise(lambda x, sigma: seen.append(x) or v, n, math.inf, sigma_data)
    assert torch.equal(seen[0], n)
    assert torch.equal(estimate, -sigma_data * v)  # eq. 18


def test_noise_that_a_float32_can_hold_does_not_overflow():
    n = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    estimate = denoise(lambda x, sigma: -x, 1e30 * n, 1e30)
    assert torch.allclose(estimate, n, rtol=FLOAT32_ROUNDING, atol=0)


def test_a_network_in_bfloat16_leaves_the_state_in_float32():
    x = torch.ones(1, 4, 2, 2)
    assert denoise(lambda x_vp, sigma: x_vp.bfloat16(), x, 4096.0).dtype == torch.float32


# --- parity modes ---


def test_where_the_clamps_come_from():
    def last_level(abar: float) -> float:
        return math.sqrt((1 - abar) / abar)

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    assert float(scheduler.sigmas.max()) == pytest.approx(PARITY_SIGMA_MAX["diffusers"], rel=FLOAT32_ROUNDING)
    assert last_level(2.0**-24) == pytest.approx(PARITY_SIGMA_MAX["diffusers"], rel=FLOAT32_ROUNDING)
    assert last_level(4.8973451890853435e-08) == pytest.approx(
        PARITY_SIGMA_MAX["comfyui"], rel=FLOAT32_ROUNDING
    )


# --- wrong input ---


@pytest.mark.parametrize("sigma_edm", [-1.0, -1e-300, math.nan, -math.inf])
def test_impossible_noise_levels_are_refused(sigma_edm):
    for level in (sigma_edm, torch.tensor([1.0, sigma_edm], dtype=torch.float64)):
        with pytest.raises(InputError, match=rf"at least 0.*\[{sigma_edm}\]"):
            scalings(level)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan, math.inf])
def test_impossible_sigma_data_is_refused(sigma_data):
    with pytest.raises(InputError, match=f"sigma_data must be positive and finite, got {sigma_data}"):
        scalings(1.0, sigma_data)


def test_wrong_latents_are_refused():
    x = torch.ones(2, 4, 2, 2)
    with pytest.raises(InputError, match=r"float32 or float64.*bfloat16"):
        denoise(lambda x_vp, sigma: x_vp, x.bfloat16(), 1.0)
    with pytest.raises(InputError, match=r"sigma_edm has shape \[3\], x \[2, 4, 2, 2\]"):
        denoise(lambda x_vp, sigma: x_vp, x, torch.ones(3))
    with pytest.raises(InputError, match=r"\[2, 4, 2, 1\].*\[2, 4, 2, 2\]"):
        denoise(lambda x_vp, sigma: x_vp[..., :1], x, 1.0)
