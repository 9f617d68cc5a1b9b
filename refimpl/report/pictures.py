"""Grids of captioned images, as one PIL image."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refimpl.errors import InputError
from refimpl.report.style import matplotlib_module

CELL = 160  # pixels: the least width of a cell; small images are enlarged by a whole factor
GRID_WIDTH = 980  # pixels of a whole grid
GAP = 8  # pixels between cells
FONT_SIZE = 13
LINES = 3  # of caption below an image
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


def _font() -> ImageFont.FreeTypeFont:
    """The font of the figures, which has σ and ∞; Pillow's default font does not."""
    path = Path(matplotlib_module().get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), FONT_SIZE)


def as_picture(pixels: Any) -> Image.Image:
    """A uint8 array or tensor [H, W, 3] as an RGB image. Raises InputError for anything else."""
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(f"images must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont, lines: int = LINES) -> list[str]:
    """The text in at most `lines` lines of `width` pixels; text that does not fit is cut with an ellipsis."""
    wrapped: list[str] = [""]
    for word in " ".join(text.split()).split(" "):
        longer = f"{wrapped[-1]} {word}".strip()
        if font.getlength(longer) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    kept = wrapped[:lines]
    for number, line in enumerate(kept):
        cut = number == len(kept) - 1 and len(wrapped) > lines
        while line and font.getlength(line + "…" * cut) > width:
            line, cut = line[:-1], True
        kept[number] = line + "…" * cut
    return kept


def sample_grid(images: Any, labels: Sequence[str], columns: int | None = None) -> Image.Image:
    """All images in rows, in their order, each with its caption below.

    images   uint8 [N, H, W, 3], or a list of [H, W, 3] that may differ in size
    labels   N captions; long ones are cut after three lines
    columns  cells per row; by default as many as fit into GRID_WIDTH pixels, in evenly filled rows
    Raises InputError when there are no images, or not one label for each.
    """
    pictures = [as_picture(image) for image in images]
    if not pictures or len(pictures) != len(labels):
        raise InputError(f"{len(pictures)} images and {len(labels)} labels: give one label for each image")
    factor = max(1, round(CELL / max(max(picture.size) for picture in pictures)))
    cell_w = max(picture.width for picture in pictures) * factor
    cell_h = max(picture.height for picture in pictures) * factor
    if columns is None:
        most = max(1, (GRID_WIDTH - GAP) // (cell_w + GAP))
        columns = -(-len(pictures) // -(-len(pictures) // most))  # as few rows as possible, evenly filled
    font = _font()
    wrapped = [wrap(label, cell_w, font) for label in labels]
    text_h = max(map(len, wrapped)) * (FONT_SIZE + 3) + 4
    rows = -(-len(pictures) // columns)
    size = (columns * (cell_w + GAP) + GAP, rows * (cell_h + text_h + GAP) + GAP)
    grid = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for number, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (cell_w + GAP), GAP + row * (cell_h + text_h + GAP)
        enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        grid.paste(enlarged, (left, top + cell_h - enlarged.height))
        draw.rectangle(
            (left - 1, top + cell_h - enlarged.height - 1, left + enlarged.width, top + cell_h),
            outline=(205, 205, 205),
        )
        draw.multiline_text((left, top + cell_h + 3), "\n".join(lines), INK, font, spacing=2)
    return grid


def above(first: Any, second: Any) -> NDArray[np.uint8]:
    """Two images of the same size as one, the first above the second with a white gap between them.

    first, second  uint8 [H, W, 3]        returns  uint8 [2·H + 2, W, 3]
    Raises InputError when their sizes differ.
    """
    upper, lower = np.asarray(as_picture(first)), np.asarray(as_picture(second))
    if upper.shape != lower.shape:
        raise InputError(f"images to compare differ in size: {list(upper.shape)} and {list(lower.shape)}")
    return np.concatenate([upper, np.full((2, upper.shape[1], 3), 255, np.uint8), lower])


def png(picture: Image.Image) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
