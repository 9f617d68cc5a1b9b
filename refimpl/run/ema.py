"""Exponential moving average of the weights (S §2.5; the usual EMA of diffusion training).

ema ← decay·ema + (1 − decay)·weights after every optimizer step, with the decay ramped up at the start so that the
first thousand steps are not an average with the random initialisation.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from refimpl.errors import InputError


class HasState(Protocol):
    """A module, or anything else with weights by name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """The weights."""
        ...


def ema_decay(step: int, decay: float) -> float:
    """Decay used after optimizer step `step` (1, 2, …): min(decay, (1 + step) / (10 + step))."""
    return min(decay, (1 + step) / (10 + step))


def ema_start(module: HasState) -> dict[str, Tensor]:
    """A float32 copy of every parameter and buffer, by name: the average before any step."""
    return {name: value.detach().float().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], module: HasState, step: int, decay: float) -> None:
    """Moves `average` in place towards the module's weights.

    step   number of optimizer steps taken, from 1
    decay  in [0, 1); 0 makes the average equal to the weights
    Raises InputError when decay leaves [0, 1).
    """
    if not 0 <= decay < 1:
        raise InputError(f"EMA decay {decay} is outside [0, 1)")
    weights = module.state_dict()
    targets = [average[name] for name in weights]
    values = [value.float() for value in weights.values()]
    for target, value in zip(targets, values, strict=True):
        target.lerp_(value, 1 - ema_decay(step, decay))
