"""Exponential moving average of the weights (S §2.5; the usual EMA of diffusion training).

ema ← decay·ema + (1 − decay)·weights after every optimizer step, with the decay ramped up at the start so that the
first thousand steps are not an average with the random initialisation.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage.local_tensors import local

COPIED = 64 * 2**20  # bytes of float32 copies of weights at a time


class HasState(Protocol):
    """A module, or anything else with weights by name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """The weights."""
        ...


def ema_decay(step: int, decay: float) -> float:
    """Decay used after optimizer step `step` (1, 2, …): min(decay, (1 + step) / (10 + step)).

    Raises InputError when decay leaves [0, 1).
    """
    if not 0 <= decay < 1:
        raise InputError(f"EMA decay {decay} is outside [0, 1)")
    return min(decay, (1 + step) / (10 + step))


def ema_start(module: HasState, without: Container[str] = ()) -> dict[str, Tensor]:
    """A float32 copy of every parameter and buffer, by name: the average before any step.

    without  names that are left out
    """
    state = module.state_dict().items()
    return {name: value.detach().float().clone() for name, value in state if name not in without}


@torch.no_grad()
def ema_update(
    average: Mapping[str, Tensor],
    module: HasState,
    step: int,
    decay: float,
    skipped: Tensor | None = None,
) -> None:
    """Moves `average` in place towards the module's weights, as far as this rank holds both.

    average  of all weights, or of those that this rank keeps
    step     number of optimizer steps taken, from 1
    decay    in [0, 1); 0 makes the average equal to the weights
    skipped  a scalar on the weights' device: 0, or 1 when the optimizer skipped the step, and the average stays as it
             was. It is not waited for.
    Raises InputError when decay leaves [0, 1).
    """
    share = 1 - ema_decay(step, decay)
    lerp_ = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
    weights = module.state_dict()
    for names in _in_turns(average, weights):
        targets = [local(average[name]) for name in names]
        values = [local(weights[name]).float() for name in names]
        if skipped is None:
            lerp_(targets, values, share)
        else:
            lerp_(targets, values, share_of_each(targets, share * (1 - skipped)))


def _in_turns(average: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names, all together where no weight has to be copied to be float32, else as many as COPIED bytes allow."""
    turn: list[str] = []
    copied = 0
    for name, target in average.items():
        size = 0 if weights[name].dtype == torch.float32 else local(target).nbytes
        if copied and copied + size > COPIED:
            yield turn
            turn, copied = [], 0
        turn.append(name)
        copied += size
    if turn:
        yield turn


def share_of_each(targets: Sequence[Tensor], share: Tensor) -> list[Tensor]:
    """The share by which each target moves, as torch._foreach_lerp_ takes it: a scalar for each on the CPU.

    On a GPU that would be one launch per target. Its multi-tensor kernel asks for tensors of the targets' shapes and
    strides: views of one buffer, as long as the largest target.
    """
    if not share.is_cuda:
        return [share] * len(targets)
    return views_of_one_buffer(targets, share)


def views_of_one_buffer(targets: Sequence[Tensor], share: Tensor) -> list[Tensor]:
    """Tensors full of `share` in the shapes and strides of the targets, which have no gaps."""
    longest = max((target.numel() for target in targets), default=0)
    buffer = share.expand(longest).contiguous()
    return [buffer.as_strided(target.shape, target.stride()) for target in targets]
