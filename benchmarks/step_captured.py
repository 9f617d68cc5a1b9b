"""A micro-batch's forward and backward pass, captured once in a CUDA graph and replayed without its launches.

"Whole-network capture" of PyTorch's notes (docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture): a
few passes on a side stream, then one that is recorded. A replay reads and writes where the recorded pass did, so
the inputs are copied into buffers, and the gradients add up in buffers that were there before: zeroed when a step
begins and put back into `.grad`, which `update` clears. The first gradient of a step is therefore added to zero,
which changes no bit but the sign of a zero. Numbers that are not tensors, such as `expected`, are constants of the
graph.
"""

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refimpl.train.batches.micro_batch import MicroBatch
from refimpl.train.step import Conditions

WARM_UP = 3  # passes before the capture, as PyTorch's notes have it


class Inputs(NamedTuple):
    """What differs between the micro-batches of one size, on the device; shapes as `denoising_loss` takes them."""

    latents: Tensor
    context: Tensor
    vector: Tensor
    noise: Tensor
    t: Tensor
    weight: Tensor
    alpha: Tensor
    sigma: Tensor


def inputs_of(batch: MicroBatch, latents: Tensor, conditions: Conditions) -> Inputs:
    """The inputs of a batch whose latents and conditions have been made."""
    return Inputs(
        latents=latents,
        context=conditions.context,
        vector=conditions.vector,
        noise=batch.noise,
        t=batch.t,
        weight=batch.weight,
        alpha=batch.alpha,
        sigma=batch.sigma,
    )


class Captured:
    """A forward and backward pass that is captured at its first call.

    held_bytes  memory that the graph keeps and the allocator does not count as given out; 0 before the first call
    """

    def __init__(self, run: Callable[[Inputs], Tensor], parameters: Sequence[Tensor]):
        """Makes the gradients' buffers.

        run         the pass: adds to every parameter's `.grad` and returns the losses [B]; what it casts under
                    autocast it must cast itself, so it is refused within another autocast
        parameters  all that are trained, on one device
        """
        self._run, self._parameters = run, list(parameters)
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._buffers: Inputs | None = None
        self._replay: Callable[[], Tensor] | None = None
        self.held_bytes = 0

    def begin(self) -> None:
        """Begins a step: every `.grad` is zero."""
        torch._foreach_zero_(self._gradients)  # pyright: ignore[reportPrivateImportUsage]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def __call__(self, inputs: Inputs) -> Tensor:
        """Adds the gradients of one micro-batch; returns its losses [B], which the next call overwrites.

        Raises ValueError when an input has another shape or dtype than at the first call.
        """
        if self._buffers is None or self._replay is None:
            self._buffers = Inputs(*(x.detach().clone() for x in inputs))
            self._replay = self._captured(self._buffers)
        for name, buffer, x in zip(Inputs._fields, self._buffers, inputs, strict=True):
            if (x.shape, x.dtype) != (buffer.shape, buffer.dtype):
                raise ValueError(
                    f"{name} is {x.dtype} {list(x.shape)}, but was captured as {buffer.dtype} {list(buffer.shape)}"
                )
            buffer.copy_(x)
        return self._replay()

    def _captured(self, buffers: Inputs) -> Callable[[], Tensor]:
        """The replay. What the warm-up added to the gradients is forgotten."""
        is_outermost = torch.autocast_increment_nesting() == 1
        torch.autocast_decrement_nesting()
        if not is_outermost:
            raise RuntimeError(
                "captured within an autocast, whose cache may hold casts that the graph would not renew: leave it"
            )
        capture = CAPTURES[self._parameters[0].device.type]
        replay, self.held_bytes = capture(lambda: self._run(buffers))
        self.begin()
        return replay


def in_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], int]:
    """Records a CUDA graph; returns its replay, and the bytes of its memory that count as free."""
    # Libraries load their kernels and the compiler compiles at the first passes; neither may happen in a capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()  # the graph gets memory of its own
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = run()
    held = (torch.cuda.memory_reserved() - reserved) - (torch.cuda.memory_allocated() - allocated)

    def replay() -> Tensor:
        graph.replay()
        return losses

    return replay, held


def run_again(run: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], int]:
    """Stands in for a graph on the CPU, which has none: runs the pass itself on the same buffers."""
    return run, 0


CAPTURES = {"cuda": in_graph, "cpu": run_again}
