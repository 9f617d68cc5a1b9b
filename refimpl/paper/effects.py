"""The effects of N Fig. 2, 3, 4, 6 and 7 as numbers of which the report gives the sign: positive, image by image.

Both starts of a comparison get the same noise, so a difference of two images is due to their starts alone.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from refimpl.model.pipeline import Model
from refimpl.paper.connectedness import connectedness
from refimpl.paper.denoising import decoded, denoising, paper_level
from refimpl.sample.config import SampleConfig

PUBLISHED_END = 14.614641229333639  # of the schedule without zero terminal SNR (N §2.2)
SECOND_NATIVE_LEVEL = 56.178238948721265  # of 28 steps on the rescaled schedule: N Fig. 4's σ = 56
RAISED_END = 2 * PUBLISHED_END  # N Fig. 6, 7
EXTREMES = ("completely black", "completely white")
BLOCKS = 4  # a side: the low frequencies of a small canvas

Effects = dict[str, Tensor]  # what is measured → [seeds], the images of each seed


def effect_2(model: Model, settings: SampleConfig) -> Effects:
    """N Fig. 2: by how much black and white differ more in brightness from ∞ than from the published end."""
    level = paper_level(model, settings, PUBLISHED_END)
    black, white = (
        torch.stack([_brightness(model, settings, prompt, start) for start in (None, level)])
        for prompt in EXTREMES
    )
    contrast = white - black
    return {
        "contrast of white and black, from ∞ less from 14.6": contrast[0] - contrast[1],
        "brightness of black from 14.6 less from ∞": black[1] - black[0],
    }


def effect_3(model: Model, settings: SampleConfig, prompts: Sequence[str]) -> Effects:
    """N Fig. 3: the share of the canvas' average colour that a start from the published end loses."""
    level = paper_level(model, settings, PUBLISHED_END)
    kept, whole = 0.0, 0.0
    for prompt in prompts:
        right, pulled = (
            denoising(model, settings, prompt, start).estimates[-1].mean((-2, -1)) for start in (None, level)
        )
        kept = kept + (right * pulled).sum(1)
        whole = whole + right.square().sum(1)
    return {"share of the canvas mean lost from 14.6": 1 - torch.as_tensor(kept) / whole}


def effect_4(model: Model, settings: SampleConfig) -> Effects:
    """N Fig. 4: by how much brighter the first estimate of a black canvas is from σ = 56 than from ∞."""
    level = paper_level(model, settings, SECOND_NATIVE_LEVEL)
    first, later = (
        decoded(model, denoising(model, settings, EXTREMES[0], start).estimates[0]).mean((1, 2, 3))
        for start in (None, level)
    )
    return {"brightness of the first estimate of black, from 56 less from ∞": later - first}


def effect_6(model: Model, canvas: SampleConfig, settings: SampleConfig, prompts: Sequence[str]) -> Effects:
    """N Fig. 6: by how much more of a shape is in one piece on a large canvas from twice the published end.

    canvas  the canvas C that the published end belongs to; `settings` are of the canvas 2C that is drawn
    """
    levels = [paper_level(model, canvas, sigma) for sigma in (PUBLISHED_END, RAISED_END)]
    low, high = (
        torch.stack(
            [
                connectedness(decoded(model, denoising(model, settings, prompt, level).estimates[-1]))
                for prompt in prompts
            ]
        ).mean(0)
        for level in levels
    )
    return {"share of shapes in one piece, from 2·14.6 less from 14.6": high - low}


def effect_7(model: Model, canvas: SampleConfig, settings: SampleConfig, prompts: Sequence[str]) -> Effects:
    """N Fig. 7: by how much more of the noise is in the first estimate's low frequencies from the lower start.

    The distance of each image's first estimate from the mean over images, which differ by their noise alone.
    """
    levels = [paper_level(model, canvas, sigma) for sigma in (PUBLISHED_END, RAISED_END)]
    low, high = (
        torch.stack([_scatter(model, settings, prompt, level) for prompt in prompts]).mean(0)
        for level in levels
    )
    return {"scatter of the first estimate, from 14.6 less from 2·14.6": low - high}


def in_small(settings: SampleConfig, factor: int) -> SampleConfig:
    """The settings for a canvas with one `factor`-th of the side."""
    return replace(settings, height=settings.height // factor, width=settings.width // factor)


def _brightness(model: Model, settings: SampleConfig, prompt: str, start: float | None) -> Tensor:
    """Mean pixel of each seed's image, [seeds] in 0 … 1."""
    return decoded(model, denoising(model, settings, prompt, start).estimates[-1]).mean((1, 2, 3))


def _scatter(model: Model, settings: SampleConfig, prompt: str, start: float) -> Tensor:
    first = denoising(model, settings, prompt, start).estimates[0]
    blocks = torch.nn.functional.adaptive_avg_pool2d(first, BLOCKS)
    return (blocks - blocks.mean(0)).square().mean((1, 2, 3)).sqrt() * math.sqrt(
        len(first) / (len(first) - 1)
    )
