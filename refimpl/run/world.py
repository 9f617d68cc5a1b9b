"""Processes of one run, and the two ways to add up their gradients (N §4: 256 GPUs is the design point).

A global batch is cut into micro-batches numbered j = k·world + rank (k the gradient-accumulation step), so any
number of ranks sees the same micro-batches. `fast` leaves the sum to DDP's all-reduce, whose order depends on the
number of ranks. `ordered` adds the micro-batch gradients one by one in the order of j, so 1, 2 and 4 ranks end with
the same bits; it costs world times the gradient traffic and is meant for proofs and debugging.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from refimpl.errors import InputError

LOST_PEER = ("closed by peer", "reset by peer", "Broken pipe")  # how gloo words it


@dataclass(frozen=True)
class World:
    """This process among its peers: rank 0 … size − 1, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 alone writes files, logs and progress bars."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all ranks; every rank must call it."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def share(self, value: str) -> str:
        """Rank 0's string on every rank."""
        if self.size == 1:
            return value
        box: list[str | None] = [value]
        dist.broadcast_object_list(box, src=0)
        return str(box[0])

    def on_main(self, action: Callable[[], str | None]) -> str:
        """What rank 0's `action` returns, on every rank; the others wait. Its InputError is every rank's."""
        result, problem = "", ""
        if self.is_main:
            try:
                result = action() or ""
            except InputError as error:
                problem = str(error)
        problem = self.share(problem)
        if problem:
            raise InputError(problem)
        return self.share(result)


def join_world(device: str) -> World:
    """Joins the process group that torchrun describes in the environment; alone without torchrun.

    device  "cpu", "cuda" (this process takes the GPU of its LOCAL_RANK) or "auto"
    Raises InputError for an unknown device, or for "cuda" where there is none.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in
                         (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {device!r} is unknown; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch sees no GPU; use --train.device cpu")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local)
    if size > 1 and not dist.is_initialized():
        # Rank 0 may spend minutes preparing data while the others wait at the first barrier.
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=datetime.timedelta(hours=1))
    return World(rank, size, torch.device("cuda", local) if use_cuda else torch.device("cpu"))


def leave_world(world: World) -> None:
    """Leaves the process group, if there is one."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_peers_named(world: World) -> Iterator[None]:
    """Says in one line that another rank has stopped, where torch would show where this one was waiting for it.

    Raises InputError then; every other error passes through.
    """
    try:
        yield
    except RuntimeError as error:  # gloo has no class for it
        if world.size == 1 or not any(sign in str(error) for sign in LOST_PEER):
            raise
        raise InputError(
            f"rank {world.rank} stops because another rank has stopped; that one's message says why"
        ) from error


def gradient_sync(network: torch.nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """DDP sums gradients over ranks in the last micro-batch's backward pass only; elsewhere nothing to do."""
    if isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    return contextlib.nullcontext()


@torch.no_grad()
def mean_gradients(parameters: Sequence[torch.nn.Parameter], world: World) -> None:
    """The mean over ranks of gradients that DDP does not see, in place (`fast` reduction)."""
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
        parts = [torch.empty_like(gradient) for _ in range(world.size)]
        dist.all_gather(parts, gradient.contiguous())
        for part in parts:
            total.add_(part)
