"""Data for which the optimal network is known: the analytic denoiser of a Gaussian."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refimpl.diffusion.preconditioner import alpha_sigma


@dataclass(frozen=True)
class Gaussian:
    """Independent pixels x0 ~ N(mean, std²)."""

    mean: float
    std: float

    def predict_v(self, x: Tensor, sigma_edm: Tensor) -> Tensor:
        """E[v | x] in closed form, finite at every level: σ·(α·x·(1 − s²) − m)/(α²s² + σ²)."""
        alpha, sigma = (float(part) for part in alpha_sigma(sigma_edm))
        power = (alpha * self.std) ** 2 + sigma**2
        return sigma * (alpha * x * (1 - self.std**2) - self.mean) / power

    def denoiser(self, y: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | y] for y = x0 + σ·n, with the signature that k-diffusion's samplers call; sigma [B]."""
        sigma = sigma.reshape(-1, *[1] * (y.ndim - 1))
        return (self.std**2 * y + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def flow(self, y: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """y moved along the exact probability flow from one level to another."""
        spread, spread_next = math.hypot(self.std, sigma), math.hypot(self.std, sigma_next)
        return self.mean + spread_next / spread * (y - self.mean)

    def noised(self, shape: tuple[int, ...], sigma: float, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A noised sample at a finite level, as (y, x): variance-exploding and variance-preserving."""
        generator = torch.Generator().manual_seed(seed)
        clean, n = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        y = self.mean + self.std * clean + sigma * n
        return y, y / math.hypot(1, sigma)


@dataclass(frozen=True)
class FlatCanvas:
    """Canvases of a single colour: every pixel of a sample is the same c ~ N(mean, std²)."""

    mean: float
    std: float

    def predict_v(self, x: Tensor, sigma_edm: Tensor) -> Tensor:
        """E[v | x]: the canvas' mean pixel is a sufficient statistic, with noise lower by √pixels."""
        alpha, sigma = (float(part) for part in alpha_sigma(sigma_edm))
        pixels = x[0].numel()
        y_mean = x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
        power = (alpha * self.std) ** 2 + sigma**2 / pixels
        x0 = (alpha * self.std**2 * y_mean + sigma**2 / pixels * self.mean) / power
        return (alpha * x - x0) / sigma
