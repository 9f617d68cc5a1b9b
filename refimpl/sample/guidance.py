"""Classifier-free guidance on v and its rescale (N §5; Ho & Salimans 2022, eq. 6; arXiv 2305.08891 §3.4)."""

import math

import torch
from torch import Tensor

from refimpl.errors import InputError

SCALE_RANGE = (3.5, 5.0)  # N §5: where NovelAI Diffusion V3 gives relevant, coherent images


def cfg(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """Guided v: v_uncond + scale·(v_cond − v_uncond).

    Guiding v is equivalent to guiding x0 or the noise, which are affine in v at a given x. A scale of 1 returns
    v_cond itself.

    v_cond, v_uncond  [B, ...]  floating point        returns  [B, ...]  v_cond's dtype, computed in float64
    Raises InputError when shapes differ or scale is not finite.
    """
    _check_pair(v_cond, v_uncond, "v_cond", "v_uncond")
    if not math.isfinite(scale):
        raise InputError(f"guidance scale is {scale}; give a finite number ({SCALE_RANGE} in N §5).")
    if scale == 1:
        return v_cond
    uncond = v_uncond.double()
    return (uncond + scale * (v_cond.double() - uncond)).to(v_cond.dtype)


def rescale(v_cfg: Tensor, v_cond: Tensor, factor: float) -> Tensor:
    """Guided v with its standard deviation pulled back towards v_cond's (arXiv 2305.08891 §3.4, eq. 14–16).

    The standard deviation is unbiased and taken over a whole sample, (C, H, W). A constant sample cannot be
    rescaled and is returned unchanged; factor 0 returns v_cfg itself.

    v_cfg, v_cond  [B, ...]  at least two values per sample        factor  φ, 0 to 1
    returns        [B, ...]  v_cfg's dtype, computed in float64
    Raises InputError when shapes differ, samples have fewer than two values, or factor is outside [0, 1].
    """
    _check_pair(v_cfg, v_cond, "v_cfg", "v_cond")
    if not 0 <= factor <= 1:
        raise InputError(f"rescale factor is {factor}; give a number from 0 (none) to 1.")
    if v_cfg.ndim < 2 or math.prod(v_cfg.shape[1:]) < 2:
        raise InputError(f"v_cfg: shape {list(v_cfg.shape)}; a sample needs at least two values for its std.")
    if factor == 0 or len(v_cfg) == 0:
        return v_cfg
    # sample by sample: a reduction over a whole batch may sum in another order and so change the bits
    samples = [_rescale_sample(*pair, factor) for pair in zip(v_cfg.double(), v_cond.double(), strict=True)]
    return torch.stack(samples).to(v_cfg.dtype)


def _rescale_sample(v: Tensor, v_cond: Tensor, factor: float) -> Tensor:
    if v.amax() == v.amin():  # not std == 0: the mean of equal values may round
        return v
    # eq. 14, 15: x_rescaled = x_cfg·σ_pos/σ_cfg
    rescaled = v * (v_cond.std() / v.std())
    # eq. 16: x_final = φ·x_rescaled + (1 − φ)·x_cfg
    return factor * rescaled + (1 - factor) * v


def _check_pair(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    if first.shape != second.shape:
        raise InputError(
            f"{first_name} is {list(first.shape)} and {second_name} {list(second.shape)}; both must have equal shape."
        )
    if not (first.is_floating_point() and second.is_floating_point()):
        raise InputError(
            f"{first_name} is {first.dtype}, {second_name} {second.dtype}; give floating-point tensors."
        )
