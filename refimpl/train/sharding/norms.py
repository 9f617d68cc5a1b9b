"""The norm of a gradient that may be divided among ranks."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from refimpl.storage.local_tensors import is_divided, local
from refimpl.train.sharding.flat import in_buckets


@torch.no_grad()
def gradient_norm(gradients: Sequence[Tensor], reduction: str) -> Tensor:
    """√ of the sum of squares of all gradients, a scalar on the device, the same on every rank.

    reduction  "fast": each rank sums the squares of what it holds, and one scalar is reduced; or "ordered": the same
               bits however the gradients are divided and on any number of ranks. The norm of each is then taken of
               the whole of it, so divided gradients are gathered: as much traffic again as gathering the weights
               once, and the memory of a bucket's gradients.
    """
    if reduction == "ordered":
        norms = [torch.linalg.vector_norm(gradient) for gradient in _each_whole(gradients)]
        return torch.linalg.vector_norm(torch.stack(norms))
    divided = [gradient for gradient in gradients if is_divided(gradient)]
    whole = [gradient for gradient in gradients if not is_divided(gradient)]
    if not divided:
        return torch.nn.utils.get_total_norm(whole)
    squares = torch.nn.utils.get_total_norm([local(gradient) for gradient in divided]).square()
    dist.all_reduce(squares, group=_ranks_of(divided[0]))
    norms = [squares.sqrt(), *([torch.nn.utils.get_total_norm(whole)] if whole else [])]
    return torch.linalg.vector_norm(torch.stack(norms))


def _each_whole(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each gradient in turn, flat, in memory of its own: a sum's order may depend on how its terms lie in memory."""
    divided = iter(_gathered([gradient for gradient in gradients if is_divided(gradient)]))
    for gradient in gradients:
        yield next(divided) if is_divided(gradient) else gradient.flatten().clone()


def _gathered(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """The whole of each divided gradient, bucket by bucket."""
    for bucket in in_buckets(gradients):
        group = _ranks_of(bucket[0])
        ranks = group.size()
        rows = [
            -(-gradient.shape[0] // ranks) for gradient in bucket
        ]  # of the largest part, as torch.chunk cuts
        parts = [
            F.pad(local(gradient).flatten(), (0, n * gradient.shape[1:].numel() - local(gradient).numel()))
            for n, gradient in zip(rows, bucket, strict=True)
        ]
        sent = torch.cat(parts)
        received = sent.new_empty(ranks, sent.numel())
        dist.all_gather(list(received), sent, group=group)
        for gradient, values in zip(
            bucket, received.split([part.numel() for part in parts], dim=1), strict=True
        ):
            yield values.reshape(-1)[: gradient.numel()].clone()


def _ranks_of(gradient: Tensor) -> dist.ProcessGroup:
    """The ranks that a gradient is divided among."""
    mesh = gradient.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    return mesh.get_group(mesh.ndim - 1)
