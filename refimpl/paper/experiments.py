"""N Fig. 2, 3, 4, 6 and 7 as experiments on a trained run: the images, and the numbers measured on them.

The levels are N's, scaled to the run's canvas so that they hide as much as at 1024² (N §2.3). Pictures are sampled
without guidance, to show the distribution that the network itself has learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.run.run_folder import load_model
from refimpl.model.pipeline import Model
from refimpl.paper.computed.quantity import bootstrapped
from refimpl.paper.denoising import canvas_mean, decoded, denoising, enlarged, level_name, paper_level
from refimpl.paper.effects import (
    EXTREMES,
    PUBLISHED_END,
    RAISED_END,
    SECOND_NATIVE_LEVEL,
    SHOWN_STEPS,
    Effects,
    effect_2,
    effect_3,
    effect_4,
    effect_6,
    effect_7,
)
from refimpl.sample.config import SampleConfig
from refimpl.tables import from_table

Panel = tuple[Tensor, str]  # image [3, H, W] in 0 … 1, and what is written above it

SEEDS = 3  # shown
EFFECT_SEEDS = 5  # measured
EFFECT_PROMPTS = 3
MOST_PROMPTS = 6  # in a row
BRIGHTNESS, CANVAS_MEAN = "mean pixel", "rms of the canvas' mean latent"  # of experiments.json


@dataclass(frozen=True)
class Experiment:
    """Images in named rows of equal length, with their captions, and the numbers measured on them."""

    title: str
    rows: list[tuple[str, list[Panel]]]
    numbers: dict[str, Any]
    effects: Effects = field(default_factory=dict)

    def measured_effects(self) -> dict[str, Any]:
        """Each effect's mean over seeds with its bootstrap interval, and the seeds' own values."""
        found = {}
        for name, values in self.effects.items():
            mean = bootstrapped(name, values.double().numpy(), lambda x: float(x.mean()))
            ends = {"value": mean.value, "low": mean.low, "high": mean.high}
            found[name] = {**ends, "seeds": values.tolist()}
        return found


def run_experiments(run: Path, weights: str = "ema") -> dict[int, Experiment]:
    """The five experiments on a run, keyed by the number of N's figure.

    run      a run folder or checkpoint, trained with zero terminal SNR: the figures compare starts from ∞ with others
    weights  "ema", the moving average, or "unet", the weights as trained
    Raises InputError for a run without zero terminal SNR, and as `load_model` does.
    """
    model, table, _ = load_model(run, weights)
    if not model.diffusion.zero_terminal_snr:
        raise InputError(
            f"{run} was trained without diffusion.zero_terminal_snr; N Fig. 2 to 7 need a run with it"
        )
    trained = from_table(SampleConfig, table.get("sample", {}), f"{run} [sample]")
    settings = replace(trained, guidance=1.0, seeds=SEEDS)
    return experiments_of(model, settings, settings)


def experiments_of(model: Model, settings: SampleConfig, canvas: SampleConfig) -> dict[int, Experiment]:
    """The five experiments on a model, with their effects over EFFECT_SEEDS images.

    canvas  the canvas C of Fig. 6 and 7, which draw one of twice its side; the others draw that of `settings`
    """
    effects = effects_of(model, settings, canvas)
    figures = ((2, figure_2), (3, figure_3), (4, figure_4), (6, figure_6), (7, figure_7))
    return {
        number: replace(measure(model, canvas if number in (6, 7) else settings), effects=effects[number])
        for number, measure in figures
    }


def effects_of(model: Model, settings: SampleConfig, canvas: SampleConfig) -> dict[int, Effects]:
    """The effects alone, by the number of N's figure. Arguments as in `experiments_of`."""
    several = replace(settings, seeds=EFFECT_SEEDS)
    large = enlarged(replace(canvas, seeds=EFFECT_SEEDS), 2)
    prompts = settings.prompts[:EFFECT_PROMPTS]
    return {
        2: effect_2(model, several),
        3: effect_3(model, several, prompts),
        4: effect_4(model, several, prompts),
        6: effect_6(model, canvas, large, prompts),
        7: effect_7(model, canvas, large, prompts),
    }


def figure_2(model: Model, settings: SampleConfig) -> Experiment:
    """N Fig. 2: prompts for black and for white, from pure noise and from the published schedule's end.

    From the finite level, the network relies on the mean of the noise, which is grey.
    """
    starts = (math.inf, PUBLISHED_END)
    title = "“completely black” and “completely white” (N Fig. 2)"
    return _results(model, settings, EXTREMES, starts, title)


