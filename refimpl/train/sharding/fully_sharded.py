"""The UNet divided block by block: torch's FSDP2 (Rajbhandari et al. 2020, "ZeRO", §5; Zhao et al. 2023).

A block's weights are gathered before it runs, forwards and backwards, and freed after it; its gradients are summed
while the next block's are computed. Precision is left to autocast, on float32 weights, as it is without FSDP: a
MixedPrecisionPolicy would halve the traffic, but round what autocast keeps in float32, norms and sums for example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from refimpl.model.unet import UNet
from refimpl.train.sharding.block_inputs import sharded_modules
from refimpl.train.sharding.mesh import DIVIDED, REPEATED
from refimpl.train.sharding.ordered_sum import OrderedSum


def shard_unet(unet: UNet, mesh: DeviceMesh, ordered: bool) -> None:
    """Divides, in place, the weights of every transformer and residual block, and those of the rest together.

    mesh     of `make_mesh`
    ordered  the sum over nodes is left to `order_sums`, and FSDP sees the ranks of one node alone
    After adapters, memory format and compilation. FSDP2 takes contiguous weights only; a convolution whose input has
    its channels last lays its weight out so for itself.
    """
    used = mesh if mesh[REPEATED].size() > 1 and not ordered else mesh[DIVIDED]
    for parameter in unet.parameters():
        parameter.data = parameter.data.contiguous()
    for module in sharded_modules(unet):
        fully_shard(module, mesh=used)


@dataclass
class Turn:
    """The micro-batch under way, as `Gradients.micro_batch` tells it."""

    real: int = 0
    is_last: bool = False


def order_sums(unet: FSDPModule, mesh: DeviceMesh, turn: Turn) -> None:
    """Has a UNet divided by `shard_unet(ordered=True)` sum its gradients in order, over all ranks of the mesh."""
    assert isinstance(unet, torch.nn.Module)
    for module in unet.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_reduce_scatter(_OrderedReduceScatter(mesh, turn))  # pyright: ignore[reportArgumentType]
            module.set_gradient_divide_factor(1.0)  # the sum as it is, where FSDP2 would take the mean
            module.set_force_sum_reduction_for_comms(True)


class _OrderedReduceScatter:
    """In place of the reduce-scatter of one group of weights, for FSDP2's hook.

    FSDP2 takes what it finds in the output for the gradient. That is the running total after the last micro-batch;
    what it finds before is not read.
    """

    def __init__(self, mesh: DeviceMesh, turn: Turn):
        repeats = mesh[REPEATED]
        self._sum = OrderedSum(mesh[DIVIDED].size(), repeats.size(), repeats.get_group())
        self._turn = turn

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a message."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Adds to the total; after the last micro-batch, moves it to the output."""
        self._sum.add(input_tensor, self._turn.real)
        if self._turn.is_last:
            output_tensor.copy_(self._sum.take())
