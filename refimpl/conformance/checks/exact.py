"""What the checks compare with: this project's own functions in float64, and what they need beside them."""

from functools import cache

import torch
from torch import Tensor

from refimpl.diffusion.schedule import NoiseSchedule, sdxl_schedule, zero_terminal_snr

LAST = 999  # the timestep of pure noise
NATIVE_SECOND = 56.178238948721265  # second level of N's 28 native steps, "σ = 56" in N Fig. 4

# Limits that several checks share.
FLOAT32_TABLE = 1e-6  # abar of order one through some ten float32 operations (eps 1.2e-7)
FLOAT32 = 1e-5  # values of order one through some tens of float32 operations
LOW_PRECISION = 0.02  # two roundings to bfloat16 (2^-9 each) with room


@cache
def exact_schedule(zero_snr: bool) -> NoiseSchedule:
    """SDXL's schedule in float64, as published or rescaled."""
    return zero_terminal_snr(sdxl_schedule()) if zero_snr else sdxl_schedule()


def coefficients(t: list[int]) -> tuple[Tensor, Tensor]:
    """alpha and sigma [B, 1, 1, 1] of latents at these timesteps, on the rescaled schedule."""
    alpha, sigma = exact_schedule(True).at(torch.tensor(t))
    return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)


def sigma_edm_of(abar: Tensor) -> Tensor:
    """sigma / alpha of a table of abar; ∞ where abar is 0."""
    return ((1 - abar) / abar).sqrt()


def ratio_error(found: Tensor, exact: Tensor) -> float:
    """Largest |found / exact − 1|; equal zeros and infinities count as 0, NaN as NaN."""
    error = torch.where(found == exact, torch.zeros_like(exact), (found / exact - 1).abs())
    return largest(error)


def largest(values: Tensor) -> float:
    """The largest value; NaN if there is one, and 0 of none."""
    if values.numel() == 0:
        return 0.0
    return float("nan") if bool(values.isnan().any()) else float(values.max())


def rms(values: Tensor) -> float:
    """Root of the mean square."""
    return float(values.double().square().mean().sqrt())


def unit_noise(seed: int, *shape: int) -> Tensor:
    """Unit normal noise in float64, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
