"""Pixels and network values: the ends, the middle, and the round trip of every pixel value."""

import pytest
import torch

from refimpl.latents.pixels import from_pixels, to_pixels

EVERY = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_ends_are_minus_one_and_one(dtype: torch.dtype) -> None:
    values = from_pixels(EVERY, dtype)
    assert values.dtype == dtype
    assert (values[0], values[-1]) == (-1, 1)
    assert values.diff().ge(0).all()


def test_every_pixel_comes_back() -> None:
    assert torch.equal(to_pixels(from_pixels(EVERY)), EVERY)


def test_values_outside_are_clipped() -> None:
    assert to_pixels(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
