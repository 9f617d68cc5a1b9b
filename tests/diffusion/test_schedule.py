"""The noise schedule against its pinned numbers, diffusers and k-diffusion."""

import copy
import itertools
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.diffusion.schedule import NoiseSchedule, sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from tests.conforming import conforms
from tests.oracles import k_diffusion
from tests.strategies import NOISE_LEVEL_EDGES
from tests.tolerances import (
    FLOAT32_BETAS,
    FLOAT32_LOG_SIGMA,
    FLOAT64_NEAR_ZERO_SNR,
    FLOAT64_ROUNDING,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "schedule.json").read_text())
PLAIN = sdxl_schedule()
ZTSNR = zero_terminal_snr(PLAIN)
BOTH = pytest.mark.parametrize("schedule", [PLAIN, ZTSNR], ids=["plain", "ztsnr"])


def float64(values) -> torch.Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error; equal infinities and zeros count as 0."""
    return float(torch.where(actual == expected, 0, (actual / expected - 1).abs()).max())


@st.composite
def schedules(draw) -> NoiseSchedule:
    """Any valid schedule whose noise levels are finite: strictly decreasing alpha."""
    steps = draw(st.lists(st.floats(1e-6, 1), min_size=3, max_size=40))
    angle = torch.cumsum(float64(steps), dim=0)
    angle = angle / angle[-1] * draw(st.floats(1.0, 1.57))
    return NoiseSchedule(alpha=angle.cos(), sigma=angle.sin())


# --- the tables ---


def test_plain_schedule_is_pinned():
    conforms("schedule.published_table", within=FLOAT64_ROUNDING)
    conforms("schedule.published_end", within=FLOAT64_ROUNDING)
    assert PLAIN.timesteps == 1000
    assert relative_error(PLAIN.sigma_edm, float64(VECTORS["f64_base"]["sigmas"])) < FLOAT64_ROUNDING
    assert PLAIN.sigma_edm[0].item() == 0.029167158151720367
    assert not PLAIN.is_zero_terminal


def test_rescaled_schedule_is_pinned():
    conforms("schedule.zero_snr_table", within=FLOAT64_NEAR_ZERO_SNR)
    conforms("schedule.zero_snr_last_finite", within=FLOAT64_NEAR_ZERO_SNR)
    reference = VECTORS["f64_ztsnr"]
    assert relative_error(ZTSNR.alpha**2, float64(reference["alphas_cumprod"])) < FLOAT64_NEAR_ZERO_SNR
    assert relative_error(ZTSNR.sigma_edm, float64(reference["sigmas"])) < FLOAT64_NEAR_ZERO_SNR
    assert ZTSNR.sigma_edm[962].item() == pytest.approx(56.178238948721265, rel=FLOAT64_ROUNDING)
    assert ZTSNR.is_zero_terminal


@pytest.mark.parametrize("spacing", list(VECTORS["f64_28step"]))
def test_sigmas_of_28_step_spacings(spacing):
    reference = VECTORS["f64_28step"][spacing]
    sigma_edm = ZTSNR.t_to_sigma_edm(float64(reference["timesteps"]))
    expected = float64(reference["sigmas"])
    assert relative_error(sigma_edm, expected) < FLOAT64_NEAR_ZERO_SNR


def test_ends_of_the_rescaled_schedule_are_exact():
    conforms("schedule.zero_snr_end")
    conforms("schedule.zero_snr_first", within=0)
    assert ZTSNR.sigma[999].item() == 1
    assert ZTSNR.sigma_edm[999].item() == math.inf
    assert ZTSNR.snr[999].item() == 0
    assert ZTSNR.sigma[0].item() == PLAIN.sigma[0].item()


def test_noise_grows_from_one_timestep_to_the_next():
    conforms("schedule.decreasing")


@given(schedules())
def test_rescale_of_any_schedule(schedule):
    rescaled = zero_terminal_snr(schedule)
    assert rescaled.is_zero_terminal
    assert rescaled.alpha[-1].item() == 0
    assert rescaled.sigma[-1].item() == 1
    assert rescaled.alpha[0].item() == schedule.alpha[0].item()
    assert bool((rescaled.alpha <= schedule.alpha).all())
    assert bool((rescaled.snr[1:] < rescaled.snr[:-1]).all())
    assert zero_terminal_snr(rescaled) is rescaled


def test_rescale_leaves_its_input_alone():
    before = PLAIN.alpha.clone()
    zero_terminal_snr(PLAIN)
    assert torch.equal(PLAIN.alpha, before)


def test_the_table_in_diffusers():
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    assert torch.allclose(PLAIN.alpha**2, scheduler.alphas_cumprod.double(), rtol=0, atol=FLOAT32_BETAS)
    betas = rescale_zero_terminal_snr(scheduler.betas)
    theirs = torch.cumprod(1 - betas, dim=0).double()
    assert torch.allclose(ZTSNR.alpha**2, theirs, rtol=0, atol=FLOAT32_BETAS)


@BOTH
def test_snr_is_the_square_of_one_over_sigma_edm(schedule):
    assert relative_error(schedule.snr, 1 / schedule.sigma_edm**2) < FLOAT64_ROUNDING
    assert schedule.snr.dtype == schedule.sigma_edm.dtype == torch.float64


@BOTH
def test_lookup(schedule):
    t = torch.tensor([999, 0, 500, 0], dtype=torch.int32)
    alpha, sigma = schedule.at(t)
    assert torch.equal(alpha, schedule.alpha[[999, 0, 500, 0]])
    assert torch.equal(sigma, schedule.sigma[[999, 0, 500, 0]])
    assert [z.item() for z in schedule.at(7)] == [schedule.alpha[7].item(), schedule.sigma[7].item()]
    assert schedule.at(torch.zeros(0, dtype=torch.int64))[0].shape == (0,)


@BOTH
def test_copies_and_pickles_keep_the_bits(schedule):
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert torch.equal(twin.alpha, schedule.alpha)
        assert torch.equal(twin.sigma_edm, schedule.sigma_edm)


# --- between the entries ---


@BOTH
def test_integers_are_exact_both_ways(schedule):
    t = torch.arange(1000)
    assert torch.equal(schedule.t_to_sigma_edm(t), schedule.sigma_edm)
    assert torch.equal(schedule.sigma_edm_to_t(schedule.sigma_edm), t.double())


def test_infinity_is_the_terminal_timestep():
    conforms("sigma_to_t.at_infinity")
    assert ZTSNR.t_to_sigma_edm(999).item() == math.inf


@given(st.floats(0, 999))
@example(998.0)
@example(math.nextafter(998, 999))
@example(math.nextafter(999, 998))
def test_a_timestep_survives_the_round_trip(t):
    sigma_edm = ZTSNR.t_to_sigma_edm(t)
    assert (sigma_edm.item() == math.inf) == (t == 999)
    assert ZTSNR.sigma_edm_to_t(sigma_edm).item() == pytest.approx(t, abs=999 * FLOAT64_ROUNDING)


@pytest.mark.parametrize("check", ["rises", "stays_inside"])
def test_timesteps_rise_with_the_noise_level(check):
    conforms(f"sigma_to_t.{check}")


def test_levels_in_float32_find_their_timesteps():
    conforms("sigma_to_t.at_the_table", within=FLOAT32_LOG_SIGMA)
    conforms("sigma_to_t.between_two_levels", within=FLOAT32_LOG_SIGMA)
    conforms("sigma_to_t.beyond_the_last_finite", within=999 * FLOAT64_ROUNDING)


@given(st.floats(ZTSNR.sigma_edm[998].item(), 1e300, exclude_min=True))
@example(math.nextafter(ZTSNR.sigma_edm[998].item(), math.inf))
def test_noise_above_the_last_finite_level_maps_into_the_last_interval(sigma_edm):
    t = ZTSNR.sigma_edm_to_t(sigma_edm)
    assert 998 < t.item() <= 999
    # linear in 1/sigma_edm: the remaining fraction of the interval is the ratio to the last finite level
    assert 999 - t.item() == pytest.approx(
        ZTSNR.sigma_edm[998].item() / sigma_edm, abs=999 * FLOAT64_ROUNDING
    )


def test_noise_levels_rise_strictly_through_the_last_interval():
    sigma_edm = ZTSNR.t_to_sigma_edm(torch.linspace(997, 999, 10_001, dtype=torch.float64))
    assert bool((sigma_edm[1:] > sigma_edm[:-1]).all())
    assert bool(torch.isfinite(sigma_edm[:-1]).all())


@BOTH
def test_levels_outside_the_table_get_its_ends(schedule):
    outside = torch.tensor([0.0, 1e-30, 0.02], dtype=torch.float64)
    assert schedule.sigma_edm_to_t(outside).tolist() == [0, 0, 0]
    assert PLAIN.sigma_edm_to_t(torch.tensor([15.0, 1e30, math.inf])).tolist() == [999, 999, 999]


@BOTH
def test_interpolation_is_linear_in_log_sigma(schedule):
    middle = schedule.t_to_sigma_edm(torch.tensor([0.5, 500.5, 997.5], dtype=torch.float64))
    s = schedule.sigma_edm
    expected = torch.sqrt(s[[0, 500, 997]] * s[[1, 501, 998]])
    assert relative_error(middle, expected) < FLOAT64_ROUNDING


def test_interpolation_of_k_diffusion():
    theirs = k_diffusion("external").DiscreteSchedule(PLAIN.sigma_edm.float(), quantize=False)
    t = torch.linspace(0, 999, 357)
    assert torch.allclose(
        PLAIN.t_to_sigma_edm(t).float(), theirs.t_to_sigma(t), rtol=FLOAT32_LOG_SIGMA, atol=0
    )
    sigma = torch.linspace(0.03, 14.6, 357)
    assert torch.allclose(
        PLAIN.sigma_edm_to_t(sigma).float(),
        theirs.sigma_to_t(sigma),
        rtol=FLOAT32_LOG_SIGMA,
        atol=FLOAT32_LOG_SIGMA,
    )


def test_shapes_dtypes_and_numbers():
    t = torch.arange(6).view(2, 3)
    assert ZTSNR.t_to_sigma_edm(t).shape == (2, 3)
    assert ZTSNR.sigma_edm_to_t(torch.ones(2, 3)).shape == (2, 3)
    assert ZTSNR.t_to_sigma_edm(torch.tensor(3.0)).dtype == torch.float64
    assert ZTSNR.t_to_sigma_edm(torch.zeros(0)).shape == (0,)
    assert ZTSNR.sigma_edm_to_t(torch.zeros(0)).shape == (0,)
    assert ZTSNR.t_to_sigma_edm(20.3).item() == ZTSNR.t_to_sigma_edm(float64([20.3])).item()


def test_tables_first_read_in_inference_mode_still_train():
    schedule = sdxl_schedule()
    with torch.inference_mode():
        schedule.t_to_sigma_edm(schedule.sigma_edm_to_t(schedule.sigma_edm))
    level = torch.ones((), dtype=torch.float64, requires_grad=True)
    (level * schedule.sigma_edm[5] * schedule.snr[5]).backward()
    assert level.grad is not None


# --- wrong input ---


def pair(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (*pair(torch.tensor([0.1, 0.5, 1.0], dtype=torch.bfloat16)), "float64.*bfloat16"),
        (*pair(float64([0.1, 0.5])), r"T >= 3.*\[2\]"),
        (*pair(float64([0.1, 0.5, 1.0])[None]), r"\[1, 3\]"),
        (float64([0.9, 0.5, 0.1]), float64([0.9, 0.5, 0.1]), "must be 1"),
        (float64([0.9, math.nan, 0.1]), float64([0.9, 0.5, 0.1]), "must be 1"),
        (*pair(float64([0.5, 0.1, 1.0])), "strictly decreasing"),
        (*pair(float64([0.5, 0.5, 1.0])), "strictly decreasing"),
        (*pair(float64([0.5, 1.0, 2.0])), "and >= 0, and sigma"),
        (float64([1.0, 0.6, 0.0]), float64([0.0, 0.8, 1.0]), "sigma must be > 0"),
    ],
)
def test_a_table_that_is_no_schedule_is_refused(alpha, sigma, message):
    with pytest.raises(InputError, match=message):
        NoiseSchedule(alpha=alpha, sigma=sigma)


@pytest.mark.parametrize("t", [-1, -1e-9, 999.001, 1000, math.nan, math.inf])
def test_timesteps_outside_the_table_are_refused(t):
    with pytest.raises(InputError, match=r"0 to 999, got"):
        ZTSNR.t_to_sigma_edm(torch.tensor([5.0, t], dtype=torch.float64))
    if isinstance(t, int):
        with pytest.raises(InputError, match=f"got {t}"):
            ZTSNR.at(torch.tensor([5, t]))


def test_a_lookup_needs_integers():
    with pytest.raises(InputError, match=r"float32.*t_to_sigma_edm"):
        ZTSNR.at(torch.tensor([1.0]))


@pytest.mark.parametrize("sigma_edm", [-1.0, -1e-300, math.nan, -math.inf])
def test_impossible_noise_levels_are_refused(sigma_edm):
    with pytest.raises(InputError, match=f"at least 0, got {sigma_edm}"):
        ZTSNR.sigma_edm_to_t(torch.tensor([1.0, sigma_edm], dtype=torch.float64))


def test_a_long_list_of_wrong_values_is_cut():
    with pytest.raises(InputError, match="and 995 more"):
        ZTSNR.sigma_edm_to_t(-torch.ones(1000))


def test_fields_cannot_be_replaced():
    with pytest.raises(AttributeError):
        ZTSNR.alpha = PLAIN.alpha  # type: ignore[misc]


def test_levels_that_only_float64_tells_apart_keep_their_order():
    close = float64([math.nextafter(sigma, side) for sigma in NOISE_LEVEL_EDGES for side in (0, math.inf)])
    levels = torch.cat([torch.logspace(-3, 6, 5000, dtype=torch.float64), float64(NOISE_LEVEL_EDGES), close])
    t = ZTSNR.sigma_edm_to_t(levels.sort().values).tolist()
    assert all(a <= b for a, b in itertools.pairwise([0, *t, 999]))
