"""Tensors that are computed when they are used: a file larger than memory is written from them (not from a paper)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Deferred(Tensor):
    """A tensor whose shape and dtype are known and whose values are not held: each operation computes them anew.

    Writers read `shape`, `dtype` and sizes without computing anything, and one tensor's values after another.
    `detach()` gives the values as an ordinary tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    compute: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, compute: Callable[[], Tensor]) -> "Deferred":
        """compute  gives the values, [shape] of `dtype` on the CPU, the same ones each time."""
        made = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        made.compute = compute
        return made

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  Tensor's prints values
        """Shape and dtype; nothing is computed."""
        return f"Deferred({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation on the values."""
        with torch.no_grad():
            args, kwargs = tree_map_only(Deferred, lambda tensor: tensor.compute(), (args, kwargs or {}))
        return function(*args, **kwargs)


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32, else one that is converted when it is used."""
    if tensor.dtype == torch.float32:
        return tensor
    return Deferred(tensor.shape, torch.float32, tensor.float)
