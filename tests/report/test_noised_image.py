"""N Fig. 1: what the figure claims about the lowest frequencies is measured here."""

import math

import pytest
import torch
from PIL import Image

from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.report.noised_image import (
    BLOCKS,
    CELL,
    SHOWN,
    _square,
    correlation,
    example_image,
    latents,
    low_frequencies,
    noised_image,
    noised_latents,
    noised_levels,
)
from tests.tolerances import BLOCK_CORRELATION, FLOAT64_ROUNDING

PLAIN = sdxl_schedule()
ZERO_TERMINAL = zero_terminal_snr(PLAIN)


def test_the_last_levels_are_the_ends_of_the_two_schedules():
    levels = noised_levels(PLAIN, ZERO_TERMINAL)
    sigmas = [level for level, _, _ in levels]
    assert sigmas == sorted(sigmas)
    assert sigmas[-2] == PLAIN.sigma_edm[-1].item()
    assert math.isinf(sigmas[-1])
    assert (levels[-1][1].item(), levels[-1][2].item()) == (0.0, 1.0)


def test_low_frequencies_survive_14_6_and_not_infinity():
    axes = noised_image(example_image(), PLAIN, ZERO_TERMINAL).axes
    columns = len(axes) // 2
    found = [float(lower.get_xlabel().removeprefix("correlation ")) for lower in axes[columns:]]
    titles = [upper.get_title() for upper in axes[:columns]]
    assert titles == ["σ = 0", "σ = 0.5", "σ = 3", "σ = 14.6", "σ = ∞"]
    assert found == sorted(found, reverse=True)
    spread = low_frequencies(latents(_square(example_image()))).std()
    for correlated, (level, _, _) in zip(found[1:], noised_levels(PLAIN, ZERO_TERMINAL), strict=True):
        noise = level / (SHOWN / CELL / BLOCKS)  # std of a block's average of the noise
        assert correlated == pytest.approx(1 / math.hypot(1, noise / spread), abs=BLOCK_CORRELATION)
    assert found[0] == 1.0


def test_the_middle_square_is_taken_whatever_the_mode():
    image = Image.new("RGBA", (300, 120), (255, 0, 0, 255))
    image.paste((0, 255, 0, 255), (0, 0, 90, 120))  # outside the middle 120 × 120
    x0 = _square(image)
    assert x0.shape == (3, SHOWN, SHOWN)
    assert (x0[0] == 1).all()
    assert (x0[1:] == -1).all()


def test_low_frequencies_are_block_averages():
    x = torch.arange(3 * 16 * 16, dtype=torch.float64).view(3, 16, 16)
    wanted = x.view(3, BLOCKS, 2, BLOCKS, 2).mean((2, 4))
    assert torch.allclose(low_frequencies(x), wanted, rtol=FLOAT64_ROUNDING)


def test_correlation_ignores_scale_and_shift():
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert correlation(x, 3 * x + 5) == pytest.approx(1, rel=FLOAT64_ROUNDING)
    assert correlation(x, -x) == pytest.approx(-1, rel=FLOAT64_ROUNDING)


def test_a_small_image_is_refused_with_the_reason():
    with pytest.raises(
        InputError, match=r"99×300; N Fig. 1 needs 100 pixels .* small canvases hide the flaw"
    ):
        noised_image(Image.new("RGB", (99, 300)), PLAIN, ZERO_TERMINAL)


def test_latents_are_block_averages_of_variance_one():
    pixels = torch.rand(3, 64, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels[1] = 0.25
    got = latents(pixels)
    assert got.shape == (3, 8, 10)
    assert got[1].abs().max() == 0  # a channel without contrast
    first = pixels[0].view(8, CELL, 10, CELL).mean((1, 3))
    assert correlation(got[0], first) == pytest.approx(1, rel=FLOAT64_ROUNDING)
    assert float(got[0].std()) == pytest.approx(1, rel=FLOAT64_ROUNDING)


def test_the_average_colour_of_1024_pixels_is_readable_at_14_6():
    *_, published, pure = noised_latents(example_image(), PLAIN, ZERO_TERMINAL)
    assert published.correlation > 0.5
    assert abs(pure.correlation) < BLOCK_CORRELATION
