"""Weights without a second copy: into networks piece by piece, into files from tensors computed when used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from refimpl.storage.key_report import CONFIGURATION, check_state, differences, refuse, shapes_of
from refimpl.storage.safetensors_file import CHUNK, Scratch


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies `state` into `module`; every missing, unknown and misshapen tensor is listed in one InputError."""
    check_state(shapes_of(module.state_dict()), state, source)
    module.load_state_dict(dict(state), strict=True)


@torch.no_grad()
def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies a state dict into a module, each tensor converted to the dtype the module has there.

    module  on any device, or on `meta`: tensors there are allocated on the CPU, one at a time
    state   tensors by the module's own keys, usually memory-mapped
    source  the file or folder they come from, for messages
    Takes no more memory than the module itself and a piece of 2²⁰ values. Raises InputError listing every missing,
    unknown and misshapen tensor, before anything is copied, and when float16 cannot hold a value.
    """
    own = module.state_dict()
    problems = differences(shapes_of(own), shapes_of(state))
    refuse(problems, f"{source} does not fit this network", CONFIGURATION)
    scratch = Scratch()
    for key, target in own.items():
        if target.is_meta:
            target = _materialised(module, key, target)
        _copy(target, state[key].detach(), f"{source}: {key}", scratch)


def _materialised(module: nn.Module, key: str, target: Tensor) -> Tensor:
    path, _, name = key.rpartition(".")
    owner = module.get_submodule(path)
    empty = torch.empty(target.shape, dtype=target.dtype)
    if name in owner._parameters:
        requires_grad = owner.get_parameter(name).requires_grad
        owner.register_parameter(name, nn.Parameter(empty, requires_grad=requires_grad))
    else:
        owner.register_buffer(name, empty)
    return empty


def _copy(target: Tensor, source: Tensor, name: str, scratch: Scratch) -> None:
    plain = source.dtype == target.dtype or not target.is_contiguous() or not source.is_floating_point()
    if plain or target.device.type != "cpu":
        target.copy_(source)
        return
    given, filled = source.contiguous().view(-1), target.view(-1)
    for begin in range(0, len(given), CHUNK):
        scratch.convert(given[begin : begin + CHUNK], filled[begin : begin + CHUNK], name)


class Deferred(Tensor):
    """A tensor whose shape and dtype are known and whose values are not held: each operation computes them anew.

    Writers read `shape`, `dtype` and sizes without computing anything, and one tensor's values after another.
    `detach()` gives the values as an ordinary tensor.
    """

    __torch_function__: Any = torch._C._disabled_torch_function_impl
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
