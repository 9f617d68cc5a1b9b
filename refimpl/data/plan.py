"""Which items are trained on at which step of an epoch (N §4.1.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import numpy.typing as npt

from refimpl.data.aspect_table import IntArray
from refimpl.data.batches import BatchList, CatchAll, list_batches
from refimpl.data.config import Mode
from refimpl.data.shuffle import Stream, bits_of, shuffled, shuffled_in_groups
from refimpl.errors import InputError

MAX_BUCKETS = 2**16


@dataclass(frozen=True, eq=False)
class _Shares:
    """Paper mode: the share of the items from which each rank makes its own batches."""

    items: IntArray  # [world_size, items of a rank], in the order of the epoch's shuffle
    sizes: npt.NDArray[np.int64]
    catch_all: CatchAll

    def batches(self, seed: int, epoch: int, rank: int) -> BatchList:
        share = self.items[rank]
        buckets = self.catch_all.bucket_of[share]
        by_bucket = share[np.argsort(buckets, kind="stable")]
        counts = np.bincount(buckets, minlength=self.catch_all.n_buckets)
        batches, _ = list_batches(by_bucket, counts, self.sizes, self.catch_all, seed, epoch, rank)
        return batches


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of one epoch: a pure function of what `plan_epoch` was given.

    seed, epoch, world_size, mode   as given
    dropped  item indices, ascending, that this epoch leaves out; every other item occurs exactly once
    """

    seed: int
    epoch: int
    world_size: int
    mode: Mode
    dropped: npt.NDArray[np.int64] = field(repr=False)
    _lists: dict[int, BatchList] = field(
        repr=False
    )  # under 0 the global one; in paper mode by rank, when asked
    _shares: _Shares | None = field(repr=False, default=None)

    def __len__(self) -> int:
        """Number of steps in the epoch, the same on every rank."""
        if self._shares is None:
            return len(self._lists[0])
        return self._shares.items.shape[1] // int(self._shares.sizes[0])

    def global_batch(self, step: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Bucket index and item indices of all ranks together at `step`, rank after rank.

        Raises InputError in paper mode, where each rank draws from its own bucket.
        """
        if self._shares is not None:
            raise InputError("a plan of mode paper has no global batches: call batch(step, rank) instead")
        return self._lists[0][step]

    def batch(self, step: int, rank: int = 0) -> tuple[int, npt.NDArray[np.int64]]:
        """Bucket index and item indices of one rank at `step`."""
        if not 0 <= rank < self.world_size:
            raise InputError(
                f"rank {rank} of world size {self.world_size}: ranks go from 0 to world size − 1"
            )
        if self._shares is not None:
            if rank not in self._lists:
                self._lists[rank] = self._shares.batches(self.seed, self.epoch, rank)
            return self._lists[rank][step]
        bucket, items = self._lists[0][step]
        per_rank = items.size // self.world_size
        return bucket, items[rank * per_rank : (rank + 1) * per_rank]

    def batches(self, rank: int = 0, start: int = 0) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """The batches of one rank in order, starting at step `start`."""
        return (self.batch(step, rank) for step in range(start, len(self)))

    def bucket_steps(self, rank: int = 0) -> npt.NDArray[np.int64]:
        """Bucket index [steps] of one rank, step after step."""
        self.batch(0, rank)  # checks the rank, and lists its batches
        batches = self._lists[0 if self._shares is None else rank]
        return batches.buckets[batches.sequence]

    def mixed_steps(self, rank: int = 0) -> npt.NDArray[np.bool_]:
        """Whether each step's batch [steps] comes from the catch-all of items that filled no bucket's batch."""
        self.batch(0, rank)
        batches = self._lists[0 if self._shares is None else rank]
        return batches.sequence >= batches.first_mixed


def plan_epoch(
    bucket_of: npt.ArrayLike,
    batch_size: int | npt.ArrayLike,
    seed: int,
    epoch: int,
    world_size: int = 1,
    mode: Mode = "global",
    aspects: npt.ArrayLike | None = None,
    bucket_aspects: npt.ArrayLike | None = None,
) -> Plan:
    """Plan one epoch (N §4.1.2).

    bucket_of   [N]  bucket index of each item
    batch_size  items per rank and step; a global batch has world_size times as many. In global mode also an
                array [n_buckets], one size for each bucket (`buckets.pixel_budget_batch_sizes`)
    seed, epoch the shuffle's key
    mode   "global": the plan is a list of global batches, each from one bucket, that the ranks slice; it
           depends only on the product world_size · batch_size, and all ranks have the same shape at each step.
           "paper": each rank takes 1/world_size of the shuffled items and plans on its own, as N describes.
    aspects, bucket_aspects  [N], [n_buckets]  width / height, both or neither: if given, a batch of leftovers
           uses the bucket of least total |log aspect error|; otherwise the bucket most of its items come from
    The items are shuffled and the last N % (world_size · batch_size) dropped. With one size per bucket, leftovers
    form batches of the smallest size, and the remainder that does not fill one of these is dropped at random.
    Raises InputError for fewer items than one global batch, and for invalid or inconsistent arguments.
    """
    buckets, sizes = _checked(bucket_of, batch_size, world_size, mode, bucket_aspects)
    catch_all = CatchAll(buckets, sizes.size, *_checked_aspects(aspects, bucket_aspects, buckets.size))
    equal = _check_sizes(sizes, mode)
    global_sizes = sizes * world_size
    _check_enough(buckets.size, world_size, int(sizes.min()))
    trim = buckets.size % int(global_sizes[0]) if equal else 0
    if mode == "paper":
        order = shuffled(buckets.size, seed, epoch, Stream.ITEMS, group_bits=bits_of(buckets))
        kept = order[: buckets.size - trim].reshape(world_size, -1)
        dropped = np.sort(order[buckets.size - trim :]).astype(np.int64)
        return Plan(seed, epoch, world_size, mode, dropped, {}, _Shares(kept, sizes, catch_all))
    items, counts, trimmed = shuffled_in_groups(buckets, trim, seed, epoch)
    counts = np.concatenate([counts, np.zeros(sizes.size - counts.size, np.int64)])
    batches, surplus = list_batches(items, counts, global_sizes, catch_all, seed, epoch)
    dropped = np.sort(np.concatenate([trimmed, surplus])).astype(np.int64)
    return Plan(seed, epoch, world_size, mode, dropped, {0: batches})


def count_steps(
    bucket_of: npt.ArrayLike,
    batch_size: int | npt.ArrayLike,
    world_size: int = 1,
    mode: Mode = "global",
    bucket_aspects: npt.ArrayLike | None = None,
) -> tuple[int, int]:
    """The number of steps of every epoch and how many items each of them drops, without planning one.

    Both depend on how many items each bucket has and not on the shuffle, so they are the same in every epoch:
    len(plan) and len(plan.dropped) of `plan_epoch`, whose arguments these are and whose errors are raised.
    """
    buckets, sizes = _checked(bucket_of, batch_size, world_size, mode, bucket_aspects)
    equal = _check_sizes(sizes, mode)
    _check_enough(buckets.size, world_size, int(sizes.min()))
    global_sizes = sizes * world_size
    if equal:  # what is left of each list joins the catch-all, and after the trim its batches come out even
        return divmod(buckets.size, int(global_sizes[0]))
    counts = np.bincount(buckets, minlength=sizes.size)
    leftovers, least = int((counts % global_sizes).sum()), int(global_sizes.min())
    return int((counts // global_sizes).sum()) + leftovers // least, leftovers % least


def _check_sizes(sizes: npt.NDArray[np.int64], mode: Mode) -> bool:
    """Whether all buckets have the same batch size, which N's per-rank plan needs."""
    equal = bool((sizes == sizes[0]).all())
    if mode == "paper" and not equal:
        raise InputError(
            "batch sizes by bucket need the plan mode global: in mode paper the ranks' numbers of steps would differ"
        )
    return equal


def _checked(
    bucket_of: npt.ArrayLike,
    batch_size: int | npt.ArrayLike,
    world_size: int,
    mode: str,
    bucket_aspects: npt.ArrayLike | None,
) -> tuple[IntArray, npt.NDArray[np.int64]]:
    if mode not in get_args(Mode):
        raise InputError(f'unknown plan mode {mode!r}: give "global" or "paper"')
    if world_size < 1:
        raise InputError(f"world size {world_size}: there must be at least one rank")
    buckets = np.asarray(bucket_of)
    if buckets.size == 0:
        raise InputError(
            "no items to plan an epoch from: the dataset, or what is left of it after pruning, is empty"
        )
    if buckets.ndim != 1 or buckets.dtype.kind not in "iu":
        raise InputError(f"bucket_of: shape {buckets.shape}, {buckets.dtype}; give one bucket index per item")
    least, most = int(buckets.min()), int(buckets.max())
    sizes = np.asarray(batch_size)
    limit = sizes.size if sizes.ndim else MAX_BUCKETS if bucket_aspects is None else np.size(bucket_aspects)
    if least < 0 or most >= limit:
        raise InputError(
            f"bucket_of holds indices from {least} to {most}, but the buckets are 0 to {limit - 1}"
        )
    if sizes.dtype.kind not in "iu" or sizes.ndim > 1 or sizes.min() < 1:
        raise InputError(f"batch size {batch_size}: give a positive integer, or one for each bucket")
    if bucket_aspects is not None and np.size(bucket_aspects) != limit:
        raise InputError(
            f"{np.size(bucket_aspects)} bucket aspects but {limit} batch sizes: give one per bucket"
        )
    n_buckets = most + 1 if bucket_aspects is None and not sizes.ndim else limit
    return buckets, np.broadcast_to(sizes, n_buckets).astype(np.int64)


def _checked_aspects(
    aspects: npt.ArrayLike | None, bucket_aspects: npt.ArrayLike | None, n_items: int
) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None]:
    if aspects is None and bucket_aspects is None:
        return None, None
    if aspects is None or bucket_aspects is None or np.shape(aspects) != (n_items,):
        raise InputError(f"aspects: give those of the {n_items} items and those of the buckets, or neither")
    checked = np.asarray(aspects, np.float64), np.asarray(bucket_aspects, np.float64)
    for name, values in zip(("aspects", "bucket_aspects"), checked, strict=True):
        if not (values.min() > 0 and np.isfinite(values).all()):
            raise InputError(f"{name}: width / height must be positive and finite")
    return checked


def _check_enough(n_items: int, world_size: int, batch_size: int) -> None:
    global_batch = world_size * batch_size
    if n_items < global_batch:
        raise InputError(
            f"{n_items} images are fewer than one global batch: {world_size} ranks × batch size {batch_size} "
            f"= {global_batch}. Add {global_batch - n_items} images, or lower the batch size or the ranks"
        )
