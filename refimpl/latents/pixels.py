"""8-bit pixels and the values that networks work with: 0 … 255 ↔ −1 … 1 (S §2.4)."""

import torch
from torch import Tensor


def from_pixels(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images in −1 … 1: pixels / 127.5 − 1.

    pixels   [...] uint8
    returns  [...] in the given dtype, on the same device
    """
    return pixels.to(dtype) / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """The nearest pixels [...] uint8 to images in −1 … 1; values outside are clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()
