"""The figures of N that need no trained network (1, 5, 8), as PNG files, and the plotted numbers as JSON."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from refimpl.diffusion.schedule import NoiseSchedule, sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.report.figures import latent_table, schedule_figure
from refimpl.report.noised_image import example_image, noised_image, noised_latents
from refimpl.report.style import png_bytes
from refimpl.storage.atomic import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def paper_figures(folder: str | os.PathLike[str], image: Image.Image | None = None) -> list[Path]:
    """Write N Fig. 1, 5 and 8 into a folder, which is created if needed, each with its numbers; returns the paths.

    image  the image to be noised in Fig. 1, at least 100 pixels a side; a drawn landscape by default
    Raises InputError when `folder` is a file, or the image is too small.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the figures")
    plain = sdxl_schedule()
    zero_terminal = zero_terminal_snr(plain)
    drawn = image if image is not None else example_image()
    figures: dict[str, Callable[[], Figure]] = {
        "novelai_v3_figure_1.png": lambda: noised_image(drawn, plain, zero_terminal),
        "novelai_v3_figure_5.png": lambda: schedule_figure(plain, zero_terminal),
        "novelai_v3_figure_8.png": lambda: latent_table(NOVELAI_ANIME.mean, NOVELAI_ANIME.std),
    }
    contents = {name: png_bytes(draw()) for name, draw in figures.items()}
    numbers: dict[str, dict[str, Any]] = {
        "novelai_v3_figure_1.json": {
            "columns": [
                {"sigma": _finite(each.sigma), "correlation of the lowest frequencies": each.correlation}
                for each in noised_latents(drawn, plain, zero_terminal)
            ]
        },
        "novelai_v3_figure_5.json": {
            "published": _levels(plain),
            "zero terminal SNR": _levels(zero_terminal),
        },
        "novelai_v3_figure_8.json": {"mean": NOVELAI_ANIME.mean, "std": NOVELAI_ANIME.std},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, content in numbers.items():
        replace_text(folder / name, json.dumps(content, indent=1) + "\n")
    return [folder / name for name in (*contents, *numbers)]


def _levels(schedule: NoiseSchedule) -> list[float | str]:
    """sigma_edm by timestep."""
    return [_finite(level) for level in schedule.sigma_edm.tolist()]


def _finite(level: float) -> float | str:
    """A level as JSON has it: without a number for ∞."""
    return "∞" if math.isinf(level) else level
