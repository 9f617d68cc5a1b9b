"""Aspect-ratio buckets: which sizes are trained on, and which image goes where (N §4.1.2; S §2.3, App. H)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import numpy as np
import numpy.typing as npt

from refimpl.data.aspect_table import MAX_IMAGE_SIDE, MAX_SIDE, AspectTable, Bucket, IntArray, Metric
from refimpl.errors import InputError

CHUNK = 1 << 16  # images assigned at once: the temporaries stay in the cache


def make_buckets(
    max_area: int, max_side: int, min_side: int, step: int, extra: Iterable[Bucket] = ()
) -> list[Bucket]:
    """Bucket sizes by NovelAI's algorithm (N §4.1.2), with its constants as arguments.

    For every width that is a multiple of `step` from `min_side` to `max_side`, the largest such height with
    width·height ≤ `max_area`; the same with width and height exchanged; duplicates pruned; then `extra`.
    A width for which even `min_side` is too high gives no bucket.

    max_area  pixels          max_side, min_side, step  pixels          extra  (width, height) pairs
    returns   (width, height) pairs: the square outwards (by max/min side), portrait before landscape, then
              the extras that are not among them. The set, extras aside, is closed under transposing, and so
              is the order: of two portrait buckets, the first is also the first when both are turned.
    Raises InputError when no bucket fits or an argument is impossible.
    """
    for name, value in (("step", step), ("min_side", min_side), ("max_area", max_area)):
        if value <= 0:
            raise InputError(f"bucket {name} = {value}: it is in pixels and must be positive")
    if min_side > max_side:
        raise InputError(
            f"bucket min_side = {min_side} is above max_side = {max_side}: no side fits; exchange them"
        )
    if max_side > MAX_SIDE:
        raise InputError(f"bucket max_side = {max_side} is above {MAX_SIDE}: lower it")
    shortest = -(-min_side // step) * step
    found: set[Bucket] = set()
    for width in range(shortest, max_side + 1, step):
        height = min(max_side, max_area // width) // step * step
        if height >= min_side:
            found |= {(width, height), (height, width)}
    if not found:
        raise InputError(
            f"no bucket fits max_area = {max_area} with sides {min_side} to {max_side} in steps of {step}: "
            f"the smallest is {shortest}x{shortest} = {shortest**2} pixels; raise max_area or lower min_side"
        )
    buckets = sorted(found, key=_from_square_outwards)
    buckets += [bucket for bucket in dict.fromkeys((w, h) for w, h in extra) if bucket not in found]
    check_buckets(buckets)
    return buckets


def _from_square_outwards(bucket: Bucket) -> tuple[Fraction, int, int]:
    width, height = bucket
    return Fraction(max(bucket), min(bucket)), width * height, width


def check_buckets(buckets: Sequence[Bucket]) -> None:
    """Raise InputError unless `buckets` is a non-empty list of pairs of positive integers up to 2^20."""
    if len(buckets) == 0:
        raise InputError("the bucket list is empty: give at least one (width, height)")
    for position, bucket in enumerate(buckets):
        if len(bucket) != 2 or not all(int(side) == side and 0 < side <= MAX_SIDE for side in bucket):
            raise InputError(
                f"bucket {position} is {tuple(bucket)}: give (width, height) in pixels, 1 to {MAX_SIDE}"
            )


def pixel_budget_batch_sizes(buckets: Sequence[Bucket], budget: int) -> npt.NDArray[np.int64]:
    """Batch size [n_buckets] of each bucket that keeps a rank's batch within `budget` pixels (S §2.3).

    buckets  (width, height) pairs        budget  pixels
    Raises InputError when one image of some bucket exceeds the budget.
    """
    check_buckets(buckets)
    areas = np.array([width * height for width, height in buckets], np.int64)
    for (width, height), area in zip(buckets, areas, strict=True):
        if area > budget:
            raise InputError(
                f"pixel budget {budget} is below one image of bucket {width}x{height} = {area} pixels: raise it"
            )
    return budget // areas


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a dataset's buckets look like.

    index       [N]  bucket of each image
    error       [N]  aspect error of each image, in the metric's units
    pruned      [N]  True where the image is too far from every bucket
    mean_error       mean of `error` over the images kept (N §4.1.3 reports 0.033); nan without any
    """

    index: IntArray
    error: npt.NDArray[np.float64]
    pruned: npt.NDArray[np.bool_]
    mean_error: float


