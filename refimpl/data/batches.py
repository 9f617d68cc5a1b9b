"""Batches from per-bucket lists, and what happens to the leftovers of each list (N §4.1.2)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.data.aspect_table import IntArray
from refimpl.data.shuffle import Stream, shuffled

LOG_UNIT = 2.0**-32  # of log aspects as integers, whose sums don't depend on their order or on the platform


@dataclass(frozen=True, eq=False)
class BatchList:
    """Batches, each from one bucket, and the order in which they are drawn."""

    items: IntArray  # of batch k: items[starts[k] : starts[k + 1]]
    starts: npt.NDArray[np.int64]
    buckets: npt.NDArray[np.int64]
    sequence: IntArray  # batch of each step
    first_mixed: int  # number of the first batch of the catch-all, which come last

    def __len__(self) -> int:
        return self.buckets.size

    def __getitem__(self, step: int) -> tuple[int, npt.NDArray[np.int64]]:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of an epoch of {len(self)} steps, counted from 0")
        batch = self.sequence[step]
        items = self.items[self.starts[batch] : self.starts[batch + 1]]
        return int(self.buckets[batch]), items.astype(np.int64)


@dataclass(frozen=True, eq=False)
class CatchAll:
    """How the leftovers of the buckets' lists become batches.

    bucket_of           [N]  bucket of each item
    n_buckets           number of buckets, used or not
    aspects             [N]  width / height of the items; None where they aren't known
    bucket_aspects      [n_buckets]  the same for the buckets
    """

    bucket_of: IntArray
    n_buckets: int
    aspects: npt.NDArray[np.float64] | None = None
    bucket_aspects: npt.NDArray[np.float64] | None = None

    def bucket_order(self) -> IntArray:
        """Buckets in the order in which their leftovers are joined: by aspect, so that similar ones share a batch."""
        if self.bucket_aspects is None:
            return np.arange(self.n_buckets)
        return np.argsort(self.bucket_aspects, kind="stable")

    def choose(self, items: IntArray) -> npt.NDArray[np.int64]:
        """Bucket [k] for each of k batches of leftovers, items [k, size].

        The bucket of the least total |log aspect error|; without aspects, the one most of the items come
        from. Ties go to the lowest index.
        """
        chosen = np.empty(len(items), np.int64)
        for batch, members in enumerate(items):
            if self.aspects is None or self.bucket_aspects is None:
                chosen[batch] = np.bincount(self.bucket_of[members]).argmax()
            else:
                item_logs, bucket_logs = _whole_log(self.aspects[members]), _whole_log(self.bucket_aspects)
                chosen[batch] = np.abs(item_logs[:, None] - bucket_logs).sum(0).argmin()
        return chosen


def _whole_log(aspects: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Logarithms of the aspects, rounded to integer multiples of LOG_UNIT."""
    return np.rint(np.log(aspects) / LOG_UNIT).astype(np.int64)


def list_batches(
    items: IntArray,
    counts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    catch_all: CatchAll,
    seed: int,
    epoch: int,
    rank: int = 0,
) -> tuple[BatchList, IntArray]:
    """Cut lists of items into batches.

    items    bucket after bucket, each list shuffled;  counts [n_buckets] their lengths
    sizes    [n_buckets]  items per batch of each bucket
    returns  the batches, and the items dropped: none when all sizes are equal and divide the number of items
    The last len % size items of each list go to the catch-all, whose batches have the smallest of the sizes;
    if their number is not a multiple of it, the remainder is dropped at random. Drawing each batch's bucket with
    probability remaining / total, as N does, has the same distribution as shuffling the list of batches, as here.
    """
    full = counts // sizes
    ends = counts.cumsum()
    starts = ends - counts
    middles = starts + full * sizes
    listed = np.empty_like(items)
    filled = 0
    for start, middle in zip(starts, middles, strict=True):
        listed[filled : filled + middle - start] = items[start:middle]
        filled += middle - start
    leftovers = np.concatenate([items[middles[b] : ends[b]] for b in catch_all.bucket_order()])
    least = int(sizes.min())
    surplus = leftovers.size % least
    unlucky = shuffled(leftovers.size, seed, epoch, Stream.LEFTOVERS, rank)[:surplus]
    dropped = leftovers[unlucky]
    leftovers = np.delete(leftovers, unlucky)
    listed[filled : filled + leftovers.size] = leftovers
    mixed = catch_all.choose(leftovers.reshape(-1, least))
    buckets = np.concatenate([np.repeat(np.arange(full.size), full), mixed])
    lengths = np.concatenate([np.repeat(sizes, full), np.full(mixed.size, least)])
    batches = BatchList(
        items=listed[: filled + leftovers.size],
        starts=np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
        buckets=buckets,
        sequence=shuffled(buckets.size, seed, epoch, Stream.BATCHES, rank),
        first_mixed=buckets.size - mixed.size,
    )
    return batches, dropped
