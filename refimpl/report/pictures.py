"""Images of a run as pictures that a page can hold."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refimpl.errors import InputError


def as_picture(pixels: Any) -> Image.Image:
    """A uint8 array or tensor [H, W, 3] as an RGB image. Raises InputError for anything else."""
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(f"images must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


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
