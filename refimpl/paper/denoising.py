"""A trained network's estimates of the clean picture at each noise level during sampling (N Fig. 4, 7)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl.data.crop import SizeInts, conditioning_at_inference
from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, sample_id
from refimpl.model.pipeline import Model
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import native, scale_sigma_max
from refimpl.sample.images.guided_network import guided_network
from refimpl.sample.samplers import euler
from refimpl.sample.stepping import sdedit_start

PAPER_LATENT_SIDE = 128  # of N's 1024² canvas


@dataclass(frozen=True)
class Denoising:
    """One prompt's images on N's native grid, sampled with Euler steps.

    sigmas     [n] sigma_edm of each step, starting with ∞ if sampling starts there
    estimates  [n, images, C, h, w] float32, standardised latents: each step's estimate of the clean latent; the
               last is the result
    """

    sigmas: list[float]
    estimates: Tensor


@torch.no_grad()
def denoising(
    model: Model,
    settings: SampleConfig,
    prompt: str,
    start_sigma: float | None = None,
    size: SizeInts | None = None,
) -> Denoising:
    """The estimates for `settings.seeds` images of a prompt.

    start_sigma  first level, which is finite; None starts at the schedule's end. The noise is the same either way
    size         original size and crop that are asked for (S §2.2); None asks for the canvas itself, uncropped
    """
    factor = model.vae.config.factor
    height, width = settings.height // factor, settings.width // factor
    numbers = torch.arange(settings.seeds)
    ids = torch.full_like(numbers, sample_id(prompt))
    key = draw_key(settings.seed, ids, numbers, Purpose.INIT_NOISE)
    noise = keyed_normal(key, (model.vae.config.latent_channels, height, width))
    sigmas = native(model.diffusion.schedule(), settings.steps, sigma_max=start_sigma)
    size = size or conditioning_at_inference(settings.height, settings.width)
    predict_v = guided_network(model, [prompt] * settings.seeds, size, settings)
    estimates: list[Tensor] = []
    x = sdedit_start(torch.zeros_like(noise), noise, float(sigmas[0]))
    euler(predict_v, x, sigmas, callback=lambda _, x0: estimates.append(x0.float()))
    return Denoising(sigmas[:-1].tolist(), torch.stack(estimates))


@torch.no_grad()
def decoded(model: Model, latents: Tensor) -> Tensor:
    """Standardised latents [B, C, h, w] decoded to images [B, 3, H, W] in 0 … 1."""
    return (model.vae.decode(model.scale_shift.restore(latents)) / 2 + 0.5).clamp(0, 1)


def paper_level(model: Model, settings: SampleConfig, sigma: float) -> float:
    """The level that hides as much of this canvas as N's σ does at 1024² (N §2.3: in proportion to the side)."""
    factor = model.vae.config.factor
    return scale_sigma_max(sigma, settings.height // factor, settings.width // factor, PAPER_LATENT_SIDE)


def canvas_mean(latents: Tensor) -> Tensor:
    """The rms over channels of the canvas' mean, [..., C, h, w] → [...]: how far its average colour is from 0."""
    return latents.mean((-2, -1)).square().mean(-1).sqrt()


def enlarged(settings: SampleConfig, factor: int) -> SampleConfig:
    """The settings for a canvas with `factor` times the side."""
    return replace(settings, height=factor * settings.height, width=factor * settings.width)


def level_name(sigma: float) -> str:
    """σ as the figures print it."""
    return "σ = ∞" if math.isinf(sigma) else f"σ = {sigma:.3g}"
