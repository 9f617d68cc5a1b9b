"""Mean and std of a data set's latents as more images are seen, on any number of ranks (N App. B, Fig. 8)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from refimpl.autoencoder.training import bucket_batches
from refimpl.data.loading.loader import Batches
from refimpl.data.shuffle import Stream, shuffled
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.welford import Welford
from refimpl.progress import Progress
from refimpl.run.shared_work import gathered
from refimpl.run.world import World

BATCH = 16
PER_DECADE = 8  # points of the curve
STANDARDISED_IMAGES = 2000  # of which the statistics are taken once more, after standardising


@dataclass(frozen=True)
class Measured:
    """Latent statistics of a data set.

    curve         (images, Welford) after logarithmically spaced numbers of images in random order, up to all of them
    standardised  (images, Welford) of the first images in that order, after standardising with the final statistics
    """

    curve: list[tuple[int, Welford]]
    standardised: tuple[int, Welford]

    @property
    def statistics(self) -> Welford:
        """Statistics of all images."""
        return self.curve[-1][1]

    @property
    def scale_shift(self) -> ScaleShift:
        """The map that gives every channel mean 0 and std 1."""
        return ScaleShift.from_welford(self.statistics)

    def document(self) -> dict[str, Any]:
        """The preset as a JSON object: mean, std and, under `measured`, the measurements they come from."""
        images, after = self.standardised
        return {
            "mean": list(self.scale_shift.mean),
            "std": list(self.scale_shift.std),
            "measured": {
                "images": self.curve[-1][0],
                "latent_cells": self.statistics.count,
                "curve": [{"images": n, **_table(w)} for n, w in self.curve],
                "standardised": {"images": images, **_table(after)},
            },
        }


def measure_latents(
    read: Callable[[Batches], Iterable[Tensor]],
    channels: int,
    buckets: Sequence[tuple[int, int]],
    bucket_of: np.ndarray,
    seed: int,
    world: World,
) -> Measured:
    """Welford's streaming moments over every image once, merged across ranks by Chan's rule; all ranks must call it.

    read     returns latents [B, C, h, w], one tensor for each batch, in order
    seed     seed of the order in which the curve sees the images
    returns  the same on every rank and, up to rounding, for any number of ranks
    Raises InputError when there are no images, and whatever `read` raises.
    """
    order = shuffled(len(bucket_of), seed, 0, Stream.ITEMS)
    ends = curve_points(len(order))
    parts = np.split(order, ends[:-1])
    curve: list[tuple[int, Welford]] = []
    total = Welford(channels)
    for end, part in zip(
        ends, _by_part(read, channels, buckets, bucket_of, parts, "latents", world), strict=True
    ):
        total.merge(part)
        curve.append((end, Welford.from_state(total.state())))
    scale_shift = ScaleShift.from_welford(total)
    some = order[:STANDARDISED_IMAGES]

    def standardised(batches: Batches) -> Iterator[Tensor]:
        return (scale_shift.standardise(latents) for latents in read(batches))

    (after,) = _by_part(standardised, channels, buckets, bucket_of, [some], "standardised", world)
    return Measured(curve, (len(some), after))


def curve_points(count: int) -> list[int]:
    """PER_DECADE numbers of images per decade, from 1 to `count`, rounded and without repeats."""
    steps = int(np.ceil(np.log10(max(count, 1)) * PER_DECADE))
    points = {round(10 ** (step / PER_DECADE)) for step in range(steps)} | {count}
    return sorted(point for point in points if point <= count)


def _by_part(
    read: Callable[[Batches], Iterable[Tensor]],
    channels: int,
    buckets: Sequence[tuple[int, int]],
    bucket_of: np.ndarray,
    parts: Sequence[np.ndarray],
    label: str,
    world: World,
) -> list[Welford]:
    """Statistics of each part; its batches are distributed over the ranks and the results merged in rank order."""
    mine = [_batches(buckets, bucket_of, part)[world.rank :: world.size] for part in parts]
    every = [batch for batches in mine for batch in batches]
    latents = iter(read(every))
    own = []
    total = sum(len(items) for _, items in every)
    with Progress(total, label, "images", is_shown=world.is_main) as progress:
        for batches in mine:
            statistics = Welford(channels)
            for _, items in batches:
                statistics.update(next(latents).cpu())
                progress.update(len(items))
            own.append(statistics.state())
    merged = [Welford(channels) for _ in parts]
    for states in gathered(world, own):
        for statistics, state in zip(merged, states, strict=True):
            statistics.merge(Welford.from_state(state))
    return merged


def _batches(
    buckets: Sequence[tuple[int, int]], bucket_of: np.ndarray, items: np.ndarray
) -> list[tuple[tuple[int, int], np.ndarray]]:
    """The items in batches of up to BATCH, each from one bucket."""
    return [(bucket, items[rows]) for bucket, rows in bucket_batches(buckets, bucket_of[items], BATCH)]


def _table(statistics: Welford) -> dict[str, list[float]]:
    return {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()}
