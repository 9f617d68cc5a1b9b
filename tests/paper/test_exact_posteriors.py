"""R and covariances of grids and samplers, against closed forms, brute force and the pinned values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.paper.exact_posteriors import (
    BIMODAL,
    CANVAS_MEAN_VARIANCE,
    Mixture,
    canvas_spread,
    gaussian_covariance,
    gaussian_v,
    jump_note,
    jumps_too_far,
    kept_by_exact_flow,
    kept_spread,
    mixture_covariance,
    most_that_euler_keeps,
    order_of_convergence,
)
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import canvas, community_trainer, karras, laplace, native, trailing, with_terminal
from refimpl.sample.samplers import SAMPLERS
from tests.sample.gaussian import Gaussian
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.strategies import grid_levels
from tests.tolerances import (
    FLOAT64_ROUNDING,
    MEASURED_ORDER,
    MIXTURE_MONTE_CARLO,
    PINNED_FLOW,
    PINNED_SAMPLER,
    SAME_END,
)

WIDE = (104, 152)  # latents of 832×1216 px
NATIVE = native(ZERO_SNR, 28)
GRIDS = {
    "native": NATIVE,
    "native 50": native(ZERO_SNR, 50),
    "karras": karras(ZERO_SNR, 28),
    "laplace": laplace(ZERO_SNR, 28),
    "canvas": canvas(ZERO_SNR, 28, *WIDE),
    "community_trainer": community_trainer(ZERO_SNR),
    "from 20000": with_terminal(NATIVE, "20000"),
}


@given(grid_levels(from_infinity=True), st.sampled_from((1e-3, 1.0, 78.0)) | st.floats(1e-2, 1e3))
def test_euler_has_a_closed_form(grid, spread):
    """y' = y·(s² + σσ')/(s² + σ²) from σ₁·n on: exact for any grid and any spread."""
    kept = float(grid[1]) / spread
    for sigma, following in zip(grid[1:-1].tolist(), grid[2:].tolist(), strict=True):
        kept *= (spread**2 + sigma * following) / (spread**2 + sigma**2)
    got = math.sqrt(gaussian_covariance("euler", grid, [spread**2])[0])
    assert got == pytest.approx(kept, rel=FLOAT64_ROUNDING, abs=FLOAT64_ROUNDING)
    assert got <= most_that_euler_keeps(len(grid) - 1) * (1 + FLOAT64_ROUNDING)


@given(st.integers(1, 60), st.just(1e-3) | st.floats(1e-2, 1e3))
def test_equal_angles_keep_the_most_that_euler_can(steps, spread):
    angles = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)
    grid = spread * torch.tan(angles)
    grid[0] = math.inf
    kept = math.sqrt(gaussian_covariance("euler", grid, [spread**2])[0])
    assert kept == pytest.approx(most_that_euler_keeps(steps), rel=FLOAT64_ROUNDING, abs=FLOAT64_ROUNDING)


def test_28_steps_of_euler_can_just_keep_what_the_grid_promises_for_one_spread():
    assert most_that_euler_keeps(28) == pytest.approx(0.957, abs=5e-4)
    assert most_that_euler_keeps(23) < 0.95 < most_that_euler_keeps(25)
    with pytest.raises(InputError, match="steps"):
        most_that_euler_keeps(0)


@given(
    st.floats(-30, 30), st.sampled_from((0.0, 1e-3, 0.0292, 1.0, 56.2, 20000.0, math.inf)), st.floats(0, 3)
)
def test_the_gaussian_network_is_the_conditional_mean(x, sigma, std):
    x = torch.tensor([x], dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    if sigma == 0 and std == 0:
        return  # a point mass without noise has only x = 0
    expected = Gaussian(0.0, std).predict_v(x, level)
    got = gaussian_v(torch.tensor([std**2], dtype=torch.float64))(x, level)
    torch.testing.assert_close(got, expected, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)


@given(st.floats(-4, 4), st.sampled_from((0.05, 0.3, 1.0, 5.0)))
def test_the_mixtures_network_is_bayes_rule(x, sigma):
    """E[v | x] by summing over the data on a fine grid."""
    alpha, noise = 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
    x0 = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    prior = sum(torch.exp(-0.5 * ((x0 - m) / BIMODAL.std) ** 2) for m in (BIMODAL.offset, -BIMODAL.offset))
    logit = -0.5 * ((x - alpha * x0) / noise) ** 2
    weight = prior * torch.exp(logit - logit.max())
    v = (alpha * (x - alpha * x0) / noise - noise * x0) * weight
    got = BIMODAL.predict_v(torch.tensor([x], dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    assert float(got) == pytest.approx(float(v.sum() / weight.sum()), abs=PINNED_SAMPLER)


def test_the_mixture_at_the_ends_of_the_noise():
    x = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    assert torch.equal(BIMODAL.predict_v(x, torch.tensor(math.inf)), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(BIMODAL.predict_v(x, torch.tensor(0.0)), torch.zeros(3, dtype=torch.float64))
    assert BIMODAL.variance == pytest.approx(1, rel=FLOAT64_ROUNDING)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mixture_of_one_is_a_gaussian(name):
    """The noises are uncorrelated to rounding, so a linear result has the variance that the exact sum has."""
    mixture = mixture_covariance(name, NATIVE, Mixture(offset=0.0, std=0.6), points=256)
    assert mixture == pytest.approx(gaussian_covariance(name, NATIVE, [0.36])[0], abs=FLOAT64_ROUNDING)


@pytest.mark.parametrize(
    ("name", "covariance"), [("heun", 1.0062), ("dpmpp_2m_sde", 1.3145), ("euler_ancestral", 0.8499)]
)
def test_the_covariance_of_a_mixture(name, covariance):
    """On native 28, against 12 · 2^14 samples of torch's own noise, known to 0.0005; Heun's needs none."""
    assert mixture_covariance(name, NATIVE) == pytest.approx(covariance, abs=MIXTURE_MONTE_CARLO)


# σ₁/√(σ₁² + s²), and what each sampler keeps
KEPT = [
    ("native", 0.5857682843, {"euler": 0.5531988, "heun": 0.5897659, "dpmpp_2m": 0.5632074}),
    ("native 50", 0.8060091007, {"euler": 0.7342399, "heun": 0.8267197, "dpmpp_2m": 0.7616977}),
    ("karras", 0.9994060484, {"euler": 0.9154477, "heun": 1.0137502, "dpmpp_2m": 1.0149183}),
    ("laplace", 0.0472170033, {"euler": 0.0472105, "heun": 0.0472170, "dpmpp_2m": 0.0472137}),
    ("canvas", 0.9818445667, {"euler": 0.8987853, "heun": 0.9985838, "dpmpp_2m": 0.9883234}),
    ("community_trainer", 0.2232221477, {"euler": 0.2260378, "heun": 0.2270145, "dpmpp_2m": 0.2270919}),
    ("from 20000", 0.5857682843, {"euler": 0.5561651, "heun": 0.5929283, "dpmpp_2m": 0.5662274}),
]


@pytest.mark.parametrize(("grid", "flow", "kept"), KEPT, ids=[row[0] for row in KEPT])
def test_the_spread_kept_at_832_by_1216_is_the_pinned_one(grid, flow, kept):
    assert kept_by_exact_flow(GRIDS[grid], *WIDE) == pytest.approx(flow, abs=PINNED_FLOW)
    for sampler, share in kept.items():
        assert kept_spread(sampler, GRIDS[grid], *WIDE) == pytest.approx(share, abs=PINNED_SAMPLER)


def test_a_huge_start_no_longer_leads_heun_astray():
    """Second-order first steps would keep 119 and 69 times the spread."""
    for grid in ("community_trainer", "from 20000"):
        levels = GRIDS[grid].clone()
        levels[0] = math.inf
        for sampler in SAMPLERS:
            kept = kept_spread(sampler, GRIDS[grid], *WIDE)
            assert kept == pytest.approx(kept_spread(sampler, levels, *WIDE), abs=SAME_END)


@given(
    height=st.sampled_from((1, 8, 64, 104, 256, 1024)) | st.integers(1, 1024),
    width=st.sampled_from((1, 8, 64, 152, 256, 1024)) | st.integers(1, 1024),
    sampler=st.sampled_from(("heun", "dpmpp_2m", "unipc", "dpmpp_2m_sde")),
)
def test_the_canvas_grid_keeps_the_spread_on_every_canvas(height, width, sampler):
    grid = canvas(ZERO_SNR, 28, height, width)
    assert 0.95 <= kept_spread(sampler, grid, height, width) <= 1.05
    assert 0.87 < kept_spread("euler", grid, height, width) < 0.95  # no 28 Euler steps keep more


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler", 1),
        ("euler_ancestral", 1),
        ("heun", 2),
        ("ddim", 1),
        ("dpmpp_2m", 2),
        ("dpmpp_2m_sde", 2),
        ("unipc", 3),
    ],
)
def test_orders_of_convergence(name, order):
    assert order_of_convergence(name, steps=160) == pytest.approx(order, abs=MEASURED_ORDER)


def test_where_the_excess_of_dpmpp_2m_sde_on_native_comes_from():
    """Its last finite step extrapolates over a ratio of 6.8 by what one of 1.5 changed, the fresh noise included."""
    stds = [0.3, 0.6, 1.0, 2.0]
    variances = [std**2 for std in stds]
    whole = gaussian_covariance("dpmpp_2m_sde", NATIVE, variances)
    assert whole == pytest.approx([2.109, 1.672, 1.330, 1.098], abs=SAME_END)
    spaced = gaussian_covariance("dpmpp_2m_sde", trailing(ZERO_SNR, 28), variances)
    assert spaced == pytest.approx([0.708, 0.937, 0.993, 1.003], abs=SAME_END)
    shortened = torch.cat([NATIVE[:-2], NATIVE[-1:]])
    assert gaussian_covariance("dpmpp_2m_sde", shortened, variances) == pytest.approx(spaced, abs=0.015)


def test_the_spread_of_a_canvas_grows_with_its_side():
    assert canvas_spread(104, 152) ** 2 == pytest.approx(CANVAS_MEAN_VARIANCE * 104 * 152)
    assert canvas_spread(208, 304) == pytest.approx(2 * canvas_spread(104, 152))
    for size in ((0, 4), (4, -1), (math.nan, 4), (4, math.inf)):
        with pytest.raises(InputError, match="positive finite"):
            canvas_spread(*size)


@pytest.mark.parametrize(
    ("levels", "too_far"),
    [
        ([math.inf, 8.0, 0.0], False),  # exactly twice the side of 4 × 4 latents
        ([math.inf, 7.999, 0.0], True),
        ([20000.0, 7.999, 0.0], True),
        ([math.inf, 0.0], True),
        ([14.6, 7.0, 0.0], False),  # an ordinary step
        ([3.0, 0.0], False),
    ],
)
def test_what_jumps_too_far(levels, too_far):
    assert jumps_too_far(torch.tensor(levels, dtype=torch.float64), 4, 4) == too_far


def test_the_note_names_what_is_kept_and_the_grid_that_keeps_more():
    note = jump_note(SampleConfig(), NATIVE, ZERO_SNR, WIDE)
    assert note is not None
    assert note.startswith(
        "note: the grid native goes from ∞ to 56.2, below 2·√(h·w) = 251 on this canvas, where"
    )
    assert "euler keeps R = 0.55 of the spread" in note
    assert "--grid canvas keeps 0.90" in note
    assert "\n" not in note
    assert jump_note(SampleConfig(grid="canvas"), GRIDS["canvas"], ZERO_SNR, WIDE) is None
    assert jump_note(SampleConfig(), native(PLAIN, 28), PLAIN, WIDE) is None
    terminal = jump_note(SampleConfig(terminal="20000"), GRIDS["from 20000"], ZERO_SNR, WIDE)
    assert terminal is not None
    assert "from 20000 to 56.2" in terminal
    one_step = jump_note(SampleConfig(steps=1), native(ZERO_SNR, 1), ZERO_SNR, WIDE)
    assert one_step is not None
    assert "take more steps" in one_step
