"""How far images are from their buckets, and how many pixels a crop removes (N §4.1.3).

N reports a mean aspect error of 0.033 and crops of usually less than 32 px for its own data, which are not public.
What they are elsewhere depends on the shapes of the images alone: buckets 64 px apart leave 0 to 64 px over, about
half of the crops below 32, unless images have the aspects of the buckets.
"""

from collections.abc import Callable

import numpy as np

from refimpl.data.buckets import PRESETS, assign
from refimpl.data.crop import cover_size
from refimpl.paper.computed.photographs import whole_photographs
from refimpl.paper.computed.quantity import Floats, Quantity, bootstrapped

IMAGES = 2000
CROP = 32  # px, N §4.1.3
PIXELS = 2_000_000  # of an image; the errors depend on its shape alone
SENSORS = (3 / 2, 4 / 3, 16 / 9, 1.0)  # cameras and phones
PAPER = (2**0.5, 4 / 3, 3 / 2, 1.0, 16 / 9, 1.25)  # drawings: A4, screens, prints


def _mostly(aspects: tuple[float, ...], spread: float) -> Callable[[np.random.Generator], Floats]:
    """Images of some named aspects, upright or not, with a share of freely cropped ones around them."""

    def draw(rng: np.random.Generator) -> Floats:
        chosen = rng.choice(np.log(aspects), IMAGES) * rng.choice((-1, 1), IMAGES)
        return np.exp(chosen + rng.normal(0, spread, IMAGES))

    return draw


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "cameras": _mostly(SENSORS, 0.0),
    "drawings, cropped by ±5 %": _mostly(PAPER, 0.05),
    "log-uniform 1:2 to 2:1": lambda rng: np.exp(rng.uniform(-np.log(2), np.log(2), IMAGES)),
    "log-normal, σ 0.35": lambda rng: np.exp(rng.normal(0, 0.35, IMAGES)),
    "bundled photographs": lambda _: np.array([image.width / image.height for image in whole_photographs()]),
}


def aspect_errors(aspects: Floats, preset: str) -> tuple[Floats, Floats]:
    """The error of each image's aspect (N prints it without the logarithm), and the px that its crop removes.

    aspects  [n], width over height
    """
    buckets = PRESETS[preset]
    widths = np.rint(np.sqrt(PIXELS * aspects)).astype(np.int64)
    heights = np.rint(np.sqrt(PIXELS / aspects)).astype(np.int64)
    chosen, errors = assign(widths, heights, buckets, metric="linear")
    removed = [
        sum(cover_size(int(width), int(height), buckets[bucket])) - sum(buckets[bucket])
        for width, height, bucket in zip(widths, heights, chosen, strict=True)
    ]
    return np.asarray(errors, np.float64), np.array(removed, np.float64)


def cropping() -> list[Quantity]:
    """The mean aspect error and the share of crops below 32 px, by distribution and preset."""
    found = []
    for name, draw in DISTRIBUTIONS.items():
        aspects = draw(np.random.default_rng(0))
        for preset in ("novelai_v1", "novelai_v3"):
            errors, removed = aspect_errors(aspects, preset)
            mean = bootstrapped(f"mean aspect error, {name}, {preset}", errors, lambda x: float(x.mean()))
            share = bootstrapped(
                f"share of crops below {CROP} px, {name}, {preset}",
                removed,
                lambda x: float((x < CROP).mean()),
            )
            found += [mean, share]
    return found
