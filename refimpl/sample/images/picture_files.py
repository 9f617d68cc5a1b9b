"""Images in 0 … 1 written as PNG files."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refimpl.errors import InputError

GAP = 2  # px of grey between the images of a grid


def write_grid(images: Tensor, path: Path) -> None:
    """Writes a grid of images as one PNG.

    images  [rows, columns, 3, H, W] in 0 … 1
    Raises InputError when the file cannot be written.
    """
    padded = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=0.5)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1)
    write_image(rows[:, :-GAP, :-GAP], path)


def write_image(image: Tensor, path: Path) -> None:
    """Writes an image [3, H, W] in 0 … 1 as a PNG. Raises InputError when the file cannot be written."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            path.unlink()  # half a picture
        raise InputError(f"could not write the picture {path}: {error}") from error