def assign_and_prune(
    widths: npt.ArrayLike,
    heights: npt.ArrayLike,
    buckets: Sequence[Bucket],
    metric: Metric = "log",
    max_log_error: float = math.inf,
) -> Assignment:
    """`assign`, and mark the images whose aspect is too far from even the best bucket's (N §4.1.2).

    max_log_error  largest |log aspect error| kept, whatever the metric, so that an image and its transpose
                   are pruned together; math.log(1.5) prunes what would lose a third of its area
    Raises InputError as `assign` does, and for a limit that is negative or nan.
    """
    if not max_log_error >= 0:
        raise InputError(f"max_log_error = {max_log_error}: give a number ≥ 0, or inf to prune nothing")
    index, error = assign(widths, heights, buckets, metric)
    log_error = error if metric == "log" else assign(widths, heights, buckets, "log")[1]
    pruned = log_error > max_log_error
    kept = error[~pruned]
    return Assignment(index, error, pruned, float(kept.mean()) if kept.size else math.nan)


def assign(
    widths: npt.ArrayLike, heights: npt.ArrayLike, buckets: Sequence[Bucket], metric: Metric = "log"
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Nearest bucket of each image by aspect = width / height (N §4.1.2).

    widths, heights  [N]  pixels, whole numbers of any type (after EXIF rotation)
    metric   "linear": |bucket aspect − image aspect|, as N prints it
             "log": |log bucket aspect − log image aspect|, the same for an image and its transpose
    returns  index [N], error [N] float64 in the metric's units
    Exact ties, decided in integers and never by rounding, go to the bucket of the nearer area, then to the
    lower index.
    Raises InputError for sizes that are not positive integers, arrays of unequal length, an unknown metric.
    """
    width, height = _as_sizes("widths", widths), _as_sizes("heights", heights)
    if width.shape != height.shape:
        raise InputError(f"{width.size} widths but {height.size} heights: give one of each per image")
    check_buckets(buckets)
    if metric not in get_args(Metric):
        raise InputError(f'unknown aspect metric {metric!r}: give "linear" or "log"')
    table = AspectTable(buckets, metric)
    index = np.empty(width.size, np.int32)
    error = np.empty(width.size)
    for start in range(0, width.size, CHUNK):
        part = slice(start, start + CHUNK)
        _check_sizes(width[part], height[part], start)
        index[part] = table.nearest(width[part], height[part])
        error[part] = table.error(width[part], height[part], index[part])
    return index, error


def _as_sizes(name: str, values: npt.ArrayLike) -> IntArray:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and (np.abs(array) < MAX_IMAGE_SIDE).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)  # a table's column with gaps elsewhere is read as floats
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{name}: shape {array.shape}, {array.dtype}; give one whole number of pixels per image"
        )
    return array


def _check_sizes(width: IntArray, height: IntArray, start: int) -> None:
    if min(width.min(), height.min()) > 0 and max(width.max(), height.max()) < MAX_IMAGE_SIDE:
        return
    bad = (width <= 0) | (height <= 0) | (width >= MAX_IMAGE_SIDE) | (height >= MAX_IMAGE_SIDE)
    first = int(np.flatnonzero(bad)[0])
    raise InputError(
        f"image {start + first} is {width[first]}x{height[first]} pixels: sides go from 1 to "
        f"{MAX_IMAGE_SIDE - 1}; remove it from the dataset"
    )


_SDXL_HEIGHT_WIDTH = """
    512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472
    704x1408 704x1344 768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024
    1024x1024 1024x960 1088x960 1088x896 1152x896 1152x832 1216x832 1280x768 1344x768 1408x704
    1472x704 1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512 2048x512
"""  # S App. H, in its order and its notation, height first


def _parse_height_width(table: str) -> list[Bucket]:
    sizes = [entry.split("x") for entry in table.split()]
    return [(int(width), int(height)) for height, width in sizes]


PRESETS: dict[str, list[Bucket]] = {
    "novelai_v1": make_buckets(512 * 768, 1024, 256, 64, extra=[(512, 512)]),  # N §4.1.2
    "novelai_v3": make_buckets(1024 * 1024, 2048, 512, 64, extra=[(1024, 1024)]),
    "sdxl": _parse_height_width(_SDXL_HEIGHT_WIDTH),
}
