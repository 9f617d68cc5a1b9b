"""Captioned images in labelled rows, in the form of N Fig. 2, 3, 4, 6 and 7."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from refimpl.report.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = tuple[Tensor, str]  # image [3, H, W] in 0 … 1, and what is written above it


@styled
def panel_figure(title: str, rows: Sequence[tuple[str, Sequence[Panel]]]) -> "Figure":
    """Captioned images in labelled rows of equal length."""
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
