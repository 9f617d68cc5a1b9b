"""Grids spaced in functions of sigma against k-diffusion, scipy's Laplace quantiles and R's formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_grid
from refimpl.sample.grids import canvas, exponential, karras, laplace
from tests.conforming import conforms
from tests.oracles import k_diffusion
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.strategies import steps
from tests.tolerances import FLOAT64_ROUNDING

FORMULAS = pytest.mark.parametrize("grid", [karras, exponential, laplace], ids=lambda grid: grid.__name__)


@pytest.fixture
def float64_default():
    """k-diffusion builds its ramps in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@FORMULAS
@given(n=steps(), schedule=st.sampled_from([PLAIN, ZERO_SNR]))
def test_grid_of_any_length(grid, n, schedule):
    sigmas = grid(schedule, n)
    assert sigmas.dtype == torch.float64
    assert torch.equal(check_grid(sigmas), sigmas)
    assert sigmas.shape == (n + 1,)
    assert sigmas[0] == schedule.sigma_edm[-1]
    finite_levels = n - schedule.is_zero_terminal
    assert finite_levels < 2 or sigmas[-2] == schedule.sigma_edm[0]


@pytest.mark.parametrize("check", ["karras_spacing", "exponential_spacing"])
def test_levels_after_infinity_are_spaced_as_the_formulas_say(check):
    conforms(f"grid.{check}", within=FLOAT64_ROUNDING)


@FORMULAS
@given(data=st.data())
def test_levels_stay_inside_the_bounds_given(grid, data):
    low = data.draw(st.floats(1e-3, 1), label="sigma_min")
    high = data.draw(st.floats(1.5, 1e4), label="sigma_max")
    n = data.draw(st.integers(2, 50), label="n")
    from_infinity = data.draw(st.booleans(), label="from infinity")
    top = {"sigma_max": math.inf, "finite_max": high} if from_infinity else {"sigma_max": high}
    sigmas = check_grid(grid(ZERO_SNR, n, sigma_min=low, **top))
    levels = sigmas[from_infinity:-1]
    assert (sigmas[0] == math.inf) == from_infinity
    assert levels[0] <= high
    assert len(levels) == 1 or levels[-1] == low


@pytest.mark.usefixtures("float64_default")
@pytest.mark.parametrize("n", [2, 3, 28, 200])
def test_karras_and_exponential_are_k_diffusions(n):
    theirs = k_diffusion("sampling")
    low, high = float(PLAIN.sigma_edm[0]), float(PLAIN.sigma_edm[-1])
    expected = theirs.get_sigmas_karras(n, low, high)
    torch.testing.assert_close(karras(PLAIN, n), expected, rtol=FLOAT64_ROUNDING, atol=0)
    expected = theirs.get_sigmas_karras(n, 0.1, 80.0, rho=3.0)
    ours = karras(PLAIN, n, sigma_min=0.1, sigma_max=80.0, rho=3.0)
    torch.testing.assert_close(ours, expected, rtol=FLOAT64_ROUNDING, atol=0)
    expected = theirs.get_sigmas_exponential(n, low, high)
    torch.testing.assert_close(exponential(PLAIN, n), expected, rtol=FLOAT64_ROUNDING, atol=0)
    # after ∞ the same formula, from the largest finite level
    high = float(ZERO_SNR.sigma_edm[-2])
    expected = theirs.get_sigmas_karras(n, low, high)
    torch.testing.assert_close(karras(ZERO_SNR, n + 1)[1:], expected, rtol=FLOAT64_ROUNDING, atol=0)


