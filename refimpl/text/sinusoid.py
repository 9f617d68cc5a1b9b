"""Fourier features of scalars: timesteps and sizes (S §2.2; Vaswani et al. 2017, §3.5), cosine first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refimpl.errors import InputError


def sinusoidal_features(values: Tensor, dim: int = 256, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of each value at dim / 2 frequencies from 1 down to nearly 1 / max_period.

    values  [...]  integers, float32 or float64      returns  [..., dim]  float32
    Computed in float32, as the published checkpoints were trained, even under autocast. bfloat16 and float16
    values are refused: bfloat16 rounds 1217 to 1216.
    Raises InputError on those dtypes, and on a dim that is not a positive even number.
    """
    if dim < 2 or dim % 2:
        raise InputError(f"sinusoidal_features: dim is {dim}; it must be even and at least 2")
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=values.device)
    frequency = torch.exp(-math.log(max_period) * index / half)
    angle = embedded_values(values)[..., None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def embedded_values(values: Tensor) -> Tensor:
    """The values as they are multiplied with the frequencies, float32. Raises InputError as `sinusoidal_features`."""
    if values.dtype in (torch.bfloat16, torch.float16, torch.bool) or values.is_complex():
        raise InputError(
            f"sinusoidal_features: values are {values.dtype}; keep them integer or float32 until this call"
        )
    return values.to(torch.float32)
