"""The original size as a condition (S §2.2, Fig. 3).

Chequerboards are drawn, reduced to originals of 4, 8 or 16 px and scaled to the canvas of 16 px, with their original
size told to the network. The cells of a board are 2 px of the canvas, which an original of 4 px can't hold.

Predicted: asked for a larger original, the network draws more detail from the same noise.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refimpl.data.crop import conditioning_at_inference, cover_and_crop
from refimpl.data.demo.drawings import COLOURS
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.learned import learned, lesson
from refimpl.paper.trained.pictures import NAMES
from refimpl.paper.trained.small_measures import canvas, drawn
from refimpl.paper.trained.small_model import small_model
from refimpl.paper.trained.small_training import SIZES_LEARNED, SmallRun, examples_of, measured

MEASURE = "size conditioning"
SIDE, BATCH, STEPS = 16, 32, 500
ORIGINALS = (4, 8, 16)  # sides, px
CELL = 2  # px of the canvas
SUPERSAMPLE = 4
COUNT = 768
PROMPTS = ("red and white chequerboard", "blue and yellow chequerboard", "black and white chequerboard")

DETAIL = "log₂ of the detail drawn, asked for an original of 16 px less for one of 4 px"
PREDICTED = (DETAIL,)


def of_seed(seed: int, folder: Path) -> Found:
    """The detail drawn by one seed's network for each original asked for, and the detail of its pictures."""
    run = SmallRun(seed=seed, side=SIDE, steps=STEPS, batch=BATCH, size_rate=SIZES_LEARNED)
    images, captions, sizes = boards(COUNT, seed)
    model = small_model(run.diffusion, measured(images), seed)
    model = learned(model, lesson(run, examples_of(model, images, captions, sizes)), folder)
    settings = canvas(SIDE, SIDE, seed)
    drawn_detail = {}
    for side in ORIGINALS:
        asked = conditioning_at_inference(SIDE, SIDE, side, side)
        each = [detail(drawn(model, prompt, settings, asked)) for prompt in PROMPTS]
        drawn_detail[side] = sum(each) / len(each)
    found = {DETAIL: math.log2(drawn_detail[ORIGINALS[-1]] / drawn_detail[ORIGINALS[0]])}
    found |= {f"detail drawn, original of {side} px": value for side, value in drawn_detail.items()}
    for side in ORIGINALS:
        found[f"detail of the pictures, original of {side} px"] = detail(
            images[sizes[:, 0] == side] / 2 + 0.5
        )
    return {MEASURE: found}


def boards(count: int, seed: int) -> tuple[Tensor, list[str], Tensor]:
    """Chequerboards: [count, 3, SIDE, SIDE] in −1 … 1, captions, and conditioning integers [count, 6]."""
    rng = np.random.default_rng([seed, count])
    images, captions, sizes = [], [], []
    for number in range(count):
        original = ORIGINALS[number % len(ORIGINALS)]
        one, other = sorted(str(name) for name in rng.choice(NAMES, size=2, replace=False))
        whole = _board(one, other, rng.integers(2 * CELL, size=2) * SUPERSAMPLE)
        picture, ints = cover_and_crop(whole.reduce(whole.width // original), (SIDE, SIDE), rng)
        images.append(np.asarray(picture, np.float32) / 127.5 - 1)
        captions.append(f"{one} and {other} chequerboard")
        sizes.append(ints)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return stacked, captions, torch.tensor(sizes)


def detail(images: Tensor) -> float:
    """The mean difference of neighbouring pixels, of images [B, 3, H, W] in 0 … 1."""
    return float((images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2)


def _board(one: str, other: str, shift: np.ndarray) -> Image.Image:
    y, x = np.mgrid[: SIDE * SUPERSAMPLE, : SIDE * SUPERSAMPLE]
    cell = CELL * SUPERSAMPLE
    is_one = ((x + shift[0]) // cell + (y + shift[1]) // cell) % 2 == 0
    pixels = np.where(is_one[..., None], COLOURS[one], COLOURS[other]).astype(np.uint8)
    return Image.fromarray(pixels)
