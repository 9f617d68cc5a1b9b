"""v-prediction: exact at pure noise, invertible elsewhere, refused where it is undefined."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.conformance.adapters.reference import Reference
from refimpl.diffusion.config import PARAMETERISATIONS
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.diffusion.v_prediction import (
    add_noise,
    check_parameterisation,
    eps_from_v,
    target,
    v_from_eps,
    v_from_output,
    v_from_x0,
    v_target,
    x0_from_v,
)
from refimpl.errors import InputError
from tests.conforming import conforms
from tests.strategies import latent_shapes, latents, vp_pairs
from tests.tolerances import FLOAT32_BETAS, FLOAT32_ROUNDING, FLOAT64_ROUNDING

PLAIN = sdxl_schedule()
ZTSNR = zero_terminal_snr(PLAIN)
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
TIMESTEPS = st.sampled_from((500, 999))  # the second is refused where a conversion divides by alpha
BINARY = pytest.mark.parametrize(
    "function", [add_noise, v_target, x0_from_v, eps_from_v, v_from_eps, v_from_x0], ids=lambda f: f.__name__
)


def magnitude(*tensors: torch.Tensor) -> float:
    """The largest absolute value, at least 1: the scale of the rounding errors of a sum."""
    return max([1.0, *(float(t.abs().max()) for t in tensors if t.numel())])


class InFloat64(Reference):
    """This project's arithmetic in float64, whatever dtype it is given."""

    def noised(self, x0, eps, t):
        return super().noised(x0.double(), eps.double(), t).to(x0.dtype)

    def target(self, x0, eps, t):
        return super().target(x0.double(), eps.double(), t)


@pytest.mark.parametrize("adapter", [Reference, InFloat64])
@pytest.mark.parametrize("part", ["noised", "target"])
def test_pure_noise_is_exact(part, adapter):
    conforms(f"{part}.pure_noise", on=adapter())


def test_what_every_trainer_noises_alike():
    conforms("noised.mixes", within=FLOAT32_ROUNDING)
    conforms("noised.low_noise_in_bfloat16")
    conforms("noised.keeps_dtype")
    conforms("noised.batch_independent")


def test_what_every_network_learns():
    conforms("target.velocity", within=FLOAT32_ROUNDING)
    conforms("target.inverts")


@DTYPES
@given(data=st.data())
def test_pure_noise_comes_back_exactly(dtype, data):
    """From x_t = eps and v = −x0, and the same in every layout and for no samples."""
    shape = data.draw(latent_shapes())
    x0, eps = data.draw(latents(shape, dtype)), data.draw(latents(shape, dtype))
    alpha, sigma = ZTSNR.at(torch.full(shape[:1], 999))
    assert torch.equal(x0_from_v(eps, -x0, alpha, sigma), x0)
    assert torch.equal(eps_from_v(eps, -x0, alpha, sigma), eps)
    assert torch.equal(v_from_x0(eps, x0, alpha, sigma), -x0)


@given(data=st.data())
def test_x0_and_eps_come_back(data):
    shape = data.draw(latent_shapes())
    x0, eps = data.draw(latents(shape)), data.draw(latents(shape))
    alpha, sigma = data.draw(vp_pairs(shape[0]))
    x_t, v = add_noise(x0, eps, alpha, sigma), v_target(x0, eps, alpha, sigma)
    slack = FLOAT64_ROUNDING * magnitude(x0, eps)
    assert torch.allclose(x0_from_v(x_t, v, alpha, sigma), x0, rtol=0, atol=slack)
    assert torch.allclose(eps_from_v(x_t, v, alpha, sigma), eps, rtol=0, atol=slack)