def figure_3(model: Model, settings: SampleConfig) -> Experiment:
    """N Fig. 3: the run's own prompts; without the step from ∞ the canvas' mean is pulled to 0."""
    starts = (math.inf, PUBLISHED_END)
    title = "The same prompts and noise from two starts (N Fig. 3)"
    return _results(model, replace(settings, seeds=1), settings.prompts[:MOST_PROMPTS], starts, title)


def figure_4(model: Model, settings: SampleConfig) -> Experiment:
    """N Fig. 4: the first estimates of a black canvas, from ∞, from N's σ = 56 and from the published end."""
    starts = (math.inf, SECOND_NATIVE_LEVEL, PUBLISHED_END)
    steps = range(min(SHOWN_STEPS, settings.steps))
    return _trajectories(
        model, settings, EXTREMES[0], starts, steps, "First estimates of “completely black” (N Fig. 4)"
    )


def figure_6(model: Model, settings: SampleConfig) -> Experiment:
    """N Fig. 6: a canvas of twice the side, from the published end for the given canvas and from twice that level."""
    large = enlarged(replace(settings, seeds=1), 2)
    starts = (PUBLISHED_END, RAISED_END)
    title = f"σ_max at {large.width}×{large.height} px (N Fig. 6)"
    return _results(model, large, settings.prompts[:MOST_PROMPTS], starts, title, settings)


def figure_7(model: Model, settings: SampleConfig) -> Experiment:
    """N Fig. 7: the estimates during sampling, on the canvas and from the two levels of Fig. 6."""
    large = enlarged(settings, 2)
    starts = (PUBLISHED_END, RAISED_END)
    last = settings.steps - 1
    steps = sorted({round(last * part / (SHOWN_STEPS - 1)) for part in range(SHOWN_STEPS)})
    prompt = settings.prompts[-1]
    title = f"Estimates of “{prompt}” at {large.width}×{large.height} px (N Fig. 7)"
    return _trajectories(model, large, prompt, starts, steps, title, settings)


def _results(
    model: Model,
    settings: SampleConfig,
    prompts: Sequence[str],
    starts: Sequence[float],
    title: str,
    levels_of: SampleConfig | None = None,
) -> Experiment:
    """Finished images for the prompts, one row per start, with their canvas means.

    levels_of  the canvas that N's levels are scaled to, if not the one that is drawn
    """
    rows, numbers = [], {}
    for start in starts:
        name, level = _start(model, levels_of or settings, start)
        panels: list[Panel] = []
        brightness, means = {}, {}
        for prompt in prompts:
            latents = denoising(model, settings, prompt, level).estimates[-1]
            images = decoded(model, latents)
            panels += [(image, f"mean {float(image.mean()):.2f}") for image in images]
            brightness[prompt] = float(images.mean())
            means[prompt] = float(canvas_mean(latents).mean())
        rows.append((name, panels))
        numbers[name.replace("\n", " ")] = {BRIGHTNESS: brightness, CANVAS_MEAN: means}
    return Experiment(title, rows, numbers)


def _trajectories(
    model: Model,
    settings: SampleConfig,
    prompt: str,
    starts: Sequence[float],
    steps: Sequence[int],
    title: str,
    levels_of: SampleConfig | None = None,
) -> Experiment:
    """One image's estimates at the given steps, one row per start; levels_of as in `_results`."""
    rows, numbers = [], {}
    for start in starts:
        row, level = _start(model, levels_of or settings, start)
        path = denoising(model, replace(settings, seeds=1), prompt, level)
        images = decoded(model, path.estimates[list(steps), 0])
        names = [level_name(path.sigmas[step]) for step in steps]
        panels = [
            (image, f"{name}, mean {float(image.mean()):.2f}")
            for image, name in zip(images, names, strict=True)
        ]
        rows.append((row, panels))
        numbers[row.replace("\n", " ")] = {
            "sigma": names,
            BRIGHTNESS: images.mean((1, 2, 3)).tolist(),
            CANVAS_MEAN: canvas_mean(path.estimates[list(steps), 0]).tolist(),
        }
    return Experiment(title, rows, numbers)


def _start(model: Model, settings: SampleConfig, paper_sigma: float) -> tuple[str, float | None]:
    """A start at N's σ on this canvas: its name in the figures, and its level (None for the schedule's end)."""
    if paper_sigma == math.inf:
        return f"from {level_name(math.inf)}", None
    level = paper_level(model, settings, paper_sigma)
    return f"from {level_name(level)}\n(N: {paper_sigma:.3g})", level
