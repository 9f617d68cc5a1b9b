"""Reconstruction quality of pictures: PSNR, SSIM (S Tab. 3), and blockiness at JPEG's 8-pixel boundaries (N §4.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.errors import InputError

RANGE = 2.0  # of pixels in −1..1
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
JPEG_BLOCK = 8


def psnr(restored: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10·log₁₀(range² / mean squared error).

    restored, images  [B, C, H, W]  pixels in −1..1        returns  [B]  dB, float64; inf where they are equal
    Raises InputError when the shapes differ.
    """
    _check_pair(restored, images)
    error = (restored.double() - images.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error)


def ssim(restored: Tensor, images: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) with an 11 × 11 Gaussian window of σ = 1.5.

    restored, images  [B, C, H, W]  pixels in −1..1        returns  [B]  float64, averaged over positions and channels
    Only windows entirely inside the picture count. Raises InputError when the shapes differ or a side is below 11.
    """
    _check_pair(restored, images)
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise InputError(
            f"SSIM of pictures of {images.shape[3]} × {images.shape[2]}: both sides must be at least {SSIM_WINDOW}"
        )
    x, y = restored.double(), images.double()
    mu_x, mu_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mu_x**2
    var_y = _blur(y * y) - mu_y**2
    covariance = _blur(x * y) - mu_x * mu_y
    c1, c2 = (SSIM_K1 * RANGE) ** 2, (SSIM_K2 * RANGE) ** 2
    # eq. 13
    similarity = ((2 * mu_x * mu_y + c1) * (2 * covariance + c2)) / (
        (mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(1, 2, 3))


def blockiness(images: Tensor) -> Tensor:
    """Mean step across the boundaries of 8-pixel blocks, relative to the mean step elsewhere.

    mean |x[i] − x[i−1]| over the i that are multiples of 8, divided by the same over all other i; rows and columns
    together. 1 without blocks, up to ∞ if all steps are at block boundaries. This measure is not from a paper; N §4.4
    defines none.

    images  [B, C, H, W], with the upper left corner at the corner of a block        returns  [B]  float64
    A constant picture has 1. Raises InputError when a side is not above 8.
    """
    if images.ndim != 4 or min(images.shape[2:]) <= JPEG_BLOCK:
        raise InputError(
            f"blockiness of pictures of shape {list(images.shape)}: give [B, C, H, W] with sides above 8"
        )
    at, elsewhere, places_at, places_elsewhere = 0.0, 0.0, 0, 0
    for dim in (2, 3):
        steps = (
            images.double().diff(dim=dim).abs().sum(dim=(1, 5 - dim))
        )  # [B, side − 1]; step i − 1 leads to i
        is_boundary = torch.arange(1, steps.shape[1] + 1, device=images.device) % JPEG_BLOCK == 0
        across = images.shape[1] * images.shape[5 - dim]
        at = at + steps[:, is_boundary].sum(1)
        elsewhere = elsewhere + steps[:, ~is_boundary].sum(1)
        places_at += int(is_boundary.sum()) * across
        places_elsewhere += int((~is_boundary).sum()) * across
    at, elsewhere = torch.as_tensor(at / places_at), torch.as_tensor(elsewhere / places_elsewhere)
    return torch.where((at == 0) & (elsewhere == 0), 1.0, at / elsewhere)


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean of every window that fits inside the picture, one axis at a time."""
    place = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, SSIM_WINDOW)
    x = F.conv2d(x, weights[:, :, :, None], groups=x.shape[1])
    return F.conv2d(x, weights[:, :, None, :], groups=x.shape[1])


def _check_pair(restored: Tensor, images: Tensor) -> None:
    if restored.shape != images.shape or images.ndim != 4:
        raise InputError(
            f"restored pictures {list(restored.shape)} and their originals {list(images.shape)}: both must be "
            "[B, C, H, W] of equal shape"
        )
