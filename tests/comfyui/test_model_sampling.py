"""c_skip, c_out, c_in and the timestep of ComfyUI's calls, numerically against the preconditioner."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.comfyui.levels import STAND_IN_FOR_INFINITY, levels_for
from refimpl.comfyui.model_sampling import model_sampling, noise_level
from refimpl.diffusion.preconditioner import denoise, scalings
from tests.comfyui import stub
from tests.comfyui.gaussian_model import noise
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import FLOAT32_ROUNDING

TOP = STAND_IN_FOR_INFINITY


def sampling(schedule=ZERO_SNR, v_prediction: bool = True, sigma_data: float = 1.0, terminal: str = "exact"):
    return model_sampling(levels_for(schedule, terminal, 0.0, None), v_prediction, sigma_data, None)


def test_it_is_comfyuis_own_kind() -> None:
    assert isinstance(sampling(), stub.V_PREDICTION)
    assert isinstance(sampling(), stub.ModelSamplingDiscrete)
    eps = sampling(PLAIN, v_prediction=False)
    assert isinstance(eps, stub.EPS)
    assert not isinstance(eps, stub.V_PREDICTION)


def test_comfyui_sees_the_levels_of_the_schedule() -> None:
    own = sampling()
    assert torch.equal(own.sigmas[:-1], ZERO_SNR.sigma_edm[:-1].float())
    assert float(own.sigma_max) == TOP
    assert float(own.sigma_min) == float(ZERO_SNR.sigma_edm[0].float())
    assert torch.equal(own.timestep(own.sigmas), torch.arange(1000.0))
    assert own.percent_to_sigma(0.5) == pytest.approx(
        float(ZERO_SNR.t_to_sigma_edm(499.5)), rel=FLOAT32_ROUNDING
    )


@pytest.mark.parametrize("sigma_data", [0.1, 1.0, 3.0])
def test_the_first_evaluation_is_that_of_pure_noise(sigma_data: float) -> None:
    own, n, f = sampling(sigma_data=sigma_data), noise(2, 4, 3, 5), noise(2, 4, 5, 3).transpose(2, 3)
    latent = 7 * torch.ones_like(n)
    for sigma in (torch.tensor(TOP), torch.full((2,), TOP)):
        x = own.noise_scaling(sigma, n, latent, True)
        assert torch.equal(x, TOP * n)
        assert torch.equal(own.calculate_input(sigma, x), n)  # c_in·σ → 1
        assert (own.timestep(sigma) == 999).all()
        expected = -torch.tensor(sigma_data) * f  # c_skip 0, c_out −σd
        assert torch.equal(own.calculate_denoised(sigma, f, x), expected)
    assert own.inverse_noise_scaling(torch.tensor(0.0), n) is n


@given(
    sigma=st.floats(2.0**-5, 2254, width=32) | st.sampled_from((2.0**-6, 20000.0)),
    sigma_data=st.sampled_from((0.1, 0.5, 1.0, 3.0)),
)
def test_finite_levels_are_the_preconditioners(sigma: float, sigma_data: float) -> None:
    own, x, f = sampling(sigma_data=sigma_data), noise(3, 2, 2, 3), noise(3, 2, 3, 2).transpose(2, 3)
    x = math.hypot(sigma, sigma_data) * x
    level = torch.full((3,), sigma)
    c_skip, c_out, c_in = (float(part) for part in scalings(sigma, sigma_data))
    denoised = own.calculate_denoised(level, f, x).double()
    expected = denoise(lambda *_: f.double(), x.double(), sigma, sigma_data)
    assert (denoised - expected).abs().max() <= FLOAT32_ROUNDING * expected.abs().max()
    assert (
        denoised - (c_skip * x.double() + c_out * f)
    ).abs().max() <= FLOAT32_ROUNDING * expected.abs().max()
    inputs = own.calculate_input(level, x).double()
    assert (inputs - c_in * x.double()).abs().max() <= FLOAT32_ROUNDING * inputs.abs().max()


def test_every_sample_has_its_own_level() -> None:
    own, x, f = sampling(), noise(3, 4, 2, 2), noise(3, 4, 2, 2).flip(0)
    sigma = torch.tensor([TOP, 56.178238, 0.0292])
    together = own.calculate_denoised(sigma, f, x), own.calculate_input(sigma, x)
    for i in range(3):
        alone = slice(i, i + 1)
        assert torch.equal(together[0][alone], own.calculate_denoised(sigma[alone], f[alone], x[alone]))
        assert torch.equal(together[1][alone], own.calculate_input(sigma[alone], x[alone]))


def test_finite_starts_keep_the_latent_image() -> None:
    own, n, latent = sampling(), noise(2, 4, 2, 2), noise(4, 4, 2, 2)[:2]
    assert torch.equal(own.noise_scaling(torch.tensor(3.5), n, latent), 3.5 * n + latent)
    trivial = sampling(terminal="20000")
    x = trivial.noise_scaling(torch.tensor(20000.0), n, latent, True)
    assert torch.equal(x, n * torch.sqrt(1 + torch.tensor(20000.0) ** 2) + latent)  # as ComfyUI has it
    assert trivial.timestep(torch.tensor(20000.0)) == 999


def test_eps_prediction_stays_comfyuis() -> None:
    own, plain = sampling(PLAIN, v_prediction=False), stub.plain_sampling(v_prediction=False)
    x, f, sigma = noise(2, 4, 2, 2), noise(2, 4, 2, 2).flip(0), torch.tensor([14.614642, 0.5])
    assert torch.equal(own.calculate_denoised(sigma, f, x), plain.calculate_denoised(sigma, f, x))
    ours, theirs = own.calculate_input(sigma, x), plain.calculate_input(sigma, x)
    assert (ours - theirs).abs().max() <= FLOAT32_ROUNDING


def test_only_our_objects_mean_infinity() -> None:
    sigma = torch.tensor([TOP])
    assert noise_level(sampling(), sigma).isinf().all()
    assert noise_level(stub.plain_sampling(), sigma) is sigma
    assert noise_level(sampling(terminal="20000"), sigma) is sigma
