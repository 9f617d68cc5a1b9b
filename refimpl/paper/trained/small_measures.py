"""What is measured on small networks: colours and brightness of what they draw, and errors on unseen pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.data.crop import SizeInts
from refimpl.diffusion.philox import Purpose, draw_key, sample_id
from refimpl.model.pipeline import Model
from refimpl.ops import load_ops
from refimpl.paper.denoising import decoded, denoising
from refimpl.paper.effects import EXTREMES
from refimpl.paper.trained.pictures import NAMES, colour_value, flat_caption, pictures
from refimpl.paper.trained.small_training import Examples, examples_of
from refimpl.sample.config import SampleConfig
from refimpl.train.step import denoising_loss

IMAGES = 4  # of each prompt
HELD_OUT = 48  # pictures
HELD_OUT_SEED = 1_000_000  # added to a run's seed, for pictures that it has not seen
TIMESTEPS = 8  # of the held-out error


def canvas(width: int, height: int, seed: int, images: int = IMAGES) -> SampleConfig:
    """How a small network draws: on N's native grid of 28 steps, without guidance, with noise by the seed alone."""
    return SampleConfig(seeds=images, seed=seed, guidance=1.0, width=width, height=height)


def drawn(model: Model, prompt: str, settings: SampleConfig, size: SizeInts | None = None) -> Tensor:
    """Images of a prompt, [images, 3, H, W] in 0 … 1.

    size  original size and crop that are asked for; None asks for the canvas itself
    """
    return decoded(model, denoising(model, settings, prompt, size=size).estimates[-1])


def colour_error(model: Model, settings: SampleConfig, names: Sequence[str] = NAMES) -> float:
    """The rms difference, in 0 … 1, between the average colour of flat pictures drawn and the colour asked for."""
    errors = [
        drawn(model, flat_caption(name), settings).mean((2, 3)) - (colour_value(name) / 2 + 0.5)
        for name in names
    ]
    return float(torch.stack(errors).square().mean().sqrt())


def brightness(model: Model, settings: SampleConfig) -> tuple[float, float]:
    """The mean pixel, in 0 … 1, of pictures that are to be completely black, and completely white."""
    black, white = (float(drawn(model, prompt, settings).mean()) for prompt in EXTREMES)
    return black, white


def terminal_slope(model: Model, settings: SampleConfig) -> float:
    """The slope of the average colour of the first estimate, from pure noise, in the colour asked for; 1 is right."""
    colours = torch.stack([colour_value(name) for name in NAMES])
    estimates = [denoising(model, settings, flat_caption(name)).estimates[0] for name in NAMES]
    means = torch.stack([model.scale_shift.restore(each).mean((0, 2, 3)) for each in estimates])
    asked = colours - colours.mean(0)
    return float((asked * means).sum() / asked.square().sum())


def held_out(model: Model, side: int, seed: int) -> Examples:
    """Pictures that no run of this seed has learned."""
    return examples_of(model, *pictures(HELD_OUT, side, HELD_OUT_SEED + seed))


@torch.no_grad()
def held_out_loss(model: Model, examples: Examples, last_timestep: int = 999) -> float:
    """The mean v-loss of weight 1 over timesteps 0 to `last_timestep`, with the same noise for every model."""
    ops, count = load_ops("reference"), len(examples.latents)
    ids = torch.tensor([sample_id(f"held out {number}") for number in range(count)])
    timesteps = torch.linspace(0, last_timestep, TIMESTEPS).round().long().tolist()
    losses = [
        denoising_loss(
            model.unet, model, examples.conditions, examples.latents,
            draw_key(0, ids, torch.full_like(ids, t), Purpose.NOISE), torch.full_like(ids, t),
            torch.ones(count), 0.0, ops,
        ).double().mean()
        for t in timesteps
    ]  # fmt: skip
    return float(torch.stack(losses).mean())
