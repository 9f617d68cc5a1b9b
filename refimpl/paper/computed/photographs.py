"""The bundled photographs as canvases: averages of 8 × 8 px in place of latents, standardised as latents are."""

from functools import lru_cache

import numpy as np
from PIL import Image

from refimpl.data.crop import cover_and_crop
from refimpl.data.demo.photographs import PHOTOGRAPHS, locate
from refimpl.paper.computed.quantity import Floats

CELL = 8  # px, of SDXL's autoencoder
WIDTH, HEIGHT = 832, 1216  # px, N App. A.2: "our standard canvas size"
LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601


class _Middle:
    """Crops the middle: photographs are composed around it."""

    def integers(self, low: int, high: int) -> int:
        return (low + high) // 2


@lru_cache
def whole_photographs() -> tuple[Image.Image, ...]:
    """The photographs of the demo, whole, in RGB.

    Raises InputError when scikit-image or scikit-learn, which bundle them, are not installed.
    """
    found = []
    for photograph in PHOTOGRAPHS:
        with Image.open(locate(photograph)) as file:
            found.append(file.convert("RGB"))
    return tuple(found)


def canvas(image: Image.Image, width: int = WIDTH, height: int = HEIGHT) -> Floats:
    """An image scaled and cropped to a canvas as training does, and averaged: [3, height/8, width/8] in 0 … 1.

    The canvas is turned where that crops less.
    """
    if (image.width > image.height) != (width > height):
        width, height = height, width
    cropped, _ = cover_and_crop(image, (width, height), _Middle())
    return cells(cropped)


def cells(image: Image.Image) -> Floats:
    """Averages of 8 × 8 px, [3, H/8, W/8] in 0 … 1; what does not fill a cell on the right and below is left out."""
    pixels = np.asarray(image, np.float64) / 255
    height, width = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    whole = pixels[: height * CELL, : width * CELL]
    return whole.reshape(height, CELL, width, CELL, 3).mean((1, 3)).transpose(2, 0, 1)


@lru_cache
def canvases() -> tuple[Floats, ...]:
    """Every photograph as `canvas` makes it at N's standard size, each [3, h, w] with h·w = 104·152."""
    return tuple(canvas(image) for image in whole_photographs())


@lru_cache
def luma_canvases() -> tuple[Floats, ...]:
    """Their luma [h, w], standardised over all photographs together as latents are: mean 0, variance 1."""
    luma = [np.tensordot(LUMA, each, 1) for each in canvases()]
    mean = np.mean([each.mean() for each in luma])
    std = np.sqrt(np.mean([np.square(each - mean).mean() for each in luma]))
    return tuple((each - mean) / std for each in luma)
