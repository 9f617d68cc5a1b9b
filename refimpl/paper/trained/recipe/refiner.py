"""A refiner: a network of its own for the first 200 noise scales (S §2.5).

Base and refiner have the same shape, initial weights, pictures and number of steps; the refiner is asked only for
t < 200. The pictures are flat areas of pure colours, so that missing detail shows as pixels of other colours.

Predicted: on unseen pictures the refiner's error at t < 200 is the smaller; pixels of a picture that was noised to
t = 199 and denoised by it are nearer to pure colours than before (S §2.5: it improves detail).
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from refimpl.data.crop import conditioning_at_inference
from refimpl.diffusion.philox import sample_id
from refimpl.model.pipeline import Model
from refimpl.paper.denoising import decoded, denoising
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.pictures import NAMES, colour_value, shape_caption
from refimpl.paper.trained.small_measures import canvas, held_out, held_out_loss
from refimpl.paper.trained.small_training import SmallRun, trained_model
from refimpl.sample.config import SampleConfig
from refimpl.sample.images.refiner import Refiner, refined

MEASURE = "refiner"
LAST_TIMESTEP = 199  # S §2.5: the first 200 scales
PROMPTS = (
    shape_caption("circle", "red", "white"),
    shape_caption("square", "black", "yellow"),
    shape_caption("cross", "white", "blue"),
)

LOSS = "log₂ of the held-out v-loss at t < 200, base less refiner"
COLOURS = "mean distance of pixels from pure colours, base less refined"
PREDICTED = (LOSS, COLOURS)


def refiner_run(run: SmallRun) -> SmallRun:
    """The base's training, on the first 200 scales alone."""
    return replace(run, diffusion=replace(run.diffusion, last_timestep=LAST_TIMESTEP))


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one seed's networks, and the numbers that they are the differences of."""
    run = SmallRun(seed=seed)
    base, refiner = trained_model(run, folder), trained_model(refiner_run(run), folder)
    unseen = held_out(base, run.side, seed)
    losses = [held_out_loss(model, unseen, LAST_TIMESTEP) for model in (base, refiner)]
    settings = canvas(run.side, run.side, seed)
    pairs = [distances(base, refiner, prompt, settings) for prompt in PROMPTS]
    before, after = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
    found = {LOSS: math.log2(losses[0] / losses[1]), COLOURS: before - after}
    found |= {"distance from pure colours, base": before, "distance from pure colours, refined": after}
    return {MEASURE: found}


def distances(base: Model, refiner: Model, prompt: str, settings: SampleConfig) -> tuple[float, float]:
    """The mean distance from pure colours of a prompt's pictures, before and after refining."""
    latents = denoising(base, settings, prompt).estimates[-1]
    numbers = torch.arange(len(latents))
    after = refined(
        Refiner(refiner), latents, [prompt] * len(latents), torch.full_like(numbers, sample_id(prompt)), numbers,
        conditioning_at_inference(settings.height, settings.width), settings,
    )  # fmt: skip
    return distance_from_colours(decoded(base, latents)), distance_from_colours(decoded(base, after))


def distance_from_colours(images: Tensor) -> float:
    """The mean over pixels of images [B, 3, H, W] in 0 … 1 of the distance to the nearest colour of the pictures."""
    colours = torch.stack([colour_value(name) for name in NAMES]) / 2 + 0.5
    return float(torch.cdist(images.movedim(1, -1).reshape(-1, 3), colours).amin(1).mean())
