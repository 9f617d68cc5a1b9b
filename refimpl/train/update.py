"""What follows the gradient: clip, AdamW, moving average (S §2.5, N §4). Nothing here waits for the device.

Other optimizers, weights kept in bfloat16 and steps within the backward pass are `refimpl.train.optimizer`'s.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from refimpl.run.adamw import step_by_definition, step_in_one_pass
from refimpl.run.ema import ema_decay, ema_update
from refimpl.storage.local_tensors import local
from refimpl.train.optimizer.stepping import Stepping
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.sharding.kinds import Replicated, Sharding
from refimpl.train.sharding.norms import gradient_norm

NORM_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_


def is_not_finite(norm: Tensor) -> Tensor:
    """1 where the gradient's norm is not finite, else 0: a process alone agrees with itself."""
    return norm.isfinite().logical_not().float()


def update(
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    averages: Averages,
    clip_norm: float,
    decay: float,
    step: int,
    backend: str,
    sharding: Sharding | None = None,
    reduction: str = "fast",
    agree: Callable[[Tensor], Tensor] = is_not_finite,
    stepping: Stepping | None = None,
) -> Tensor:
    """Takes one optimizer step with the gradients in every parameter's `.grad`, which it then clears.

    Every rank calls it, steps what it holds, and has in the end the weights that it computes with. A step that is to
    be skipped changes nothing: weights, moments, step counts and averages stay as they were.

    averages   moving averages of what this rank keeps, to be updated with the new weights
    clip_norm  largest norm of the gradient, which is scaled down to it where it is larger; 0 does not clip
    decay      decay of the moving averages    step  number of this step, from 1
    backend    "reference": torch's clipping, fused AdamW and lerp, one after the other; "kernel": one compiled pass
               over weights, gradients, moments and averages
    sharding   how weights, moments and averages are divided; replicated when left out
    reduction  "fast", or "ordered": the same bits under any sharding, which costs `gradient_norm` its traffic and the
               backend "reference" its fused step
    agree      the gradient's norm → 1 to skip the step, 0 to take it: a scalar on the device, the same on all ranks
    stepping   how an optimizer steps that isn't AdamW on float32 weights; it may have begun in the backward pass
    returns    the gradient's norm before clipping, a scalar on the device
    """
    sharding = sharding or Replicated()
    trained = [parameter for part in parts for parameter in part.parameters().values()]
    if stepping is not None:
        norm, skipped = stepping.finish(trained, clip_norm, agree)
        _move_averages(parts, averages, step, decay, skipped)
        sharding.spread(parts)
        return norm
    assert isinstance(optimizer, torch.optim.AdamW)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    norm = gradient_norm(gradients, reduction)
    skipped = agree(norm)
    own = {part.name: sharding.own(part) for part in parts}
    held = _with_gradients(own)
    if backend == "kernel" or reduction == "ordered":
        take_step = step_in_one_pass if backend == "kernel" else step_by_definition
        kept = _averages_of(own, averages)
        take_step(optimizer, kept, _scale(norm, clip_norm), skipped, ema_decay(step, decay))
    else:
        _step_by_torch(optimizer, held, norm, skipped, clip_norm)
        _move_averages(parts, averages, step, decay, skipped)
    for tensor in (*trained, *held):
        tensor.grad = None
    sharding.spread(parts)
    return norm


def _move_averages(
    parts: Sequence[Part], averages: Averages, step: int, decay: float, skipped: Tensor
) -> None:
    for part in parts:
        if part.name in averages:
            ema_update(averages[part.name], part, step, decay, skipped)


def _with_gradients(own: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
    """The tensors that this rank's optimizer steps, with what it holds of their gradients."""
    held = []
    for parameter in (parameter for part in own.values() for parameter in part.values()):
        tensor = local(parameter)
        tensor.grad = None if parameter.grad is None else local(parameter.grad)
        held.append(tensor)
    return held


def _step_by_torch(
    optimizer: torch.optim.AdamW,
    trained: Sequence[Tensor],
    norm: Tensor,
    skipped: Tensor,
    clip_norm: float,
) -> None:
    """Clips in place, then steps unless skipped.

    Fused AdamW would divide by a `grad_scale` in the same pass. It is left out: x / (1 / c) and x · c round
    differently, so that a clipped run would not keep the bits that it has under clip_grad_norm_.
    """
    if clip_norm:
        torch.nn.utils.clip_grads_with_norm_(trained, clip_norm, norm)
    optimizer.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue]  # read by torch's fused AdamW
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]


def _scale(norm: Tensor, clip_norm: float) -> Tensor:
    """What clip_grad_norm_ multiplies the gradients by."""
    if not clip_norm:
        return torch.ones_like(norm)
    return (clip_norm / (norm + NORM_EPSILON)).clamp(max=1.0)


def _averages_of(own: Mapping[str, Mapping[str, Tensor]], averages: Averages) -> Mapping[Tensor, Tensor]:
    """The average of every tensor that this rank steps; frozen weights are their own average."""
    return {
        local(parameter): local(averages[part][name])
        for part, parameters in own.items()
        if part in averages
        for name, parameter in parameters.items()
    }
