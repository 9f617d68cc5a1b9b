"""Figures of what `refimpl stats` measured: N Fig. 8 before and after, and how fast the statistics converge."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.latents.scale_shift import NOVELAI_ANIME, ScaleShift
from refimpl.report.figures import latent_statistics
from refimpl.report.style import BLUE, GREEN, ORANGE, PURPLE, new_figure, png_bytes, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def measured_figures(preset: Path, folder: Path) -> list[Path]:
    """Write latent_statistics.png and latent_convergence.png into a folder, created if needed; returns their paths.

    preset  a file written by `refimpl stats`
    Raises InputError when it is not such a file.
    """
    try:
        text = preset.read_text(encoding="utf-8")
        before = ScaleShift.from_json(text)
        measured = json.loads(text)["measured"]
        after = measured["standardised"]["mean"], measured["standardised"]["std"]
        reference = NOVELAI_ANIME if before.channels == NOVELAI_ANIME.channels else None
        figures = {
            "latent_statistics.png": latent_statistics(
                (before.mean, before.std), after, reference and (reference.mean, reference.std)
            ),
            "latent_convergence.png": convergence(measured["curve"]),
        }
    except OSError as error:
        raise InputError(f"--statistics {preset} can't be read ({error.strerror or error})") from error
    except (KeyError, TypeError, ValueError) as error:
        problem = named_kind(preset, "a file written by `refimpl stats`", "give the .json file that it wrote")
        if problem:
            raise InputError(f"--statistics {problem}") from error
        raise InputError(
            f"--statistics {preset} is not a file written by `refimpl stats` ({type(error).__name__}: {error})"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        (folder / name).write_bytes(png_bytes(figure))
    return [folder / name for name in figures]


@styled
def convergence(curve: list[Mapping[str, Any]]) -> "Figure":
    """Mean and standard deviation of each latent channel after n images, minus their final values (N App. B).

    curve  rows with `images`, mean[C] and std[C], in the order measured; the last is the whole data set
    Raises InputError when it is empty.
    """
    if not curve:
        raise InputError("the curve is empty: nothing was measured")
    images = [row["images"] for row in curve]
    figure, panels = new_figure(3.6, 1, 2)
    for axes, name, symbol in zip(panels, ("mean", "std"), "μσ", strict=True):
        values = np.array([row[name] for row in curve], np.float64)
        scale = np.array(curve[-1]["std"], np.float64)
        for channel, column in enumerate(((values - values[-1]) / scale).T):
            axes.plot(images, column, color=COLOURS[channel % len(COLOURS)], label=f"channel {channel}")
        axes.axhline(0, color="#222222", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set(xlabel="images", title=f"{symbol} after n images, minus its final value")
    panels[0].set_ylabel("in units of the channel's final σ")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
