"""The next step's batches, on their way to the GPU while it computes this step (N §4)."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import fields, replace
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from refimpl.data.loading.transfer import onto
from refimpl.train.batches.micro_batch import MicroBatch
from refimpl.train.step_plan import PlanStep

ALIGNMENT = 256  # bytes, as the allocators of torch align: no kernel can tell a part from a tensor of its own


class Steps(Protocol):
    """The steps of a run with their batches on the device that trains."""

    def __iter__(self) -> Iterator[PlanStep]:
        """The steps in their order."""
        ...

    def load_next(self) -> None:
        """Begins with the step after this one; called once all of this one is queued on the device."""
        ...


def prefetched(steps: Iterator[PlanStep], device: torch.device) -> Steps:
    """The steps on `device`: as they are on the CPU, one step ahead on a GPU."""
    return _Ahead(steps, device) if device.type == "cuda" else _AsTheyCome(steps)


class _AsTheyCome:
    """The steps of a run on the CPU, where nothing needs to be copied."""

    def __init__(self, steps: Iterator[PlanStep]):
        self._steps = steps

    def __iter__(self) -> Iterator[PlanStep]:
        return self._steps

    def load_next(self) -> None:
        """Nothing: copying nothing, it would save nothing to be early."""


class _Ahead:
    """The steps of a run on a GPU, copied on a stream of their own.

    What goes wrong with a step is raised when its turn comes, not while the one before it is trained.
    """

    def __init__(self, steps: Iterator[PlanStep], device: torch.device):
        self._steps, self._device = steps, device
        self._stream = torch.cuda.Stream(device)
        self._next: Future[PlanStep] | None = None

    def __iter__(self) -> Iterator[PlanStep]:
        return self

    def __next__(self) -> PlanStep:
        self.load_next()
        assert self._next is not None
        step, self._next = self._next.result(), None
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for batch in step.batches:
            for tensor in tensors_of(batch).values():
                tensor.record_stream(computing)  # or its memory would be given away while it is still read
        return step

    def load_next(self) -> None:
        """Reads the next step and queues its copies, unless that was done already."""
        if self._next is not None:
            return
        self._next = Future()
        try:
            step = next(self._steps)
            with torch.cuda.stream(self._stream):
                batches = [on_device(batch, self._device) for batch in step.batches]
            self._next.set_result(replace(step, batches=batches))
        except Exception as error:  # StopIteration too: the steps end when the loop asks for one more
            self._next.set_exception(error)


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The batch with its tensors on a device, copied without waiting for it.

    What the loader has put into page-locked memory goes from there; everything else goes in one copy.
    """
    tensors = tensors_of(batch)
    small = {name: tensor for name, tensor in tensors.items() if not tensor.is_pinned()}
    moved = {name: onto(device, tensor) for name, tensor in tensors.items() if name not in small}
    buffer, begins = packed(list(small.values()), pinned=device.type == "cuda")
    buffer = onto(device, buffer)
    for (name, tensor), begin in zip(small.items(), begins, strict=True):
        moved[name] = _part(buffer, begin, tensor)
    return replace(batch, **moved)


def tensors_of(batch: MicroBatch) -> dict[str, Tensor]:
    """The batch's tensors by field."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def packed(tensors: list[Tensor], pinned: bool) -> tuple[Tensor, list[int]]:
    """All values in one buffer of bytes, and the byte at which each tensor begins."""
    begins, end = [], 0
    for tensor in tensors:
        begins.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    for tensor, begin in zip(tensors, begins, strict=True):
        _part(buffer, begin, tensor).copy_(tensor)
    return buffer, begins


def _part(buffer: Tensor, begin: int, like: Tensor) -> Tensor:
    """The part of a buffer of bytes that holds a tensor of the same shape and dtype as `like`."""
    length = prod(like.shape) * like.itemsize
    return buffer[begin : begin + length].view(like.dtype).view(like.shape)
