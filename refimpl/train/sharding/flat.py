"""Tensors joined into flat buffers, so that one message carries many of them."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

BUCKET = 64 * 2**20  # bytes; large enough that a message's latency does not count
T = TypeVar("T", bound=Tensor)


def in_buckets(tensors: Sequence[T], limit: int = BUCKET) -> list[list[T]]:
    """Consecutive tensors, as many in a bucket as fit into `limit` bytes; a larger one has a bucket of its own."""
    buckets: list[list[T]] = []
    size = 0
    for tensor in tensors:
        if not buckets or size + tensor.nbytes > limit:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.nbytes
    return buckets


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Their values one after the other, each in the order of its indices; a view of one that lies so by itself."""
    if len(tensors) == 1:
        return tensors[0].reshape(-1)
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split_like(tensors: Sequence[Tensor], flat: Tensor) -> Iterator[Tensor]:
    """Views of a flat buffer in the tensors' shapes; what follows the last of them is left out."""
    start = 0
    for tensor in tensors:
        yield flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
