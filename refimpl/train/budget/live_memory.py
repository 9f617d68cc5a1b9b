"""The memory that a computation holds at each of its operations, counted on the meta device (not from a paper).

Tensors on the meta device have shapes and no data, and torch's autograd frees them as it would on a GPU. So the bytes
that are alive after each operation are counted, not estimated: what a backward pass has saved, what it has freed
already, the gradients that it has made by then, and the temporary results in between.

The batch is a prime number of images that no size of a network reaches. A tensor whose bytes it divides belongs to
the images, any other to the network, so that one count gives the memory of every batch.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from refimpl.train.budget.shapes_only import call_on_meta

COUNTED_BATCH = 1_048_583  # the first prime above 2^20, which no side of a network exceeds


@dataclass
class Timeline:
    """Bytes alive after each operation: constant, for each image, and of finished gradients of parameters."""

    constant: list[int] = field(default_factory=list)
    per_image: list[int] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)

    def __add__(self, other: "Timeline") -> "Timeline":
        """One after the other."""
        return Timeline(
            self.constant + other.constant, self.per_image + other.per_image, self.gradients + other.gradients
        )

    @property
    def left(self) -> int:
        """Bytes alive at the end, besides gradients, which the next micro-batch finds."""
        return self.constant[-1] if self.constant else 0

    def peak(self, batch: int, with_gradients: bool = True) -> int:
        """Most bytes alive at once for a batch of this size.

        with_gradients  whether the finished gradients are among them; they are not where they have a place anyway
        """
        moments = zip(self.constant, self.per_image, self.gradients, strict=True)
        return max((c + batch * i + with_gradients * g for c, i, g in moments), default=0)


class LiveMemory(TorchDispatchMode):
    """Within its context, notes the bytes alive after each operation in `timeline`.

    before  tensors that are there anyway, such as weights; their memory is not counted
    """

    def __init__(self, before: Iterable[Tensor] = ()):
        super().__init__()
        self.timeline = Timeline()
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._alive: dict[int, int] = {}  # storage → bytes
        self._is_gradient: set[int] = set()
        self._constant = self._per_image = self._gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call_on_meta(func, args, kwargs or {})
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._notice(value)
        self.note()
        return result

    def note(self) -> None:
        """Adds to the timeline what is alive now."""
        self.timeline.constant.append(self._constant)
        self.timeline.per_image.append(self._per_image)
        self.timeline.gradients.append(self._gradients)

    def gradient_is_finished(self, parameter: nn.Parameter) -> None:
        """Counts a parameter's gradient as finished; a hook to run after autograd has stored it."""
        assert parameter.grad is not None  # the hook runs after it was stored
        key = parameter.grad.untyped_storage()._cdata
        if key in self._alive and key not in self._is_gradient:
            self._is_gradient.add(key)
            self._constant -= self._alive[key]
            self._gradients += self._alive[key]

    def _notice(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not size or key in self._alive or key in self._before:
            return
        self._alive[key] = size
        self._add(size, 1)
        weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        size = self._alive.pop(key)
        if key in self._is_gradient:
            self._is_gradient.remove(key)
            self._gradients -= size
        else:
            self._add(size, -1)

    def _add(self, size: int, sign: int) -> None:
        images, rest = divmod(size, COUNTED_BATCH)
        if rest:
            self._constant += sign * size
        else:
            self._per_image += sign * images


def count_training(networks: Sequence[nn.Module], run: Callable[[], Tensor]) -> Timeline:
    """Counts a forward and a backward pass on the meta device.

    networks  every network that takes part, on the meta device
    run       the forward pass: () → the output, of any shape, for a batch of COUNTED_BATCH images
    """
    parameters = [parameter for network in networks for parameter in network.parameters()]
    memory = LiveMemory(_tensors(networks))
    hooks = [
        parameter.register_post_accumulate_grad_hook(memory.gradient_is_finished)
        for parameter in parameters
        if parameter.requires_grad
    ]
    try:
        with memory:
            backward(run().float().square().mean())
        memory.note()  # the last gradient is finished after the last operation
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.grad = None
    return memory.timeline


def backward(loss: Tensor) -> None:
    """loss.backward(), but without suspending modes of torch functions, which recomputed activations need."""
    engine = torch.autograd.Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue]
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@torch.no_grad()
def count_inference(networks: Sequence[nn.Module], run: Callable[[], Tensor]) -> Timeline:
    """Counts a forward pass that saves nothing. Arguments as in `count_training`."""
    memory = LiveMemory(_tensors(networks))
    with memory:
        run()
    return memory.timeline


def _tensors(networks: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
