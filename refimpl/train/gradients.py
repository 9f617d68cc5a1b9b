"""How the gradients of a step's micro-batches are summed (N §4: 256 GPUs is the design point).

A global batch is cut into micro-batches numbered j = k·world + rank (k the gradient-accumulation step), so any
number of ranks sees the same micro-batches.

fast     leaves the sum to DDP's all-reduce or FSDP2's reduce-scatter, whose order depends on the number of ranks and
         on the sharding. Micro-batches but the last add up on their rank and send nothing. What it guarantees: the
         same gradient but for rounding.
ordered  adds the micro-batch gradients one by one in the order of j, whoever computed them. What it guarantees: on
         one kind of processor, with one thread, the same bits of losses, gradients, gradient norm, weights, moments
         and averages on any number of ranks and under any sharding. It sends every micro-batch's gradient once,
         half an all-reduce, and gathers the totals once a step; nothing overlaps with the next micro-batch, and the
         update pays for the same bits too (`refimpl.train.update`). It is meant for proofs and debugging.
"""

import contextlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from refimpl.run.world import World
from refimpl.storage.local_tensors import is_divided
from refimpl.train.setup.trainable import Part
from refimpl.train.sharding.block_inputs import sum_within_blocks
from refimpl.train.sharding.fully_sharded import Turn, order_sums
from refimpl.train.sharding.ordered_sum import OrderedTotals


class Gradients(Protocol):
    """Sums gradients over all micro-batches and ranks, and leaves the sum in every parameter's `.grad`."""

    network: nn.Module
    """The UNet to call, which may be wrapped."""

    def micro_batch(self, is_last: bool, real: int) -> contextlib.AbstractContextManager[None]:
        """Surrounds the forward and backward pass of one micro-batch.

        is_last  whether it is the rank's last of the step
        real     ranks that have a micro-batch of the step: 0 … real − 1; the others repeat one, with weight 0
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one micro-batch's loss."""
        ...

    def incoming(self, images_per_step: float) -> float:
        """What `backward` sends to the loss of each image, as float32 arithmetic rounds it.

        images_per_step  by which the sum of the losses is divided before it is given to `backward`
        """
        ...

    def finish(self) -> None:
        """Completes the sum after the last micro-batch, so that every rank has all of what it holds."""
        ...

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """The loss of the step: this rank's losses of its micro-batches, and those of all others; a scalar."""
        ...


def make_gradients(
    reduction: str, unet: nn.Module, parts: Sequence[Part], world: World, mesh: DeviceMesh | None = None
) -> Gradients:
    """The summation that the settings name: "fast" or "ordered".

    mesh  over which the UNet is divided, where it is
    """
    return {"fast": FastGradients, "ordered": OrderedGradients}[reduction](unet, parts, world, mesh)


class FastGradients:
    """DDP's all-reduce or FSDP2's reduce-scatter, which overlap with the backward pass."""

    def __init__(self, unet: nn.Module, parts: Sequence[Part], world: World, mesh: DeviceMesh | None = None):
        use_ddp = world.size > 1 and mesh is None and parts[0].module is unet
        ddp = DistributedDataParallel(unet, gradient_as_bucket_view=True) if use_ddp else None
        self.network: nn.Module = ddp or unet
        self._world = world
        # Text towers run once per chunk of a caption, a number of times that differs by rank: DDP can't do that.
        self._outside = [p for part in parts if part.module is not unet for p in part.parameters().values()]

    def micro_batch(self, is_last: bool, real: int) -> contextlib.AbstractContextManager[None]:
        """The library sums over ranks in the last micro-batch's backward pass only."""
        if isinstance(self.network, DistributedDataParallel) and not is_last:
            return self.network.no_sync()
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(is_last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Multiplies by the number of ranks, because the library takes the mean over them, not the sum."""
        (loss * self._world.size).backward()

    def incoming(self, images_per_step: float) -> float:
        """The number of ranks over that of images."""
        return _quotient(self._world.size, images_per_step)

    def finish(self) -> None:
        """Takes the mean over ranks of the gradients that the library does not see."""
        if self._world.size > 1:
            mean_gradients(self._outside, self._world)

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """Each rank's sum, and their sum by an all-reduce."""
        return self._world.mean(torch.stack(list(losses)).sum()) * self._world.size


class OrderedGradients:
    """Adds one gradient after another, in the order of j."""

    def __init__(self, unet: nn.Module, parts: Sequence[Part], world: World, mesh: DeviceMesh | None = None):
        self.network = unet
        self._world, self._turn = world, Turn()
        if mesh is None:
            sum_within_blocks(unet)
        else:
            assert isinstance(unet, FSDPModule)
            order_sums(unet, mesh, self._turn)
        parameters = [p for part in parts for p in part.parameters().values()]
        self._divided = [parameter for parameter in parameters if is_divided(parameter)]
        self._totals = OrderedTotals([p for p in parameters if not is_divided(p)], world)

    def micro_batch(self, is_last: bool, real: int) -> contextlib.AbstractContextManager[None]:
        """Notes which ranks' gradients count; the context does nothing."""
        self._turn.real, self._turn.is_last = real, is_last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds every rank's gradient to the totals, in the order of ranks."""
        loss.backward()  # adds those that are divided
        self._totals.add(self._turn.real)
        if not self._turn.is_last:
            for parameter in self._divided:
                parameter.grad = None

    def incoming(self, images_per_step: float) -> float:
        """1 over the number of images."""
        return _quotient(1, images_per_step)

    def finish(self) -> None:
        """Makes the totals the gradients."""
        self._totals.finish()

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """One sum over all micro-batches of the step, which lie in the order of j."""
        own = torch.stack(list(losses))
        every = own[None]
        if self._world.size > 1:
            every = own.new_empty(self._world.size, len(own))
            dist.all_gather(list(every), own)
        count = self._world.size * (len(own) - 1) + self._turn.real
        return every.T.flatten()[:count].sum()


@torch.no_grad()
def mean_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Averages over ranks, in place, the gradients that the library does not see (`fast` reduction)."""
    for parameter in parameters:
        assert parameter.grad is not None  # every trained parameter takes part in every step
        parameter.grad.copy_(world.mean(parameter.grad))


def _quotient(numerator: float, denominator: float) -> float:
    return float(np.float32(numerator) / np.float32(denominator))
