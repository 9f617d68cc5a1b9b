"""Classifier-free guidance and its rescale (N §5; Ho & Salimans 2022, eq. 6; Lin et al. 2023, §3.4)."""

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import FLOAT32, largest, unit_noise
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number

LIN = "Lin et al. 2023, §3.4, eq. 14–16"


def _pair(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    cond, uncond = (unit_noise(seed, batch, 4, 8, 8) for seed in (0, 1))
    spread = torch.arange(1, batch + 1).view(-1, 1, 1, 1)
    return cond * spread + 0.5, uncond


def guided(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6)."""
    return uncond + scale * (cond - uncond)


def rescaled(v: torch.Tensor, cond: torch.Tensor, factor: float) -> torch.Tensor:
    """The rescale of guided v [B, C, H, W] (Lin et al. 2023, eq. 14–16); NaN for a sample without contrast."""
    ratio = cond.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
    return factor * v * ratio + (1 - factor) * v


@check(cites="Ho & Salimans 2022, eq. 6", unit="relative to the scale", limit=FLOAT32, scale=draws.scales)
def linear(peer: Guarded, scale: float) -> float:
    """Guidance is uncond + scale·(cond − uncond)."""
    cond, uncond = _pair()
    error = (peer.guide(cond, uncond, scale, 0.0) - guided(cond, uncond, scale)).abs()
    return largest(error) / (10 * max(abs(scale), 1))


@check(cites="Ho & Salimans 2022, eq. 6", unit="v", limit=FLOAT32)
def scale_one(peer: Guarded) -> float:
    """A scale of 1 gives the conditional prediction."""
    cond, uncond = _pair()
    return largest((peer.guide(cond, uncond, 1.0, 0.0) - cond).abs()) / 10


@check(cites=LIN, unit="relative to the scale", limit=FLOAT32, scale=draws.scales, factor=draws.rescales)
def rescales(peer: Guarded, scale: float, factor: float) -> float:
    """The rescale pulls each sample's standard deviation, over channels and pixels, towards cond's by the factor."""
    cond, uncond = _pair()
    exact = rescaled(guided(cond, uncond, scale), cond, factor)
    return largest((peer.guide(cond, uncond, scale, factor) - exact).abs()) / (10 * max(abs(scale), 1))


@check(cites=LIN, unit="elements", limit=0)
def flat_sample(peer: Guarded) -> Measured:
    """A sample without any contrast is rescaled to finite numbers."""
    flat = torch.full((1, 4, 8, 8), 0.5)
    found = peer.guide(flat, flat, 5.0, 0.7, finite=False)
    wrong = int((~torch.isfinite(found)).sum())
    return Measured(wrong, f"{number(float(found.flatten()[0]))} in {wrong} of {found.numel()} places")


@check(cites=LIN, unit="v", limit=FLOAT32)
def per_sample(peer: Guarded) -> float:
    """A sample is guided alike alone and in any batch."""
    cond, uncond = _pair(3)
    together = peer.guide(cond, uncond, 5.0, 0.7)
    alone = [peer.guide(cond[i : i + 1], uncond[i : i + 1], 5.0, 0.7) for i in range(3)]
    return largest((together - torch.cat(alone)).abs()) / 50
