"""One gradient for each input of a block, summed before it joins others: the grouping that FSDP2 gives every sum.

A tensor that a block reads in two places and a skip connection in a third has three gradients, which autograd adds as
they arrive. FSDP2 puts a node of its own in front of a block, so the block's two are added first; a + (b + c) is
rounded otherwise than (a + b) + c. For the same bits with and without FSDP2, blocks that it does not divide get such
a node too.
"""

from typing import Any

import torch
from torch import Tensor, nn

from refimpl.model.attention import TransformerBlock
from refimpl.model.blocks import ResBlock


def sharded_modules(unet: nn.Module) -> list[nn.Module]:
    """The modules whose weights FSDP2 gathers together, a module's before those of the one that contains it."""
    return [m for m in unet.modules() if isinstance(m, TransformerBlock | ResBlock)] + [unet]


def sum_within_blocks(unet: nn.Module) -> None:
    """Has autograd add up a block's gradients of its inputs, in place, where FSDP2 would; values stay as they are."""
    for module in sharded_modules(unet):
        module.register_forward_pre_hook(_behind_a_node, prepend=True)


class _Node(torch.autograd.Function):
    """The identity of all inputs together."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs."""
        return inputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """The gradients."""
        return gradients


def _behind_a_node(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    differentiated = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if not torch.is_grad_enabled() or not differentiated:
        return None
    behind = iter(_Node.apply(*differentiated))
    return tuple(next(behind) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs)
