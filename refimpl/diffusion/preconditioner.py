"""Karras preconditioner for v-prediction, exact at σ = 0 and σ = ∞ (N app. A.1, eq. 1, 10–18)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from refimpl.errors import InputError

# The largest sigma_edm of other implementations. Nothing is clamped here unless a mode is asked for by name.
PARITY_SIGMA_MAX = {
    "novelai": 20000.0,  # N app. A.2, the trivial variant
    "comfyui": 4518.7637,  # its last abar is 4.8973451890853435e-08
    "diffusers": 4096.0,  # its last abar is 2^-24
}


def scalings(sigma_edm: Tensor | float, sigma_data: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The scalings (c_skip, c_out, c_in) of the preconditioner.

    With small and large the smaller and larger of σ and σd, √(σ² + σd²) = large·√(1 + (small/large)²). So
    nothing overflows, and the ends need no special case: (1, 0, 1/σd) at σ = 0 and (0, −σd, 0) at σ = ∞.

    sigma_edm  [...]  0 to inf        sigma_data  σd > 0
    returns    [...]  each, float64 for float64 and for Python numbers, else float32
    Raises InputError on a negative sigma_edm, NaN, or a sigma_data that is not positive and finite.
    """
    if not 0 < sigma_data < math.inf:
        raise InputError(f"sigma_data must be positive and finite, got {sigma_data}: SDXL's is 1")
    sigma = _levels(sigma_edm)
    data = torch.full_like(sigma, sigma_data)  # a tensor, as torch rounds number / tensor twice
    small, large = torch.minimum(sigma, data), torch.maximum(sigma, data)
    root = torch.sqrt(1 + (small / large) ** 2)  # 1 to √2
    # eq. 10: c_skip = σd² / (σ² + σd²)
    c_skip = (data / (large * root)) ** 2
    # eq. 11: c_out = −σ·σd / √(σ² + σd²), where σ·σd = small·large
    c_out = -small / root
    # eq. 12: c_in = 1 / √(σ² + σd²)
    c_in = 1 / (large * root)
    return c_skip, c_out, c_in


def alpha_sigma(sigma_edm: Tensor | float) -> tuple[Tensor, Tensor]:
    """The variance-preserving coefficients of a noise level: alpha = 1/√(1 + σ²), sigma = σ/√(1 + σ²).

    sigma_edm  [...]  0 to inf        returns  [...], [...]; (0, 1) exactly at inf, dtype as in `scalings`
    Raises InputError on a negative sigma_edm or NaN.
    """
    _, c_out, c_in = scalings(sigma_edm)
    return c_in, -c_out


def denoise(
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigma_edm: Tensor | float,
    sigma_data: float = 1.0,
) -> Tensor:
    """The denoiser D(x; σ), which estimates the clean latent (eq. 1).

    Where σ is finite, x is in variance-exploding form, x0 + σ·n. Where σ = ∞ it is the unit-variance noise n
    itself, as c_in·σ → 1 (eq. 17, 18): the network gets n unscaled, and D = −σd·F(n; ∞).

    network    F(c_in·x [B, ...], sigma_edm) -> [B, ...], with v-prediction
    x          [B, ...]  float32 or float64        sigma_edm  [B] or one number
    returns    [B, ...]  in x's dtype
    Raises InputError on another dtype of x (bfloat16 has an rms error of 6.7 at σ = 4096, float16 overflows
    at 20000), on a shape mismatch, and as `scalings` does.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"a variance-exploding latent must be float32 or float64, got {x.dtype}")
    sigma = torch.as_tensor(sigma_edm, dtype=torch.float64, device=x.device)
    if sigma.ndim and sigma.shape != x.shape[:1]:
        raise InputError(
            f"sigma_edm has shape {list(sigma.shape)}, x {list(x.shape)}: give one per sample, [B]"
        )
    column = sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))
    c_skip, c_out, c_in = (scaling.to(x.dtype) for scaling in scalings(column, sigma_data))
    output = network(torch.where(torch.isinf(column), x, c_in * x), sigma)
    if output.shape != x.shape:
        raise InputError(f"the network returned {list(output.shape)} for latents {list(x.shape)}")
    # eq. 1: D(x; σ) = c_skip·x + c_out·F(c_in·x; σ)
    return c_skip * x + c_out * output.to(x.dtype)


def _levels(sigma_edm: Tensor | float) -> Tensor:
    if isinstance(sigma_edm, Tensor):
        sigma = sigma_edm.to(torch.promote_types(sigma_edm.dtype, torch.float32))
    else:
        sigma = torch.tensor(sigma_edm, dtype=torch.float64)
    if not bool((sigma >= 0).all()):
        bad = sigma[~(sigma >= 0)].flatten().tolist()
        raise InputError(f"sigma_edm must be at least 0 (inf for pure noise), got {bad[:5]}")
    return sigma