@pytest.mark.parametrize(("mu", "beta"), [(0.0, 0.5), (-0.4, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("n", [3, 28, 101])
def test_laplace_levels_are_the_quantiles_of_a_laplace_density(mu, beta, n):
    sigmas = laplace(ZERO_SNR, n, mu=mu, beta=beta)
    u = torch.arange(n, dtype=torch.float64) / (n - 1)
    quantiles = torch.from_numpy(stats.laplace.isf(u.numpy(), loc=mu, scale=beta)).exp()
    assert sigmas[0] == quantiles[0] == math.inf
    free = quantiles > ZERO_SNR.sigma_edm[0]
    torch.testing.assert_close(sigmas[:-1][free], quantiles[free], rtol=FLOAT64_ROUNDING, atol=0)


def test_laplace_clamps_to_the_schedule_and_leaves_no_empty_step():
    sigmas = laplace(PLAIN, 1000)  # the formula gives 22.4 and 15.8 before the first level below 14.6
    assert sigmas[0] == PLAIN.sigma_edm[-1]
    ratios = sigmas[:3] / sigmas[1:4]
    torch.testing.assert_close(ratios, ratios[:1].expand(3), rtol=FLOAT64_ROUNDING, atol=0)
    assert float(sigmas[3]) == pytest.approx(math.sqrt(999 / 6), rel=FLOAT64_ROUNDING)


@pytest.mark.parametrize("mu", [-50.0, 50.0])
@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR], ids=["plain", "zero_snr"])
def test_laplace_centred_outside_the_schedule_is_still_a_grid(mu, schedule):
    for n in (1, 2, 3, 28):
        assert laplace(schedule, n, mu=mu).shape == (n + 1,)


@given(
    n=steps(),
    height=st.sampled_from((1, 104, 128, 1e4)) | st.floats(0.1, 1e4),
    width=st.sampled_from((1, 152, 128, 1e4)) | st.floats(0.1, 1e4),
)
def test_the_canvas_grid_starts_at_3_2_sides_of_the_canvas(n, height, width):
    sigmas = canvas(ZERO_SNR, n, height, width)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (n + 1,)
    assert sigmas[0] == math.inf
    if n > 1:
        assert float(sigmas[1]) == pytest.approx(3.2 * math.sqrt(height * width), rel=FLOAT64_ROUNDING)
    if n > 2:
        assert sigmas[-2] == ZERO_SNR.sigma_edm[0]
        ratios = sigmas[1:-2] / sigmas[2:-1]
        torch.testing.assert_close(ratios, ratios[:1].expand(n - 2), rtol=FLOAT64_ROUNDING * n, atol=0)


def test_the_canvas_grid_is_sdxls_unless_told_otherwise_and_exponential_from_a_finite_start():
    assert torch.equal(canvas(ZERO_SNR, 28), canvas(ZERO_SNR, 28, 128, 128))
    assert torch.equal(canvas(ZERO_SNR, 28)[1:], exponential(ZERO_SNR, 28, finite_max=409.6)[1:])
    assert torch.equal(canvas(PLAIN, 28, 8, 8), exponential(PLAIN, 28))
    assert torch.equal(canvas(ZERO_SNR, 28, sigma_max=29.2), exponential(ZERO_SNR, 28, sigma_max=29.2))
    lower = canvas(ZERO_SNR, 28, sigma_min=0.1)
    assert lower[-2] == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "canvas grid: height is 0"),
        ({"height": math.nan}, "canvas grid: height is nan"),
        ({"width": -8}, "canvas grid: width is -8"),
        ({"width": math.inf}, "canvas grid: width is inf"),
        ({"width": "wide"}, "canvas grid: width is wide"),
        ({"height": 1e-4, "width": 1e-4}, "sigma_min 0.029.* is not below the highest finite level"),
        ({"sigma_max": -1.0}, "sigma_max is -1.0"),
    ],
)
def test_impossible_canvases_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        canvas(ZERO_SNR, 28, **arguments)
    with pytest.raises(
        InputError, match="canvas grid: sigma_max is inf, but the schedule does not end in zero"
    ):
        canvas(PLAIN, 28, sigma_max=math.inf)


@FORMULAS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"sigma_min": -1.0}, "sigma_min is -1.0"),
        ({"sigma_min": math.nan}, "sigma_min is nan"),
        ({"sigma_min": 20.0}, r"sigma_min 20.0 is not below"),
        ({"sigma_max": math.nan}, "sigma_max is nan"),
        ({"sigma_max": -2.0}, "sigma_max is -2.0"),
        ({"sigma_max": math.inf}, "does not end in zero SNR"),
        ({"finite_max": 5.0}, "needs a start at inf"),
    ],
)
def test_impossible_levels_are_refused(grid, arguments, message):
    with pytest.raises(InputError, match=message):
        grid(PLAIN, 28, **arguments)


@FORMULAS
@pytest.mark.parametrize("finite_max", [0.0, -1.0, math.inf, math.nan])
def test_impossible_finite_maxima_are_refused(grid, finite_max):
    with pytest.raises(InputError, match="finite_max is"):
        grid(ZERO_SNR, 28, finite_max=finite_max)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: karras(PLAIN, 28, rho=0.0), "rho is 0.0"),
        (lambda: laplace(PLAIN, 28, beta=-0.5), "beta is -0.5"),
        (lambda: laplace(PLAIN, 28, beta=math.nan), "beta is nan"),
        (lambda: laplace(PLAIN, 28, mu=math.inf), "mu is inf"),
        (lambda: laplace(PLAIN, 28, beta=1e-300), "must be strictly decreasing"),
        (lambda: exponential(PLAIN, 0), "steps: 0"),
        (lambda: exponential(PLAIN, 100_001), "steps: 100001"),
    ],
)
def test_impossible_shapes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
