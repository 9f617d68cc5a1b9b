"""A sum over ranks in a fixed order, at the traffic of an all-reduce (`reduction = "ordered"`).

An all-reduce is a reduce-scatter and an all-gather (Rajbhandari et al. 2020, "ZeRO", §7.1), and leaves the order of
its additions to the library. Here each rank receives its piece of every rank's gradient, adds the pieces in the order
of ranks to its running total, and the finished totals are gathered once a step.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.run.world import World
from refimpl.train.sharding.flat import flattened, in_buckets, split_like


class OrderedSum:
    """The running total of one flat buffer, of which every rank has a gradient for each micro-batch.

    ranks   pieces into which the result stays divided: rank r of each node ends with the r-th
    nodes   groups of ranks that end with the same
    repeats the ranks that end with what this one does, one of each node; None where those are all ranks
    Within a node's piece, every node adds up an equal part, so that no addition is made twice.
    """

    def __init__(self, ranks: int, nodes: int, repeats: dist.ProcessGroup | None = None):
        self._ranks, self._nodes, self._repeats = ranks, nodes, repeats
        self._total: Tensor | None = None
        self._piece = 0

    def add(self, flat: Tensor, real: int) -> None:
        """Adds the gradients of one micro-batch of each rank, rank 0's first.

        flat  this rank's, of a length that `ranks` divides; the same length on all ranks in all calls
        real  how many ranks' gradients count: those of ranks 0 … real − 1
        """
        received = self._exchanged(flat)
        if self._total is None:
            self._total = torch.zeros_like(received[0])
        for gradient in received[:real]:
            self._total.add_(gradient)

    def take(self) -> Tensor:
        """The total of this rank's piece on all ranks that share it, flat; the sum begins anew."""
        assert self._total is not None  # every trained parameter takes part in every step
        total, self._total = self._total, None
        if self._nodes == 1:
            return total
        gathered = total.new_empty(self._nodes * total.numel())
        dist.all_gather(list(gathered.chunk(self._nodes)), total, group=self._repeats)
        return gathered[: self._piece]

    def _exchanged(self, flat: Tensor) -> Tensor:
        """[world, n]: of every rank's gradient, the part that this rank adds up."""
        self._piece = flat.numel() // self._ranks
        if self._ranks * self._nodes == 1:
            return flat[None]
        pieces = flat.view(self._ranks, self._piece)
        parts = F.pad(pieces, (0, -self._piece % self._nodes)).view(self._ranks, self._nodes, -1)
        sent = parts.transpose(0, 1).contiguous()  # rank = node · ranks + rank within it
        received = torch.empty_like(sent)
        dist.all_to_all_single(received.view(-1), sent.view(-1))
        return received.view(self._ranks * self._nodes, -1)


class OrderedTotals:
    """Running totals of the gradients of parameters that every rank holds whole."""

    def __init__(self, parameters: Sequence[nn.Parameter], world: World):
        alone = world.size == 1  # nothing is sent, so nothing is joined
        self._buckets = in_buckets(parameters, 0) if alone else in_buckets(parameters)
        self._sums = [OrderedSum(1, world.size) for _ in self._buckets]

    @torch.no_grad()
    def add(self, real: int) -> None:
        """Adds what is in every parameter's `.grad`, and clears it. real  as for `OrderedSum.add`"""
        for bucket, total in zip(self._buckets, self._sums, strict=True):
            total.add(flattened([_gradient(parameter) for parameter in bucket]), real)
            for parameter in bucket:
                parameter.grad = None

    @torch.no_grad()
    def finish(self) -> None:
        """Makes the totals the parameters' gradients."""
        for bucket, total in zip(self._buckets, self._sums, strict=True):
            for parameter, values in zip(bucket, split_like(bucket, total.take()), strict=True):
                lies_so = parameter.is_contiguous()  # fused AdamW walks both as they lie in memory
                parameter.grad = values if lies_so else torch.empty_like(parameter).copy_(values)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None  # every trained parameter takes part in every step
    return parameter.grad
