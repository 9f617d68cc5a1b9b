"""Nearest bucket by aspect ratio, exact in ties, in time linear in the number of images (N §4.1.2)."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from refimpl.data.bucket_sizes import Bucket, Metric

IntArray = npt.NDArray[np.integer]

MAX_IMAGE_SIDE = 2**31  # pixels; times MAX_SIDE it is still exact in float64
FINE_BAND = 2.0**-48  # relative; ten times the rounding of a float64 aspect and of a boundary together
COARSE_BAND = 2.0**-21  # relative; the same for a float32 aspect
COARSE_SHIFT = 12  # a float32 without its last 12 bits: 2048 cells per factor of two of the aspect
COARSE_FIRST, COARSE_LAST = (int(np.float32(2.0**e).view(np.int32)) >> COARSE_SHIFT for e in (-32, 32))


class AspectTable:
    """Buckets sorted by aspect, with the decision boundaries between neighbours.

    Buckets of equal aspect form a group. Slot 2k is group k; slot 2k + 1 is the exact tie between the groups k
    and k + 1. Between two groups of aspects a1 < a2 the errors are equal at the boundary aspect = (a1 + a2)/2
    (linear) or aspect² = a1·a2 (log). Both are rational, so integer arithmetic settles what rounding can't.
    """

    def __init__(self, buckets: Sequence[Bucket], metric: Metric) -> None:
        self.metric = metric
        self.power = 2 if metric == "log" else 1
        self.width = np.array([width for width, _ in buckets], np.float64)
        self.height = np.array([height for _, height in buckets], np.float64)
        self.area = np.array([int(width) * int(height) for width, height in buckets], np.int64)
        groups: dict[Fraction, list[int]] = {}
        for index, (width, height) in enumerate(buckets):
            groups.setdefault(Fraction(int(width), int(height)), []).append(index)
        aspects = sorted(groups)
        neighbours = list(pairwise(aspects))
        self.bounds = [a1 * a2 if metric == "log" else (a1 + a2) / 2 for a1, a2 in neighbours]
        self.float_bounds = np.array([float(bound) ** (1 / self.power) for bound in self.bounds])
        self.candidates = [groups[aspects[0]]]
        for a1, a2 in neighbours:
            self.candidates += [sorted(groups[a1] + groups[a2]), groups[a2]]
        self.only = np.array([slot[0] if len(slot) == 1 else -1 for slot in self.candidates], np.int32)
        self.coarse = self._coarse_buckets()

    def _coarse_buckets(self) -> IntArray:
        """Bucket by the leading bits of a float32 aspect; -1 for the cells where these bits are not enough."""
        edges = (np.arange(COARSE_FIRST, COARSE_LAST + 1, dtype=np.int32) << COARSE_SHIFT).view(np.float32)
        low = np.searchsorted(self.float_bounds, edges[:-1].astype(np.float64) * (1 - COARSE_BAND))
        high = np.searchsorted(self.float_bounds, edges[1:].astype(np.float64) * (1 + COARSE_BAND))
        kind = np.int16 if len(self.width) < 2**15 else np.int32  # small enough for the first-level cache
        return np.where(low == high, self.only[2 * low], -1).astype(kind)

    def nearest(self, width: IntArray, height: IntArray) -> IntArray:
        """Bucket index [n] of images of the given sizes [n]: least error, nearest area, lowest index."""
        cell = width.astype(np.float32)
        cell /= height.astype(np.float32)
        cell = cell.view(np.int32)
        cell >>= COARSE_SHIFT
        cell -= COARSE_FIRST
        index = self.coarse.take(cell, mode="wrap")  # no cell wraps, but of take's modes this is the fastest
        if index.size and index.min() < 0:
            near = np.flatnonzero(index < 0)
            index[near] = self._nearest_exactly(width[near], height[near])
        return index

    def _nearest_exactly(self, width: IntArray, height: IntArray) -> IntArray:
        slot = self._slots(width, height)
        index = self.only[slot]
        for shared in np.unique(slot[index < 0]):
            items = np.flatnonzero(slot == shared)
            candidates = np.array(self.candidates[shared], np.int32)
            area = width[items].astype(np.int64) * height[items].astype(np.int64)
            distance = np.abs(self.area[candidates] - area[:, None])
            index[items] = candidates[distance.argmin(1)]
        return index

    def _slots(self, width: IntArray, height: IntArray) -> IntArray:
        aspect = width / height
        low = np.searchsorted(self.float_bounds * (1 + FINE_BAND), aspect)
        high = np.searchsorted(self.float_bounds * (1 - FINE_BAND), aspect)
        slot = low + high
        tied = np.flatnonzero(low != high)
        if tied.size:
            slot[tied] = self._exact_slots(width[tied], height[tied])
        return slot

    def _exact_slots(self, width: IntArray, height: IntArray) -> IntArray:
        """Slots of the few images too close to a boundary for float64; each distinct aspect is looked up exactly."""
        divisor = np.gcd(width, height)
        reduced, inverse = np.unique(
            np.stack([width // divisor, height // divisor]), axis=1, return_inverse=True
        )
        slots = []
        for aspect in (Fraction(int(w), int(h)) ** self.power for w, h in reduced.T):
            slots.append(bisect_left(self.bounds, aspect) + bisect_right(self.bounds, aspect))
        return np.array(slots)[inverse.reshape(-1)]

    def error(self, width: IntArray, height: IntArray, index: IntArray) -> npt.NDArray[np.float64]:
        """Aspect error [n] of images against bucket `index` [n].

        Computed from the products w·H and h·W, exact in float64, so that it is exactly 0 where the aspects agree
        and, for the log metric, bitwise equal for an image and its transpose.
        """
        index = index.astype(np.intp)
        across = self.height.take(index, mode="wrap")
        across *= width
        down = self.width.take(index, mode="wrap")
        down *= height
        if self.metric == "linear":
            return np.abs(across - down) / (height * self.height[index])
        smaller = np.minimum(across, down)
        across -= down
        np.abs(across, out=across)
        across /= smaller
        return np.log1p(across, out=across)
