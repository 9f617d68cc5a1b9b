"""Images in 0 … 1 written as PNG files."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from refimpl.errors import InputError

GAP = 2  # px of grey between the images of a grid
NOTE = "refimpl"  # the PNG's text in which a grid says what its rows are


def write_grid(images: Tensor, path: Path, prompts: Sequence[str] = ()) -> None:
    """Writes a grid of images as one PNG.

    images   [rows, columns, 3, H, W] in 0 … 1
    prompts  one for each row, which the file then names
    Raises InputError when the file cannot be written.
    """
    note = json.dumps({"prompts": list(prompts), "columns": images.shape[1]}) if prompts else ""
    write_image(tiled(images), path, note)


def tiled(images: Tensor) -> Tensor:
    """Images [rows, columns, 3, H, W] as one, [3, height, width], with grey between them."""
    padded = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=0.5)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1)
    return rows[:, :-GAP, :-GAP]


def pixels_of(image: Tensor) -> npt.NDArray[np.uint8]:
    """An image [3, H, W] in 0 … 1 as bytes [H, W, 3]."""
    return np.ascontiguousarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def write_image(image: Tensor, path: Path, note: str = "") -> None:
    """Writes an image [3, H, W] in 0 … 1 as a PNG, with a note in it where there is one.

    Raises InputError when the file cannot be written.
    """
    notes = PngInfo()
    if note:
        notes.add_itxt(NOTE, note)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(image)).save(path, pnginfo=notes)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            path.unlink()  # half a picture
        raise InputError(f"could not write the picture {path}: {error}") from error
