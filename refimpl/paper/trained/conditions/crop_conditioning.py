"""The crop as a condition (S §2.2, Fig. 4 and 5).

Pictures twice as wide as high, with one shape in the middle, are cropped at random to the square canvas: a shape is
whole in a crop from the middle and cut by the border in one from either end. One network is told where each crop was
taken; another, of the same weights and crops, is told of none. There are two colours only, so that the place of the
shape is the main thing to learn.

Predicted: the shape moves against the crop that is asked for; it touches the border more often in crops asked for
from the ends than from the middle, and more often without the condition than asked for the middle with it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from refimpl.data.crop import SizeInts, cover_and_crop
from refimpl.data.demo.drawings import COLOURS
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.learned import learned, lesson
from refimpl.paper.trained.pictures import shape_caption
from refimpl.paper.trained.small_measures import canvas, drawn
from refimpl.paper.trained.small_model import small_model
from refimpl.paper.trained.small_training import SIZES_LEARNED, SmallRun, examples_of, measured

MEASURE = "crop conditioning"
SIDE, BATCH, STEPS = 16, 32, 500
COUNT = 768
SUPERSAMPLE = 4
RADIUS = 4, 5  # px of the canvas
LEFTS = (0, SIDE // 2, SIDE)  # crops asked for: the left end, the middle, the right end
IMAGES = 8
NAMES = ("blue", "yellow")
PROMPTS = (NAMES, NAMES[::-1])  # the colours of the shape and of the background

FOLLOWED = "pixels that the shape moves to the left for one that the crop asked for moves to the right"
ENDS = "share of shapes at the border, asked for the ends less for the middle"
UNTOLD = "share of shapes at the border, without the condition less asked for the middle"
PREDICTED = (FOLLOWED, ENDS, UNTOLD)


@dataclass(frozen=True)
class Crops:
    """Cropped pictures [N, 3, SIDE, SIDE] in −1 … 1, their captions, and their conditioning integers [N, 6]."""

    images: Tensor
    captions: list[str]
    sizes: Tensor


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one seed's networks, and the numbers that they are the differences of."""
    crops = cropped(COUNT, seed)
    centres, borders = zip(
        *(_drawn(seed, crops.sizes, crops, asked(left), folder) for left in LEFTS), strict=True
    )
    _, without = _drawn(seed, untold(crops.sizes), crops, asked(0), folder)
    found = {
        FOLLOWED: (centres[0] - centres[-1]) / (LEFTS[-1] - LEFTS[0]),
        ENDS: (borders[0] + borders[-1]) / 2 - borders[1],
        UNTOLD: without - borders[1],
    }
    found |= {
        f"share at the border, crop from {left} px": share for left, share in zip(LEFTS, borders, strict=True)
    }
    found |= {
        f"centre of the shape in px, crop from {left} px": at for left, at in zip(LEFTS, centres, strict=True)
    }
    found["share at the border, without the condition"] = without
    return {MEASURE: found}


def asked(left: int) -> SizeInts:
    """A crop of a wide picture that starts so many pixels from its left end."""
    return SizeInts(SIDE, 2 * SIDE, 0, left, SIDE, SIDE)


def untold(sizes: Tensor) -> Tensor:
    """The conditioning integers with no crop told."""
    sizes = sizes.clone()
    sizes[:, 2:4] = 0
    return sizes


def cropped(count: int, seed: int) -> Crops:
    """Wide pictures of one circle in the middle, scaled and cropped by the project's own function."""
    rng = np.random.default_rng([seed, count])
    images, captions, sizes = [], [], []
    for _ in range(count):
        colour, background = (str(name) for name in rng.choice(NAMES, size=2, replace=False))
        picture, ints = cover_and_crop(_wide(colour, background, rng), (SIDE, SIDE), rng)
        images.append(np.asarray(picture, np.float32) / 127.5 - 1)
        captions.append(shape_caption("circle", colour, background))
        sizes.append(ints)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Crops(stacked, captions, torch.tensor(sizes))


def shape_place(images: Tensor, colour: str, background: str) -> tuple[float, float]:
    """The mean column of the shape's pixels, and the share of images [B, 3, H, W] in 0 … 1 in which it is cut.

    A pixel is of the shape where it is nearer to its colour than to the background's. A shape is cut where it holds
    pixels of the first or the last column; so is one of which nothing is in the picture, which has no centre.
    """
    of_shape, behind = (
        (images - torch.tensor(COLOURS[name])[:, None, None] / 255).square().sum(1)
        for name in (colour, background)
    )
    columns = (of_shape < behind).sum(1)  # [B, W]
    is_cut = (columns[:, 0] > 0) | (columns[:, -1] > 0) | (columns.sum(1) == 0)
    total = columns.sum()
    places = (columns * torch.arange(columns.shape[1])).sum()
    centre = float(places / total) if total else (columns.shape[1] - 1) / 2
    return centre, float(is_cut.double().mean())


def _drawn(seed: int, sizes: Tensor, crops: Crops, size: SizeInts, folder: Path) -> tuple[float, float]:
    """The centre and the share at the border of shapes drawn by the network that was told `sizes`."""
    run = SmallRun(seed=seed, side=SIDE, steps=STEPS, batch=BATCH, size_rate=SIZES_LEARNED)
    model = small_model(run.diffusion, measured(crops.images), seed)
    model = learned(model, lesson(run, examples_of(model, crops.images, crops.captions, sizes)), folder)
    settings = canvas(SIDE, SIDE, seed, IMAGES)
    places = [
        shape_place(drawn(model, shape_caption("circle", *colours), settings, size), *colours)
        for colours in PROMPTS
    ]
    centre, border = (sum(each) / len(each) for each in zip(*places, strict=True))
    return centre, border


def _wide(colour: str, background: str, rng: np.random.Generator) -> Image.Image:
    large = Image.new("RGB", (2 * SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE), COLOURS[background])
    radius = float(rng.uniform(*RADIUS)) * SUPERSAMPLE
    x, y = large.width / 2, large.height / 2
    ImageDraw.Draw(large).ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    return large.reduce(SUPERSAMPLE)
