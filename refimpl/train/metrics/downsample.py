"""Long series drawn with few points: of each slice the least and the greatest value, so extremes stay visible."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FEWEST, MOST = 4, 5000  # points of a series


def downsampled(
    steps: Sequence[int],
    values: Sequence[float],
    points: int,
    first: float = -math.inf,
    last: float = math.inf,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """At most `points` of a series' values within a window of steps, in their order, and the steps of these.

    steps, values  [N] and at most N: value k is that of step k, nan where there is none
    first, last    the window's ends, both inside
    The window's first and last value stay, and of each of the equal slices between them the least and the greatest.
    """
    value = np.asarray(values, np.float64)
    step = np.asarray(steps, np.int64)[: len(value)]
    shown = np.flatnonzero((step >= first) & (step <= last) & ~np.isnan(value))
    if len(shown) > points:
        shown = shown[_extremes(value[shown], (points - 2) // 2)]
    return step[shown], value[shown]


def _extremes(value: npt.NDArray[np.float64], slices: int) -> npt.NDArray[np.int64]:
    """Places of the first and the last value, and of the least and the greatest of each slice; ascending."""
    width = -(-len(value) // slices)
    rows = np.pad(value, (0, -len(value) % width), mode="edge").reshape(-1, width)
    starts = np.arange(len(rows)) * width
    found = [[0, len(value) - 1], starts + rows.argmin(1), starts + rows.argmax(1)]
    return np.unique(np.minimum(np.concatenate(found), len(value) - 1))
