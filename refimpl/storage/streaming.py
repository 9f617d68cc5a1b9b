"""Loads weights into networks without a second copy: reads, converts and stores one piece after another."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
