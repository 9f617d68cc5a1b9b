"""Shuffles: unbiased, and the same permutation on every platform (N §4.1.2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from refimpl.data.shuffle import Stream, bits_of, random_words, shuffled, shuffled_in_groups
from refimpl.errors import InputError
from tests import strategies
from tests.tolerances import CHANCE


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011), written from the paper with Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        low = c[0] * 0xD2E7470EE14C6C93
        high = c[2] * 0xCA5A826395121157
        c = [(high >> 64) ^ c[1] ^ k[0], high % 2**64, (low >> 64) ^ c[3] ^ k[1], low % 2**64]
        k = [(k[0] + 0x9E3779B97F4A7C15) % 2**64, (k[1] + 0xBB67AE8584CAA73B) % 2**64]
    return c


@pytest.mark.parametrize(
    ("seed", "epoch", "rank"), [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**64 - 1, 255), (-1, 7, 0)]
)
@pytest.mark.parametrize("stream", list(Stream))
def test_words_are_philox(seed: int, epoch: int, rank: int, stream: Stream) -> None:
    expected = [
        word
        for block in (1, 2)  # NumPy counts up before the first block
        for word in philox4x64([block, 0, rank, stream], [seed % 2**64, epoch])
    ]
    assert random_words(7, seed, epoch, stream, rank).tolist() == expected[:7]
    if seed < 2**63:
        assert random_words(7, np.int64(seed), np.uint64(epoch), stream, rank).tolist() == expected[:7]


def test_pinned_permutation() -> None:
    """These must never change, on any platform or with any release: a resumed run would train on other batches."""
    assert shuffled(10, seed=1, epoch=2, stream=Stream.ITEMS).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]


@given(st.integers(0, 70), st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = shuffled(count, seed, epoch, Stream.ITEMS)
    assert sorted(order.tolist()) == list(range(count))
    assert (order == shuffled(count, seed, epoch, Stream.ITEMS)).all()


@given(strategies.bucketed_items(least=1), st.integers(0, 99), st.data())
def test_groups_are_the_shuffle_without_its_end_split_by_group(
    groups: list, seed: int, data: st.DataObject
) -> None:
    array = np.array(groups, np.int64)
    trim = data.draw(st.integers(0, len(groups)))
    items, counts, taken_off = shuffled_in_groups(array, trim, seed, 5)
    order = shuffled(array.size, seed, 5, Stream.ITEMS, group_bits=bits_of(array)).tolist()
    kept = order[: len(order) - trim]
    assert taken_off.tolist() == sorted(order[len(order) - trim :])
    assert items.tolist() == [item for group in range(counts.size) for item in kept if groups[item] == group]
    assert counts.tolist() == [sum(groups[item] == group for item in kept) for group in range(counts.size)]


def test_large_groups_are_shuffled_as_small_ones() -> None:
    groups = np.arange(200_000) % 33
    items, counts, taken_off = shuffled_in_groups(groups, 11, 0, 0)
    assert (np.sort(np.concatenate([items, taken_off])) == np.arange(200_000)).all()
    assert (groups[items] == np.repeat(np.arange(33), counts)).all()


def test_every_permutation_is_as_likely() -> None:
    orders = [tuple(shuffled(4, seed, epoch, Stream.ITEMS)) for seed in range(60) for epoch in range(40)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert counts.size == 24
    assert chisquare(counts).pvalue > CHANCE


def test_streams_ranks_seeds_and_epochs_differ() -> None:
    drawn = {
        tuple(shuffled(40, seed, epoch, stream, rank))
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in Stream
        for rank in (0, 1)
    }
    assert len(drawn) == 2 * 2 * len(Stream) * 2


@pytest.mark.parametrize(("seed", "epoch"), [(2**64, 0), (-(2**63) - 1, 0), (0, -1), (0, 2**64)])
def test_seeds_outside_64_bits_are_refused(seed: int, epoch: int) -> None:
    with pytest.raises(InputError, match="64 bits"):
        shuffled(3, seed, epoch, Stream.ITEMS)


def test_too_little_room_for_randomness_is_refused() -> None:
    with pytest.raises(InputError, match="too many to shuffle"):
        shuffled(2**10, 0, 0, Stream.ITEMS, group_bits=31)
