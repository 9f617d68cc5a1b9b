"""Aspect-ratio buckets: which sizes are trained on, and which image goes where (N §4.1.2; S §2.3, App. H)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from refimpl.data.aspect_table import MAX_IMAGE_SIDE, AspectTable, IntArray
from refimpl.data.bucket_sizes import PRESETS, Bucket, Metric, check_buckets, make_buckets
from refimpl.errors import InputError

__all__ = ["PRESETS", "Assignment", "assign", "assign_and_prune", "make_buckets", "pixel_budget_batch_sizes"]

CHUNK = 1 << 16  # images assigned at once: the temporaries stay in the cache


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
    """The bucket of every image of a dataset, and how well it fits.

    index       [N]  bucket of each image
    error       [N]  aspect error of each image, in the metric's units
    pruned      [N]  True where the image is too far from every bucket
    mean_error       mean of `error` over the images kept (N §4.1.3 reports 0.033); nan if none are kept
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
    """`assign`, then mark for pruning the images whose aspect is too far from even the nearest bucket's (N §4.1.2).

    max_log_error  largest |log aspect error| kept, whatever the metric, so that an image and its transpose
                   are pruned together; math.log(1.5) prunes images that would lose more than a third of their area
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
    """The bucket nearest to each image by aspect = width / height (N §4.1.2).

    widths, heights  [N]  pixels, whole numbers of any type (after EXIF rotation)
    metric   "linear": |bucket aspect − image aspect|, as N prints it
             "log": |log bucket aspect − log image aspect|, the same for an image and its transpose
    returns  index [N], error [N] float64 in the metric's units
    Exact ties are detected in integer arithmetic, never by rounding; they go to the bucket whose area is nearer,
    then to the lower index.
    Raises InputError for sizes that are not positive integers, arrays of unequal length, or an unknown metric.
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
            f"{name}: shape {array.shape}, {array.dtype}; give a 1-D array with one integer, in pixels, per image"
        )
    return array


def _check_sizes(width: IntArray, height: IntArray, start: int) -> None:
    if min(width.min(), height.min()) > 0 and max(width.max(), height.max()) < MAX_IMAGE_SIDE:
        return
    bad = (width <= 0) | (height <= 0) | (width >= MAX_IMAGE_SIDE) | (height >= MAX_IMAGE_SIDE)
    first = int(np.flatnonzero(bad)[0])
    raise InputError(
        f"image {start + first} is {width[first]}x{height[first]} pixels: sides must be from 1 to "
        f"{MAX_IMAGE_SIDE - 1}; remove it from the dataset"
    )
