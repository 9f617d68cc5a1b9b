"""The figures of N that need no trained network (1, 5, 8), as PNG files with the paper's numbers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.report.figures import latent_table, schedule_figure
from refimpl.report.noised_image import example_image, noised_image
from refimpl.report.style import png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def paper_figures(folder: str | os.PathLike[str], image: Image.Image | None = None) -> list[Path]:
    """Write N Fig. 1, 5 and 8 into a folder, which is created if needed; returns the paths.

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
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]
