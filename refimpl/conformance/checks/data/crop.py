"""Scaling, cropping, and what the network is told of it (N §4.1.3; S §2.2, Alg. 1).

Where a crop lies is read from its pixels, not from what is claimed: the image's first channel rises evenly from left
to right and its second from top to bottom, which resampling keeps, so that a straight line through the crop's values
gives the scaled image's size and the crop's place in it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refimpl.conformance.adapter import Size
from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.data.assign import surveyed_sizes
from refimpl.conformance.guarded import Guarded

DRAWN: dict[str, Any] = {"size": draws.small_sizes, "bucket": draws.small_buckets}
BORDER = (
    8  # share of a crop's side, as 1/n, left out at either end: filters bend the line at the image's edges
)
HALF_PIXEL = 0.5


@dataclass(frozen=True)
class Seen:
    """A crop as its pixels show it, in pixels of the scaled image, and the integers that go with it."""

    scaled: tuple[float, float]
    """width and height of the scaled image"""
    left: float
    top: float
    ints: list[int]


def coordinates(size: Size) -> Tensor:
    """An image [3, H, W] float32 whose first two channels say where they are, from 0 to 1."""
    width, height = size
    image = torch.empty(3, height, width)
    image[0] = (torch.arange(width) + 0.5) / width
    image[1] = ((torch.arange(height) + 0.5) / height)[:, None]
    image[2] = 0.5
    return image


def look(peer: Guarded, size: Size, bucket: Size) -> Seen:
    """Crops a coordinate image with the peer, and reads where the crop lies."""
    cropped, ints = peer.crop(coordinates(size), bucket)
    left, width = _line(cropped[0, cropped.shape[1] // 2].double())
    top, height = _line(cropped[1, :, cropped.shape[2] // 2].double())
    return Seen((width, height), left, top, ints)


def _line(values: Tensor) -> tuple[float, float]:
    """(first pixel's offset, length of the whole side) of values (offset + i + ½) / length, by least squares."""
    border = len(values) // BORDER
    inner = values[border : len(values) - border]
    place = torch.arange(border, border + len(inner), dtype=torch.float64)
    centred = place - place.mean()
    slope = float((centred * inner).sum() / (centred * centred).sum())
    if slope <= 0:
        return float("nan"), float("nan")
    return float(inner.mean()) / slope - float(place.mean()) - HALF_PIXEL, 1 / slope


def _offset_error(seen: Seen) -> float:
    return max(abs(seen.left - seen.ints[3]), abs(seen.top - seen.ints[2]))


@check(cites="S Alg. 1", unit="px", limit=HALF_PIXEL, **DRAWN)
def integers_name_the_crop(peer: Guarded, size: Size, bucket: Size) -> Measured:
    """The crop's top and left that the network is told are the pixels that were removed there."""
    seen = look(peer, size, bucket)
    text = f"told top {seen.ints[2]}, left {seen.ints[3]}; cropped at {seen.top:.0f}, {seen.left:.0f}"
    return Measured(_offset_error(seen), text)


@check(cites="S Alg. 1", unit="% of images", limit=0, needs="crop assign")
def integers_of_a_survey(peer: Guarded) -> Measured:
    """The same over image sizes whose sides are uniform from 640 to 2048 pixels, in their own buckets."""
    sizes = surveyed_sizes()[: int(getattr(peer.adapter, "crop_survey", 100))]
    errors = []
    for size, bucket in zip(sizes, peer.assign(sizes), strict=True):
        if bucket is not None:
            seen = look(peer, size, bucket)
            errors.append(round(_offset_error(seen)))
    wrong = [error for error in errors if error > 0]
    share = 100 * len(wrong) / max(len(errors), 1)
    mean = sum(errors) / max(len(errors), 1)
    return Measured(share, f"wrong for {share:.1f} % of {len(errors):,} sizes, by {mean:.0f} px in the mean")


@check(cites='N §4.1.3: not "simply rescaled", which distorts', unit="px", limit=2.5, **DRAWN)
def keeps_aspect(peer: Guarded, size: Size, bucket: Size) -> Measured:
    """Both sides are scaled by the same factor, but for whole pixels."""
    width, height = look(peer, size, bucket).scaled
    error = min(abs(width - size[0] * height / size[1]), abs(height - size[1] * width / size[0]))
    return Measured(error, f"{size[0]}×{size[1]} scaled to {width:.0f}×{height:.0f}")


@check(cites="N §4.1.3", unit="px", limit=HALF_PIXEL, **DRAWN)
def stays_inside(peer: Guarded, size: Size, bucket: Size) -> Measured:
    """The scaled image covers the bucket, and the crop lies within it."""
    seen = look(peer, size, bucket)
    beyond = [
        -seen.left,
        -seen.top,
        seen.left + bucket[0] - seen.scaled[0],
        seen.top + bucket[1] - seen.scaled[1],
    ]
    return Measured(max(0.0, *beyond), f"cropped at {seen.top:.0f}, {seen.left:.0f}")


@check(cites="N §4.1.3: fitted to the bucket, then cropped", unit="px", limit=2.5, **DRAWN)
def least_cover(peer: Guarded, size: Size, bucket: Size) -> Measured:
    """No more is cut away than the bucket's shape demands: one of the two sides fits it."""
    width, height = look(peer, size, bucket).scaled
    return Measured(min(width - bucket[0], height - bucket[1]), f"scaled to {width:.0f}×{height:.0f}")


@check(cites="S §2.2: the original height and width", unit="px", limit=0, **DRAWN)
def original_size(peer: Guarded, size: Size, bucket: Size) -> Measured:
    """The first two integers are the image's height and width before any resizing."""
    _, ints = peer.crop(coordinates(size), bucket)
    error = max(abs(ints[0] - size[1]), abs(ints[1] - size[0]))
    return Measured(error, f"told {ints[0]}, {ints[1]} of an image {size[1]} high and {size[0]} wide")


@check(cites="S §2.3: the target size", unit="px", limit=0, **DRAWN)
def target_size(peer: Guarded, size: Size, bucket: Size) -> Measured:
    """The last two integers are the bucket's height and width."""
    _, ints = peer.crop(coordinates(size), bucket)
    error = max(abs(ints[4] - bucket[1]), abs(ints[5] - bucket[0]))
    return Measured(error, f"told {ints[4]}, {ints[5]} of a bucket {bucket[1]} high and {bucket[0]} wide")