@given(st.data(), st.integers(0, 998))
def test_v_comes_back_from_eps_and_x0(data, t):
    shape = data.draw(latent_shapes())
    x0, eps = data.draw(latents(shape)), data.draw(latents(shape))
    alpha, sigma = ZTSNR.at(torch.full(shape[:1], t))
    x_t, v = add_noise(x0, eps, alpha, sigma), v_target(x0, eps, alpha, sigma)
    slack = FLOAT64_ROUNDING * magnitude(x0, eps)
    near_noise, near_signal = float(ZTSNR.alpha[t]), float(ZTSNR.sigma[t])
    assert torch.allclose(v_from_eps(x_t, eps, alpha, sigma), v, rtol=0, atol=slack / near_noise)
    assert torch.allclose(v_from_x0(x_t, x0, alpha, sigma), v, rtol=0, atol=slack / near_signal)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_what_a_network_learns_converts_to_v(parameterisation):
    x0, eps = torch.randn(2, 8, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = PLAIN.at(torch.linspace(0, 999, 8).long())
    x_t = add_noise(x0, eps, alpha, sigma)
    output = target(x0, eps, alpha, sigma, parameterisation)
    v = v_from_output(output, x_t, alpha, sigma, parameterisation)
    # x0- and eps-outputs are divided by at least sigma_0 = 0.029 and alpha_999 = 0.068
    assert torch.allclose(v, v_target(x0, eps, alpha, sigma), rtol=0, atol=100 * FLOAT64_ROUNDING)


def test_at_no_noise_v_is_the_noise():
    x0, eps = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(v_target(x0, eps, 1.0, 0.0), eps)
    assert torch.equal(add_noise(x0, eps, 1.0, 0.0), x0)


def test_the_formulas_in_diffusers():
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, eps = torch.randn(2, 16, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 999, 16).long()
    alpha, sigma = PLAIN.at(t)
    slack = FLOAT32_BETAS * magnitude(x0, eps)
    assert torch.allclose(
        add_noise(x0, eps, alpha, sigma), scheduler.add_noise(x0, eps, t), rtol=0, atol=slack
    )
    assert torch.allclose(
        v_target(x0, eps, alpha, sigma), scheduler.get_velocity(x0, eps, t), rtol=0, atol=slack
    )


# --- precision, layout, shapes ---


@BINARY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@settings(max_examples=30)  # of each function
@given(data=st.data())
def test_low_precision_is_rounded_once(function, dtype, data):
    shape = data.draw(latent_shapes())
    a, b = data.draw(latents(shape, dtype)), data.draw(latents(shape, dtype))
    alpha, sigma = ZTSNR.at(torch.full(shape[:1], data.draw(st.integers(0, 998))))
    result = function(a, b, alpha, sigma)
    assert result.dtype == dtype
    assert torch.equal(result, function(a.float(), b.float(), alpha, sigma).to(dtype))


@BINARY
@settings(max_examples=30)  # of each function
@given(data=st.data())
def test_float32_follows_float64(function, data):
    shape = data.draw(latent_shapes())
    a, b = data.draw(latents(shape, torch.float32)), data.draw(latents(shape, torch.float32))
    t = data.draw(st.integers(0, 998))
    alpha, sigma = ZTSNR.at(torch.full(shape[:1], t))
    divisor = {v_from_eps: float(ZTSNR.alpha[t]), v_from_x0: float(ZTSNR.sigma[t])}.get(function, 1.0)
    exact = function(a.double(), b.double(), alpha, sigma)
    slack = FLOAT32_ROUNDING * magnitude(a, b) / divisor
    assert torch.allclose(function(a, b, alpha, sigma).double(), exact, rtol=0, atol=slack)


@BINARY
@settings(max_examples=30)  # of each function
@given(data=st.data())
def test_layout_changes_nothing_and_inputs_stay(function, data):
    shape = data.draw(latent_shapes())
    a, b = data.draw(latents(shape)), data.draw(latents(shape))
    alpha, sigma = ZTSNR.at(torch.full(shape[:1], 500 if function is v_from_eps else data.draw(TIMESTEPS)))
    kept = a.clone(), b.clone()
    result = function(a, b, alpha, sigma)
    assert result.shape == shape
    assert torch.equal(result, function(a.contiguous(), b.contiguous(), alpha, sigma))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


@BINARY
def test_one_number_stands_for_the_whole_batch(function):
    a, b = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = ZTSNR.at(torch.tensor([700, 700, 700]))
    per_sample = function(a, b, alpha, sigma)
    assert torch.equal(function(a, b, float(alpha[0]), float(sigma[0])), per_sample)
    assert torch.equal(function(a, b, alpha[0], sigma[0]), per_sample)


def test_a_float64_table_does_not_widen_float32_latents():
    x0 = torch.ones(2, 4, 2, 2)
    assert add_noise(x0, x0, *ZTSNR.at(torch.tensor([1, 2]))).dtype == torch.float32
    assert add_noise(x0.bfloat16(), x0, 0.6, 0.8).dtype == torch.bfloat16


def test_gradients_pass():
    x_t = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    alpha, sigma = ZTSNR.at(torch.tensor([3, 999]))
    assert torch.autograd.gradcheck(lambda x, y: x0_from_v(x, y, alpha, sigma), (x_t, v))


# --- wrong input ---


@BINARY
def test_shapes_that_disagree_are_named(function):
    x = torch.ones(2, 4, 3, 3)
    with pytest.raises(InputError, match=r"\[2, 4, 3, 3\].*\[2, 4, 3, 2\]"):
        function(x, x[..., :2], torch.ones(2), torch.ones(2))
    with pytest.raises(InputError, match=r"alpha has shape \[3\].*\[2, 4, 3, 3\].*\[B\]"):
        function(x, x, torch.ones(3), torch.ones(2))
    with pytest.raises(InputError, match=r"sigma has shape \[2, 1, 1, 1\]"):
        function(x, x, torch.ones(2), torch.ones(2, 1, 1, 1))
    with pytest.raises(InputError, match=r"floating-point.*int64"):
        function(x.long(), x.long(), torch.ones(2), torch.ones(2))


def test_conversions_that_divide_by_zero_are_refused():
    x = torch.ones(2, 4, 2, 2)
    with pytest.raises(InputError, match=r"alpha is 0.*SNR 0"):
        v_from_eps(x, x, *ZTSNR.at(torch.tensor([5, 999])))
    with pytest.raises(InputError, match="sigma is 0"):
        v_from_x0(x, x, 1.0, 0.0)


def test_eps_with_zero_snr_is_refused_and_told_why():
    with pytest.raises(InputError, match=r"'eps'.*zero-terminal-SNR.*SNR is 0.*divides by alpha = 0.*'v'"):
        check_parameterisation("eps", ZTSNR)
    check_parameterisation("eps", PLAIN)
    for parameterisation in ("v", "x0"):
        check_parameterisation(parameterisation, ZTSNR)


@pytest.mark.parametrize("name", ["epsilon", "", "V"])
def test_unknown_parameterisations_are_refused(name):
    x = torch.ones(1, 4, 2, 2)
    for call in (
        lambda: check_parameterisation(name),
        lambda: target(x, x, 0.6, 0.8, name),
        lambda: v_from_output(x, x, 0.6, 0.8, name),
    ):
        with pytest.raises(InputError, match=f"'{name}'.*v, eps, x0"):
            call()


def test_nan_is_passed_on():
    x = torch.full((1, 1, 1, 1), math.nan)
    assert torch.isnan(add_noise(x, x, 0.6, 0.8)).all()
