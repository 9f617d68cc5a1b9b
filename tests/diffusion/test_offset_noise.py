"""Offset noise: how much variance it adds, and where."""

import math

import pytest
import torch

from refimpl.diffusion.offset_noise import SDXL_OFFSET, offset_noise
from refimpl.errors import InputError
from tests.tolerances import FLOAT64_ROUNDING, STANDARD_ERRORS


def test_sdxl_uses_five_percent():
    assert SDXL_OFFSET == 0.05


@pytest.mark.parametrize("strength", [0.05, 0.5])
def test_variance(strength):
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(4096, 4, 8, 8, generator=generator, dtype=torch.float64)
    z = torch.randn(4096, 4, generator=generator, dtype=torch.float64)
    shifted = offset_noise(eps, z, strength)
    # the mean over 64 pixels of a channel has variance 1/64 + s²
    means = shifted.mean(dim=(2, 3))
    expected = 1 / 64 + strength**2
    assert abs(means.var().item() / expected - 1) < STANDARD_ERRORS * math.sqrt(2 / means.numel())
    # within a channel nothing changes
    assert torch.allclose(shifted - strength * z[:, :, None, None], eps, rtol=0, atol=FLOAT64_ROUNDING)


def test_strength_zero_changes_nothing():
    eps = torch.randn(2, 4, 3, 3)
    assert torch.equal(offset_noise(eps, torch.randn(2, 4), 0.0), eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtype_is_that_of_the_noise(dtype):
    eps = torch.zeros(2, 4, 3, 3, dtype=dtype)
    assert offset_noise(eps, torch.ones(2, 4)).dtype == dtype
    assert offset_noise(eps[:0], torch.ones(0, 4)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3, 4), (2, 4, 1, 1)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(InputError, match=r"\[2, 4, 3, 3\] and \[" + ", ".join(map(str, shape))):
        offset_noise(torch.zeros(2, 4, 3, 3), torch.zeros(shape))
