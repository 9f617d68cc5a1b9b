"""Sinusoidal features of a scalar (S §2.2, "Fourier feature encoding"; Vaswani et al. 2017, §3.5)."""

import math

import torch
from torch import Tensor

from refimpl.errors import InputError

MAX_PERIOD = 10000.0  # longest wavelength / 2π, of Vaswani et al. and of every SDXL checkpoint


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of `values` at dim/2 frequencies falling geometrically from 1 to 1/MAX_PERIOD.

    values  [...]       timesteps, or sizes in pixels; integer, float32 or float64
    dim                 features per value, even
    returns [..., dim]  float32 (float64 for float64 values), whatever autocast says

    Raises InputError for an odd `dim`, and for values in 16 bits: bfloat16 has already made 1216 of 1217.
    """
    if dim < 2 or dim % 2:
        raise InputError(f"sinusoid: dim must be even and at least 2, got {dim}")
    if values.is_floating_point() and values.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"sinusoid: values have dtype {values.dtype}, which rounds whole numbers above 256 (bfloat16) or "
            "2048 (float16); pass integers, float32 or float64"
        )
    work = values.dtype if values.is_floating_point() else torch.float32
    half = dim // 2
    index = torch.arange(half, dtype=work, device=values.device)
    # ω_i = MAX_PERIOD^(−i / (dim/2))
    frequency = torch.exp(index * (-math.log(MAX_PERIOD) / half))
    phase = values.to(work)[..., None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=-1)
