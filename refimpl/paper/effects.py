"""The effects of N Fig. 2, 3, 4, 6 and 7 as numbers of which the report gives the sign: positive, image by image.

Both starts of a comparison get the same noise, so a difference of two images is due to their starts alone.
"""

from collections.abc import Sequence

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
SHOWN_STEPS = 6  # of a trajectory
BRIGHTER_FROM_14 = "brightness of black from 14.6 less from ∞"
FIRST_ESTIMATE_LOST = "share of the canvas mean that the first estimate loses from 56"
COHERENT_ON_THE_WAY = "share of shapes in one piece on the way, from 2·14.6 less from 14.6"
BLACK_FROM_INFINITY, WHITE_FROM_INFINITY = "brightness of black from ∞", "brightness of white from ∞"

Effects = dict[str, Tensor]  # what is measured → [seeds], the images of each seed


def effect_2(model: Model, settings: SampleConfig) -> Effects:
    """N Fig. 2: by how much black and white differ more in brightness from ∞ than from the published end.

    Beside it stand the brightnesses from ∞ themselves, in 0 … 1, of which the report gives no sign.
    """
    level = paper_level(model, settings, PUBLISHED_END)
    black, white = (
        torch.stack([_brightness(model, settings, prompt, start) for start in (None, level)])
        for prompt in EXTREMES
    )
    contrast = white - black
    return {
        "contrast of white and black, from ∞ less from 14.6": contrast[0] - contrast[1],
        BRIGHTER_FROM_14: black[1] - black[0],
        BLACK_FROM_INFINITY: black[0],
        WHITE_FROM_INFINITY: white[0],
    }


def effect_3(model: Model, settings: SampleConfig, prompts: Sequence[str]) -> Effects:
    """N Fig. 3: the share of the canvas' average colour that a start from the published end loses."""
    lost = _lost(model, settings, prompts, PUBLISHED_END, -1)
    return {"share of the canvas mean lost from 14.6": lost}


def effect_4(model: Model, settings: SampleConfig, prompts: Sequence[str]) -> Effects:
    """N Fig. 4: the share of the canvas' average colour that the first estimate from σ = 56 lacks of that from ∞."""
    lost = _lost(model, settings, prompts, SECOND_NATIVE_LEVEL, 0)
    return {FIRST_ESTIMATE_LOST: lost}


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
    """N Fig. 7: by how much more of a shape is in one piece in the estimates on the way, from the higher start."""
    levels = [paper_level(model, canvas, sigma) for sigma in (PUBLISHED_END, RAISED_END)]
    low, high = (
        torch.stack([_on_the_way(model, settings, prompt, level) for prompt in prompts]).mean(0)
        for level in levels
    )
    return {COHERENT_ON_THE_WAY: high - low}


def _brightness(model: Model, settings: SampleConfig, prompt: str, start: float | None) -> Tensor:
    """Mean pixel of each seed's image, [seeds] in 0 … 1."""
    return decoded(model, denoising(model, settings, prompt, start).estimates[-1]).mean((1, 2, 3))


def _on_the_way(model: Model, settings: SampleConfig, prompt: str, start: float) -> Tensor:
    """Connectedness averaged over some estimates, from the first on, [seeds]."""
    estimates = denoising(model, settings, prompt, start).estimates
    steps = torch.linspace(0, len(estimates) - 1, SHOWN_STEPS).round().long()
    return torch.stack([connectedness(decoded(model, estimates[step])) for step in steps]).mean(0)


def _lost(
    model: Model, settings: SampleConfig, prompts: Sequence[str], paper_sigma: float, step: int
) -> Tensor:
    """1 less the slope of the canvas' means from a finite start over those from ∞, over prompts, [seeds].

    step  the estimate that is compared: 0 the first, −1 the result
    """
    level = paper_level(model, settings, paper_sigma)
    kept, whole = torch.zeros(settings.seeds), torch.zeros(settings.seeds)
    for prompt in prompts:
        right = denoising(model, settings, prompt).estimates[step].mean((-2, -1))
        pulled = denoising(model, settings, prompt, level).estimates[step].mean((-2, -1))
        kept += (right * pulled).sum(1)
        whole += right.square().sum(1)
    return 1 - kept / whole
