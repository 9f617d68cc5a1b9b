"""A number with its interval, and the bootstrap that gives it (Efron 1979)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
COVERAGE = 0.95
SEED = 0  # of every resampling


@dataclass(frozen=True)
class Quantity:
    """One measured number. The ends are the number itself where it is exact."""

    name: str
    value: float
    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        return self.low == self.value == self.high


def exact(name: str, value: float) -> Quantity:
    """A number that depends on no sample."""
    return Quantity(name, float(value), float(value), float(value))


def bootstrapped(
    name: str,
    samples: Floats,
    statistic: Callable[[Floats], float],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Quantity:
    """A statistic of samples [n, ...] and the percentile interval of its value over samples drawn anew.

    Whole rows are drawn with replacement, so a row must be what is independent: a photograph, a training.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(samples[rng.integers(len(samples), size=len(samples))]) for _ in range(resamples)]
    return with_interval(name, statistic(samples), np.array(drawn))


def resampled_means(samples: Floats, resamples: int, seed: int = SEED) -> Floats:
    """The means of samples [n, k] drawn anew, [resamples, k]: for statistics of the mean over large rows."""
    count = len(samples)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    times = np.stack([np.bincount(row, minlength=count) for row in drawn])
    return times @ samples / count


def with_interval(name: str, value: float, drawn: Floats) -> Quantity:
    """A number with the percentile interval of its values over resamples."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Quantity(name, float(value), float(low), float(high))
