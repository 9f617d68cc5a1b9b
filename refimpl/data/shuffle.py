"""Random permutations as pure functions of (seed, epoch), the same on every platform (N §4.1.2)."""

import operator
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from refimpl.errors import InputError

IntArray = npt.NDArray[np.integer]

CHUNK = 1 << 16  # items handled at once: the temporaries stay in the cache
MIN_RANDOM_BITS = 24  # fewer, and equal draws, which the index decides, would no longer be rare


class Stream(IntEnum):
    """Independent streams of random words, one per use, under the same (seed, epoch)."""

    ITEMS = 0
    BATCHES = 1
    LEFTOVERS = 2


def random_words(count: int, seed: int, epoch: int, stream: Stream, rank: int = 0) -> npt.NDArray[np.uint64]:
    """The first `count` words of Philox4x64-10, key (seed, epoch), counter from (0, 0, rank, stream).

    NumPy guarantees that these raw words never change between versions, but not its shuffles.
    Raises InputError when the seed (signed or unsigned) or the epoch (unsigned) does not fit in 64 bits.
    """
    seed, epoch = operator.index(seed), operator.index(epoch)  # NumPy's integers would overflow below
    if not -(2**63) <= seed < 2**64 or not 0 <= epoch < 2**64:
        raise InputError(
            f"seed = {seed}, epoch = {epoch}: the seed must fit in 64 bits, and the epoch must be 0 to 2^64 − 1"
        )
    key = np.array([seed % 2**64, epoch], np.uint64)
    counter = np.array([0, 0, rank, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def shuffled(
    count: int, seed: int, epoch: int, stream: Stream, rank: int = 0, group_bits: int = 0
) -> IntArray:
    """The numbers 0 … count − 1 in random order: sorted by their random words, ties by number.

    group_bits  upper bits left unused, which gives exactly the order that `shuffled_in_groups` uses
    """
    keys, index_bits = _keys(count, seed, epoch, stream, rank, group_bits)
    keys.sort()
    return _numbers(keys, index_bits)


def shuffled_in_groups(
    groups: IntArray, trim: int, seed: int, epoch: int
) -> tuple[IntArray, npt.NDArray[np.int64], IntArray]:
    """Shuffle the items, drop the last `trim`, and list the rest by group.

    groups   [N]  group of each item, ≥ 0; N ≥ 1
    returns  items [N − trim], group after group, each group in the shuffled order; items per group [G];
             the items dropped [trim], ascending
    A single sort does all of this: its keys (group, random bits, item) are distinct, so the result is the same on
    every platform.
    """
    group_bits = bits_of(groups)
    keys, index_bits = _keys(groups.size, seed, epoch, Stream.ITEMS, 0, group_bits)
    for start in range(0, keys.size if group_bits else 0, CHUNK):
        part = slice(start, start + CHUNK)
        keys[part] |= groups[part].astype(np.uint64) << np.uint64(64 - group_bits)
    keys.sort()
    counts = np.bincount(groups).astype(np.int64)
    ends = counts.cumsum()
    # The last items of the whole shuffle are also the last of their groups, so the groups' tails contain them all.
    tails = [np.arange(max(end - trim, end - count), end) for end, count in zip(ends, counts, strict=True)]
    tail = np.concatenate(tails)
    order = np.argsort(keys[tail] << np.uint64(group_bits))  # without the group: random bits, then the item
    last = tail[order[tail.size - trim :]]
    taken_off = np.sort(_numbers(keys[last], index_bits))
    keys = np.delete(keys, last) if trim else keys
    counts -= np.bincount(groups[taken_off], minlength=counts.size)
    return _numbers(keys, index_bits), counts, taken_off


def bits_of(groups: IntArray) -> int:
    """Number of bits that the largest group number needs."""
    return int(groups.max()).bit_length() if groups.size else 0


def _keys(
    count: int, seed: int, epoch: int, stream: Stream, rank: int, group_bits: int
) -> tuple[npt.NDArray[np.uint64], int]:
    """Unsorted keys made of (group_bits zeros, random bits, number), and how many bits the number needs."""
    index_bits = max(count - 1, 0).bit_length()
    if 64 - index_bits - group_bits < MIN_RANDOM_BITS:
        raise InputError(
            f"{count} items in groups numbered up to 2^{group_bits}: too many to shuffle at once"
        )
    keys = random_words(count, seed, epoch, stream, rank)
    keys >>= np.uint64(index_bits + group_bits)
    keys <<= np.uint64(index_bits)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        keys[start:stop] |= np.arange(start, stop, dtype=np.uint64)
    return keys, index_bits


def _numbers(keys: npt.NDArray[np.uint64], index_bits: int) -> IntArray:
    kind = np.int32 if index_bits < 32 else np.int64
    numbers = np.empty(keys.size, kind)
    np.bitwise_and(keys, np.uint64(2**index_bits - 1), out=numbers, casting="unsafe")
    return numbers
