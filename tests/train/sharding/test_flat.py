"""Flat buffers give back what they were made of."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.train.sharding.flat import flattened, in_buckets, split_like

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6)


@given(shapes=shapes, room=st.integers(0, 3))
def test_what_is_flattened_comes_back(shapes: list[tuple[int, ...]], room: int) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    tensors[0] = tensors[0].permute(list(reversed(range(tensors[0].ndim))))  # not contiguous
    flat = torch.cat([flattened(tensors), torch.zeros(room)])  # what is padded is left out
    for tensor, values in zip(tensors, split_like(tensors, flat), strict=True):
        assert torch.equal(tensor, values)


@given(sizes=st.lists(st.integers(0, 9), max_size=12), limit=st.integers(0, 16))
def test_buckets_keep_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    tensors = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    buckets = in_buckets(tensors, limit)
    assert [t.numel() for bucket in buckets for t in bucket] == sizes
    assert all(len(bucket) == 1 or sum(t.nbytes for t in bucket) <= limit for bucket in buckets)
    for bucket, following in itertools.pairwise(buckets):
        assert sum(t.nbytes for t in (*bucket, following[0])) > limit  # as few as can be
