"""Results of operations on the meta device, each kind of call computed once (not from a paper).

A result on the meta device is a shape, strides and a dtype, which follow from those of the arguments. Many of torch's
meta kernels are written in Python and take longer than the same operation on real data, and a UNet repeats the same
calls in each of its 70 transformer blocks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

_known: dict[Any, tuple[list[Any], Any]] = {}


def call_on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """func(*args, **kwargs) for an operation whose tensors are all on the meta device."""
    if any(argument.alias_info is not None for argument in func._schema.arguments):
        return func(*args, **kwargs)  # a view, or in place: the result is one of the arguments
    leaves, structure = tree_flatten((args, kwargs))
    key = func, structure, tuple(map(_described, leaves))
    if key in _known:
        described, structure = _known[key]
        return tree_unflatten([_made(value) for value in described], structure)
    result = func(*args, **kwargs)
    values, structure = tree_flatten(result)
    arguments = {_storage(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
    if not any(isinstance(value, Tensor) and _storage(value) in arguments for value in values):
        _known[key] = [_described(value) for value in values], structure
    return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _described(value: Any) -> Any:
    """All that the result depends on, hashable."""
    return ("tensor", value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _made(description: Any) -> Any:
    if not isinstance(description, tuple):
        return description
    _, shape, stride, dtype = description
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
