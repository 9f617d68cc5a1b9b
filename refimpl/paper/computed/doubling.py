"""The exponent of N's rule that σ_max doubles with the side of the canvas (N §2.3: an upper bound).

σ_max in proportion to s·L keeps the SNR of the average of L × L latents, whose variance over images is s². Where the
larger canvas shows the same scene, s stays and the exponent is 1. Where it shows more of the world, averaging over
new content makes s smaller.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from refimpl.paper.computed.photographs import CELL, LUMA, cells, whole_photographs
from refimpl.paper.computed.quantity import Floats, Quantity, bootstrapped

SIDES = (64, 128, 256)  # px
WINDOWS = 24  # of each photograph
CHANNELS = 3


def _windows(side: int, luma_of: Callable[[Image.Image, int], float]) -> Floats:
    """Average luma of windows of each photograph, [photographs, WINDOWS], around the same places for every side."""
    means = []
    for number, image in enumerate(whole_photographs()):
        rng = np.random.default_rng([0, number])
        largest = max(SIDES)
        lefts, tops = (rng.integers(0, extent - largest + 1, WINDOWS).tolist() for extent in image.size)
        windows = [
            image.crop((left, top, left + largest, top + largest))
            for left, top in zip(lefts, tops, strict=True)
        ]
        means.append([luma_of(window, side) for window in windows])
    return np.array(means)


def _luma(image: Image.Image) -> float:
    """The average luma of an image, 0 to 1."""
    return float(np.asarray(image, np.float64).mean((0, 1)) @ LUMA) / 255


def _middle(window: Image.Image, side: int) -> Image.Image:
    inset = (window.width - side) // 2
    return window.crop((inset, inset, inset + side, inset + side))


def _more_of_the_world(window: Image.Image, side: int) -> float:
    """Of the middle of a window, which shows the more of it the larger it is."""
    return _luma(_middle(window, side))


def _enlarged(window: Image.Image, side: int) -> float:
    """Of the smallest middle, enlarged to this side."""
    small = _middle(window, min(SIDES))
    return _luma(small.resize((side, side), Image.Resampling.BICUBIC))


def _exponent(by_photograph: Floats) -> float:
    """The slope of log(s·L) over log L; s² is the variance over the windows of all photographs.

    by_photograph  [photographs, sides, windows]
    """
    spreads = by_photograph.transpose(1, 0, 2).reshape(len(SIDES), -1).std(1)
    sides = np.array(SIDES) / CELL
    return float(np.polyfit(np.log(sides), np.log(spreads * sides), 1)[0])


def doubling_exponents() -> list[Quantity]:
    """The exponent for one scene enlarged, and for a canvas that shows more of the world."""
    named = {"one scene enlarged": _enlarged, "new content": _more_of_the_world}
    return [
        bootstrapped(
            f"exponent of σ_max in the side, {name}",
            np.stack([_windows(side, source) for side in SIDES], axis=1),
            _exponent,
        )
        for name, source in named.items()
    ]


def channel_redundancy() -> list[Quantity]:
    """How much of the colour channels is one shared signal (N §2.3: more channels could be more redundancy).

    The largest eigenvalue of the correlation matrix of red, green and blue: the SNR of what they share grows by it,
    from 1, unrelated channels, to 3, equal ones. σ_max keeps the SNR where it grows by its root.
    """
    colours = np.stack([_sampled(image) for image in whole_photographs() if _has_colour(image)])

    def shared(chosen: Floats) -> float:
        together = chosen.transpose(1, 0, 2).reshape(CHANNELS, -1)
        return float(np.linalg.eigvalsh(np.corrcoef(together))[-1])

    gain = bootstrapped("SNR of what three colour channels share, over one's", colours, shared)
    root = Quantity(
        "σ_max for three channels over that for one", *(np.sqrt((gain.value, gain.low, gain.high)).tolist())
    )
    return [gain, root]


def _sampled(image: Image.Image, count: int = 1000) -> Floats:
    """`count` cells of an image, [3, count], drawn anew where it has fewer."""
    each = cells(image).reshape(CHANNELS, -1)
    return each[:, np.random.default_rng(0).integers(each.shape[1], size=count)]


def _has_colour(image: Image.Image) -> bool:
    return bool(np.ptp(cells(image), axis=0).max() > 1 / 255)
