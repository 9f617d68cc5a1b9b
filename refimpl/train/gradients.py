"""How the gradients of a step's micro-batches are summed (N §4: 256 GPUs is the design point).

A global batch is cut into micro-batches numbered j = k·world + rank (k the gradient-accumulation step), so any
number of ranks sees the same micro-batches. `fast` leaves the sum to DDP's all-reduce, whose order depends on the
number of ranks. `ordered` adds the micro-batch gradients one by one in the order of j, so 1, 2 and 4 ranks end with
the same bits; it costs world times the gradient traffic and is meant for proofs and debugging.
"""

import contextlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from refimpl.run.world import World
from refimpl.train.setup.trainable import Part


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
        """Completes the sum after the last micro-batch, so that every rank has all of it."""
        ...


def make_gradients(reduction: str, unet: nn.Module, parts: Sequence[Part], world: World) -> Gradients:
    """The summation that the settings name: "fast" or "ordered"."""
    return {"fast": FastGradients, "ordered": OrderedGradients}[reduction](unet, parts, world)


class FastGradients:
    """DDP's all-reduce, which overlaps with the backward pass."""

    def __init__(self, unet: nn.Module, parts: Sequence[Part], world: World):
        use_ddp = world.size > 1 and parts[0].module is unet
        self.network: nn.Module = DistributedDataParallel(unet) if use_ddp else unet
        self._world = world
        # Text towers run once per chunk of a caption, a number of times that differs by rank: DDP can't do that.
        self._outside = [p for part in parts if part.module is not unet for p in part.parameters().values()]

    def micro_batch(self, is_last: bool, real: int) -> contextlib.AbstractContextManager[None]:
        """DDP sums over ranks in the last micro-batch's backward pass only."""
        if isinstance(self.network, DistributedDataParallel) and not is_last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Multiplies by the number of ranks, because DDP takes the mean over them where the sum is wanted."""
        (loss * self._world.size).backward()

    def incoming(self, images_per_step: float) -> float:
        """The number of ranks over that of images."""
        return _quotient(self._world.size, images_per_step)

    def finish(self) -> None:
        """Takes the mean over ranks of the gradients that DDP does not see."""
        if self._world.size > 1:
            mean_gradients(self._outside, self._world)


class OrderedGradients:
    """Adds one gradient after another, in the order of j."""

    def __init__(self, unet: nn.Module, parts: Sequence[Part], world: World):
        self.network = unet
        self._world = world
        self._parameters = [p for part in parts for p in part.parameters().values()]
        self._totals: list[Tensor] = []

    def micro_batch(self, is_last: bool, real: int) -> contextlib.AbstractContextManager[None]:
        """Returns a context that does nothing."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds every rank's gradient to the totals, in the order of ranks."""
        if not self._totals:
            self._totals = [torch.zeros_like(parameter) for parameter in self._parameters]
        loss.backward()
        gradients = [parameter.grad for parameter in self._parameters]
        add_in_order(self._totals, gradients, self._world)  # pyright: ignore[reportArgumentType]
        for parameter in self._parameters:
            parameter.grad = None

    def incoming(self, images_per_step: float) -> float:
        """1 over the number of images."""
        return _quotient(1, images_per_step)

    def finish(self) -> None:
        """Makes the totals the gradients."""
        for parameter, total in zip(self._parameters, self._totals, strict=True):
            parameter.grad = total
        self._totals = []


@torch.no_grad()
def mean_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Averages over ranks, in place, the gradients that DDP does not see (`fast` reduction)."""
    for parameter in parameters:
        assert parameter.grad is not None  # every trained parameter takes part in every step
        parameter.grad.copy_(world.mean(parameter.grad))


@torch.no_grad()
def add_in_order(accumulated: Sequence[Tensor], gradients: Sequence[Tensor], world: World) -> None:
    """Adds one micro-batch gradient of every rank to `accumulated`, in rank order (`ordered` reduction).

    Called once per accumulation step k, so the additions follow j = k·world + rank exactly, whatever the world size.
    """
    for total, gradient in zip(accumulated, gradients, strict=True):
        if world.size == 1:
            total.add_(gradient)
            continue
        # In one memory order on all ranks: what a backend makes of tensors in two orders is its own.
        parts = [torch.empty_like(gradient, memory_format=torch.contiguous_format) for _ in range(world.size)]
        dist.all_gather(parts, gradient.contiguous())
        for part in parts:
            total.add_(part)


def _quotient(numerator: float, denominator: float) -> float:
    return float(np.float32(numerator) / np.float32(denominator))
