"""Captioned pictures that small networks learn: flat colours, and one large shape on a flat background."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from refimpl.data.demo.drawings import COLOURS

NAMES = ("black", "white", "red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "cross")
SUPERSAMPLE = 8  # shapes are drawn larger and averaged down
FLAT_SHARE = 2  # every second picture is flat: black and white are what N Fig. 2 asks for


def flat_caption(colour: str) -> str:
    """The prompt of a flat picture, in N's words."""
    return f"completely {colour}"


def shape_caption(shape: str, colour: str, background: str) -> str:
    """The prompt of a picture of one shape."""
    return f"{colour} {shape}, {background} background"


def pictures(count: int, side: int, seed: int) -> tuple[Tensor, list[str]]:
    """The first `count` pictures of a seed: [count, 3, side, side] float32 in −1 … 1, and their captions.

    A function of (number, side, seed) alone, so a larger set begins with the smaller one.
    """
    drawn = [_picture(number, side, seed) for number in range(count)]
    images = np.stack([image for image, _ in drawn])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), [caption for _, caption in drawn]


def colour_value(name: str) -> Tensor:
    """A colour as it stands in the pictures, [3] in −1 … 1."""
    return torch.tensor(COLOURS[name], dtype=torch.float32) / 127.5 - 1


def _picture(number: int, side: int, seed: int) -> tuple[np.ndarray, str]:
    rng = np.random.default_rng([seed, number])
    if number % FLAT_SHARE == 0:
        name = NAMES[number // FLAT_SHARE % len(NAMES)]
        return _pixels(Image.new("RGB", (side, side), COLOURS[name])), flat_caption(name)
    colour, background = (str(name) for name in rng.choice(NAMES, size=2, replace=False))
    shape = SHAPES[number // FLAT_SHARE % len(SHAPES)]
    large = Image.new("RGB", (side * SUPERSAMPLE, side * SUPERSAMPLE), COLOURS[background])
    radius = float(rng.uniform(0.28, 0.4)) * large.width
    x, y = (float(rng.uniform(radius, large.width - radius)) for _ in range(2))
    _draw(ImageDraw.Draw(large), shape, x, y, radius, COLOURS[colour])
    return _pixels(large.reduce(SUPERSAMPLE)), shape_caption(shape, colour, background)


def _draw(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: Sequence[int]
) -> None:
    colour = tuple(fill)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        arm = radius * 0.4
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 127.5 - 1
