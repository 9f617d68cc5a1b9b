"""Merging a LoRA into weights (Hu et al. 2021, §4.1): W + strength · (alpha / rank) · up · down, for every module.

LoHa and LoKr have updates of another form (`refimpl.interop.lora.lycoris`).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.lora.lycoris import SLOTS, fault_of, is_lycoris, merged_lycoris
from refimpl.model.lora.adapters import ALPHA, DOWN, UP, merged_weight


def merge_into_checkpoint(
    checkpoint: Checkpoint, lora: LoRAFile, strength: float = 1.0, source: str = "the LoRA"
) -> Checkpoint:
    """The checkpoint with a LoRA merged in; every tensor keeps its dtype, and those without an adapter are unchanged.

    strength  factor of the update; −1 undoes a merge, unless the file holds magnitudes (DoRA)
    source    name of the LoRA, for messages
    Raises InputError when the checkpoint lacks a part or a module that the LoRA adapts, when a shape differs, or when
    a merged weight would not be finite in its dtype.
    """
    if not math.isfinite(strength):
        raise InputError(f"strength {strength} must be finite; 1 is the LoRA as it was trained")
    parts = {}
    for part, state in lora.parts().items():
        weights = getattr(checkpoint, part)
        if weights is None:
            raise InputError(
                f"{source} adapts {part}, which the checkpoint does not have; merge it into one that does"
            )
        parts[part] = {**weights, **_merged(weights, state, strength, f"{source} ({part})")}
    return replace(checkpoint, **parts)


@torch.no_grad()
def _merged(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], strength: float, source: str
) -> dict[str, Tensor]:
    """The weights that a LoRA changes, merged, by key."""
    merged = {}
    for module, slots in by_module(state).items():
        name = f"{module}.weight"
        weight = weights.get(name)
        if is_lycoris(slots):
            fault = "it has no such weight" if weight is None else fault_of(slots, [tuple(weight.shape)])
            if weight is None or fault:
                raise InputError(
                    f"{source}: {module} does not fit the checkpoint: {fault}; use the checkpoint that it was "
                    "trained on"
                )
            merged[name] = merged_lycoris(weight, slots, strength)
            _check_finite(merged[name], name, source)
            continue
        down, up, alpha = (slots[slot] for slot in (DOWN, UP, ALPHA))
        if weight is None or weight.shape[0] != up.shape[0] or weight.shape[1:] != down.shape[1:]:
            have = "has no such weight" if weight is None else f"has {list(weight.shape)}"
            raise InputError(
                f"{source}: {module} with down {list(down.shape)} and up {list(up.shape)} does not fit the "
                f"checkpoint, which {have}; use the checkpoint that the LoRA was trained on"
            )
        merged[name] = merged_weight(weight, down, up, float(alpha), strength)
        _check_finite(merged[name], name, source)
    return merged


def by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each module that a file adapts, without its name."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        slot = next(slot for slot in (DOWN, UP, ALPHA, *SLOTS) if key.endswith(f".{slot}"))
        modules.setdefault(key.removesuffix(f".{slot}"), {})[slot] = tensor
    return modules


def _check_finite(weight: Tensor, name: str, source: str) -> None:
    if not weight.isfinite().all():
        raise InputError(
            f"{source}: {name} would not be finite in {weight.dtype}; lower the strength, or look at the LoRA"
        )
