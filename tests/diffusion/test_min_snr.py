"""MinSNR: pinned shares of the weight, agreement across parameterisations, and the ends of the SNR range."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conformance.checks.noise.weight import MASS
from refimpl.diffusion.config import POLICIES
from refimpl.diffusion.min_snr import min_snr_weight, weight_mass
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from tests.conforming import conforms
from tests.tolerances import FLOAT32_BETAS, FLOAT64_ROUNDING, PRINTED_PERCENT

PLAIN = sdxl_schedule()
ZTSNR = zero_terminal_snr(PLAIN)
SNR = st.sampled_from((0.0, 1e-300, 4.0, 5.0, 1e300, math.inf)) | st.floats(0, allow_nan=False)
GAMMA = st.sampled_from((1.0, 5.0, 20.0)) | st.floats(1e-3, 1e3)


def test_the_paper_gives_the_noisy_end_almost_nothing():
    conforms("weight.mass_from_800", within=FLOAT64_ROUNDING * MASS[800])
    conforms("weight.mass_from_950", within=FLOAT64_ROUNDING * MASS[950])
    conforms("weight.at_zero_snr", within=0)


def test_the_papers_weight_on_the_schedule_that_is_trained_on():
    conforms("weight.min_snr", within=FLOAT64_ROUNDING)
    conforms("weight.finite")


def test_other_policies_reach_the_terminal_timestep():
    for policy, floor, mass in (("floor", 0.1, 0.0163), ("snr_plus_one", 0.0, 0.0548), ("none", 0.0, 0.05)):
        weights = min_snr_weight(ZTSNR.snr, policy=policy, floor=floor)
        assert weights[999].item() == (floor or 1)
        assert 100 * weight_mass(weights, 950) == pytest.approx(100 * mass, abs=PRINTED_PERCENT)


@given(SNR, GAMMA)
def test_values_of_the_policies(snr, gamma):
    def weight(policy: str, floor: float = 0.0) -> float:
        return min_snr_weight(torch.tensor(snr, dtype=torch.float64), gamma, policy, floor).item()

    paper = 0.0 if math.isinf(snr) else min(snr, gamma) / (snr + 1)
    assert weight("paper") == paper
    assert weight("floor", 0.25) == max(paper, 0.25)
    assert weight("snr_plus_one") == (0.0 if math.isinf(snr) else min(snr + 1, gamma) / (snr + 1))
    assert weight("none") == 1
    for policy in POLICIES:
        assert math.isfinite(weight(policy))


@given(st.floats(0, 1e6), GAMMA)
def test_snr_plus_one_weighs_what_paper_does_and_one_more_eps_error(snr, gamma):
    # with γ raised by one, min(SNR + 1, γ + 1) = min(SNR, γ) + 1
    value = torch.tensor(snr, dtype=torch.float64)
    assert min_snr_weight(value, gamma + 1, "snr_plus_one").item() == pytest.approx(
        min_snr_weight(value, gamma).item() + 1 / (snr + 1), rel=FLOAT64_ROUNDING
    )


def test_units_agree():
    t = torch.arange(999)
    alpha, sigma = ZTSNR.at(t)
    snr, weight = ZTSNR.snr[t], min_snr_weight(ZTSNR.snr)[t]
    # Hang et al. 2023: min(SNR, γ)/SNR on eps and min(SNR, γ) on x0
    assert torch.allclose(weight / alpha**2, (5 / snr).clamp(max=1), rtol=100 * FLOAT64_ROUNDING, atol=0)
    assert torch.allclose(weight / sigma**2, snr.clamp(max=5), rtol=100 * FLOAT64_ROUNDING, atol=0)


def test_snr_of_diffusers():
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs = compute_snr(scheduler, torch.arange(1000)).double()
    weights = min_snr_weight(PLAIN.snr)
    assert torch.allclose(weights, theirs.clamp(max=5) / (theirs + 1), rtol=0, atol=FLOAT32_BETAS)


def test_dtypes_and_shapes():
    assert min_snr_weight(torch.ones(2, 3)).shape == (2, 3)
    assert min_snr_weight(torch.ones(0)).shape == (0,)
    for policy in POLICIES:
        assert min_snr_weight(torch.ones(2, dtype=torch.bfloat16), policy=policy).dtype == torch.float32
        assert min_snr_weight(torch.ones(2, dtype=torch.float64), policy=policy).dtype == torch.float64


def test_numbers_and_lists_are_taken_as_float64():
    for snr in (3.0, 0, [0.0, 3.0, math.inf], ZTSNR.snr.numpy()):
        weights = min_snr_weight(snr)
        assert torch.equal(weights, min_snr_weight(torch.as_tensor(snr, dtype=torch.float64)))
        assert weights.dtype == torch.float64


def test_weight_mass_of_simple_tables():
    assert weight_mass(torch.ones(10), 0) == 1
    assert weight_mass(torch.ones(10), 10) == 0
    assert weight_mass(torch.ones(10, dtype=torch.bfloat16), 5) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: min_snr_weight(torch.ones(1), policy="min"), "'min'.*paper, floor, snr_plus_one, none"),
        (lambda: min_snr_weight(torch.ones(1), gamma=0.0), "gamma.*0.0"),
        (lambda: min_snr_weight(torch.ones(1), gamma=math.nan), "gamma.*nan"),
        (lambda: min_snr_weight(torch.ones(1), gamma=math.inf), "gamma.*inf"),
        (lambda: min_snr_weight(torch.ones(1), policy="floor", floor=-0.1), "floor.*-0.1"),
        (lambda: min_snr_weight(torch.ones(1), policy="floor", floor=math.nan), "floor.*nan"),
        (lambda: min_snr_weight(torch.ones(1), policy="paper", floor=0.1), "0.1 has no effect.*'paper'"),
        (lambda: min_snr_weight(torch.tensor([1.0, -2.0])), "at least 0.*-2.0"),
        (lambda: min_snr_weight(torch.tensor([1.0, math.nan]), policy="none"), "at least 0.*nan"),
        (lambda: weight_mass(torch.ones(10), 11), "t_from 11"),
        (lambda: weight_mass(torch.ones(10), -1), "t_from -1"),
        (lambda: weight_mass(torch.ones(10, 1), 1), r"\[10, 1\]"),
        (lambda: weight_mass(torch.zeros(10), 1), "sum to 0.0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
