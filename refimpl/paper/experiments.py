"""N Fig. 2, 3, 4, 6 and 7 as experiments on a trained run, as PNG files and the numbers in them.

Levels are those of N scaled to the run's canvas, where they hide as much as at 1024² (N §2.3). Pictures are drawn
without guidance: what is shown is what the network takes for true.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.run.run_folder import Model, load_model
from refimpl.paper.denoising import canvas_mean, decoded, denoising, enlarged, level_name, paper_level
from refimpl.report.style import new_figure, png_bytes, styled
from refimpl.sample.config import SampleConfig
from refimpl.storage.committed import replace_text
from refimpl.tables import from_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = tuple[Tensor, str]  # image [3, H, W] in 0 … 1, and what is written above it
Result = tuple["Figure", dict[str, Any]]

PUBLISHED_END = 14.614641229333639  # of the schedule without zero terminal SNR (N §2.2)
SECOND_NATIVE_LEVEL = 56.178238948721265  # of 28 steps on the rescaled schedule: N Fig. 4's σ = 56
RAISED_END = 2 * PUBLISHED_END  # N Fig. 6, 7
EXTREMES = ("completely black", "completely white")
SEEDS = 3
MOST_PROMPTS = 6  # in a row
SHOWN_STEPS = 6  # of a trajectory
BRIGHTNESS, CANVAS_MEAN = "mean pixel", "rms of the canvas' mean latent"  # of experiments.json


def run_figures(run: Path, folder: str | os.PathLike[str], weights: str = "ema") -> list[Path]:
    """Draws the five experiments of a run into a folder, and experiments.json with their numbers; returns the paths.

    run  a run folder or checkpoint, trained with zero terminal SNR: the figures compare starts from ∞ with others
    Raises InputError for another run, and when the folder's place is taken by a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the figures")
    model, table, _ = load_model(run, weights)
    if not model.diffusion.zero_terminal_snr:
        raise InputError(
            f"{run} was trained without diffusion.zero_terminal_snr; N Fig. 2 to 7 need a run with it"
        )
    trained = from_table(SampleConfig, table.get("sample", {}), f"{run} [sample]")
    settings = replace(trained, guidance=1.0, seeds=SEEDS)
    drawn: dict[str, Result] = {
        str(number): draw(model, settings)
        for number, draw in ((2, figure_2), (3, figure_3), (4, figure_4), (6, figure_6), (7, figure_7))
    }
    contents = {f"run_figure_{number}.png": png_bytes(figure) for number, (figure, _) in drawn.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    numbers = {f"figure {number}": numbers for number, (_, numbers) in drawn.items()}
    replace_text(folder / "experiments.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    return [*(folder / name for name in contents), folder / "experiments.json"]


def figure_2(model: Model, settings: SampleConfig) -> Result:
    """N Fig. 2: black and white asked for, from pure noise and from the published schedule's end.

    From the finite level the network trusts the mean of the noise, which is grey.
    """
    starts = (math.inf, PUBLISHED_END)
    title = "“completely black” and “completely white” (N Fig. 2)"
    return _results(model, settings, EXTREMES, starts, title)


def figure_3(model: Model, settings: SampleConfig) -> Result:
    """N Fig. 3: the run's own prompts; without the step from ∞ the canvas' mean is pulled to 0."""
    starts = (math.inf, PUBLISHED_END)
    title = "The same prompts and noise from two starts (N Fig. 3)"
    return _results(model, replace(settings, seeds=1), settings.prompts[:MOST_PROMPTS], starts, title)


def figure_4(model: Model, settings: SampleConfig) -> Result:
    """N Fig. 4: the first estimates of a black canvas, from ∞, from N's σ = 56 and from the published end."""
    starts = (math.inf, SECOND_NATIVE_LEVEL, PUBLISHED_END)
    steps = range(min(SHOWN_STEPS, settings.steps))
    return _trajectories(
        model, settings, EXTREMES[0], starts, steps, "First estimates of “completely black” (N Fig. 4)"
    )


def figure_6(model: Model, settings: SampleConfig) -> Result:
    """N Fig. 6: a canvas of twice the side, from the published schedule's end and from twice that level."""
    large = enlarged(replace(settings, seeds=1), 2)
    starts = (PUBLISHED_END, RAISED_END)
    title = f"σ_max at {large.width}×{large.height} px (N Fig. 6)"
    return _results(model, large, settings.prompts[:MOST_PROMPTS], starts, title)


def figure_7(model: Model, settings: SampleConfig) -> Result:
    """N Fig. 7: estimates on the way, on the canvas and from the two levels of Fig. 6."""
    large = enlarged(settings, 2)
    starts = (PUBLISHED_END, RAISED_END)
    last = settings.steps - 1
    steps = sorted({round(last * part / (SHOWN_STEPS - 1)) for part in range(SHOWN_STEPS)})
    prompt = settings.prompts[-1]
    title = f"Estimates of “{prompt}” at {large.width}×{large.height} px (N Fig. 7)"
    return _trajectories(model, large, prompt, starts, steps, title)


def _results(
    model: Model,
    settings: SampleConfig,
    prompts: Sequence[str],
    starts: Sequence[float],
    title: str,
) -> Result:
    """Finished images of prompts, a row for each start, with the mean of their canvas."""
    rows, numbers = [], {}
    for start in starts:
        name, level = _start(model, settings, start)
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
    return panel_figure(title, rows), numbers


def _trajectories(
    model: Model,
    settings: SampleConfig,
    prompt: str,
    starts: Sequence[float],
    steps: Sequence[int],
    title: str,
) -> Result:
    """One image's estimates at some steps, a row for each start."""
    rows, numbers = [], {}
    for start in starts:
        row, level = _start(model, settings, start)
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
    return panel_figure(title, rows), numbers


def _start(model: Model, settings: SampleConfig, paper_sigma: float) -> tuple[str, float | None]:
    """A start at N's σ on this canvas: what the figures call it, and its level (None: the schedule's end)."""
    if paper_sigma == math.inf:
        return f"from {level_name(math.inf)}", None
    level = paper_level(model, settings, paper_sigma)
    return f"from {level_name(level)}\n(N: {paper_sigma:.3g})", level


@styled
def panel_figure(title: str, rows: Sequence[tuple[str, Sequence[Panel]]]) -> "Figure":
    """Images in named rows of one length, each with its caption."""
    columns = len(rows[0][1])
    figure, axes = new_figure(1.0 + len(rows) * 8.4 / max(columns, 3), len(rows), columns)
    figure.suptitle(title)
    for number, (name, panels) in enumerate(rows):
        for column, (image, caption) in enumerate(panels):
            place = axes[number * columns + column]
            place.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.grid(visible=False)
            place.set_title(caption, loc="center", fontsize=8, fontweight="normal")
        axes[number * columns].set_ylabel(name)
    return figure
