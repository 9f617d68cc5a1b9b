"""Merging a LoRA into weights (Hu et al. 2021, §4.1): W + strength · (alpha / rank) · up · down, for every module."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.lora.files import LoRAFile
from refimpl.model.lora.adapters import ALPHA, DOWN, UP, merged_weight


def merge_into_checkpoint(
    checkpoint: Checkpoint, lora: LoRAFile, strength: float = 1.0, source: str = "the LoRA"
) -> Checkpoint:
    """The checkpoint with a LoRA merged in; every tensor keeps its dtype, and those without an adapter are unchanged.

    strength  factor of the update; −1 undoes a merge
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
    for key in state:
        if not key.endswith(f".{DOWN}"):
            continue
        module = key.removesuffix(f".{DOWN}")
        down, up, alpha = (state[f"{module}.{slot}"] for slot in (DOWN, UP, ALPHA))
        name = f"{module}.weight"
        weight = weights.get(name)
        if weight is None or weight.shape[0] != up.shape[0] or weight.shape[1:] != down.shape[1:]:
            have = "has no such weight" if weight is None else f"has {list(weight.shape)}"
            raise InputError(
                f"{source}: {module} with down {list(down.shape)} and up {list(up.shape)} does not fit the "
                f"checkpoint, which {have}; use the checkpoint that the LoRA was trained on"
            )
        merged[name] = merged_weight(weight, down, up, float(alpha), strength)
        if not merged[name].isfinite().all():
            raise InputError(
                f"{source}: {name} would not be finite in {weight.dtype}; lower the strength, or look at the LoRA"
            )
    return merged
