"""What follows the gradient: clip, AdamW, moving average (S §2.5, N §4). Nothing here waits for the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.run.adamw import step_by_definition, step_in_one_pass
from refimpl.run.config import TrainConfig
from refimpl.run.ema import ema_decay, ema_update
from refimpl.storage.local_tensors import local
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.sharding.kinds import Replicated, Sharding
from refimpl.train.sharding.norms import gradient_norm

NORM_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_


def update(
    optimizer: torch.optim.AdamW,
    parts: Sequence[Part],
    averages: Averages,
    clip_norm: float,
    decay: float,
    step: int,
    backend: str,
    sharding: Sharding | None = None,
    reduction: str = "fast",
) -> Tensor:
    """Takes one optimizer step with the gradients in every parameter's `.grad`, which it then clears.

    Every rank calls it, steps what it holds, and has in the end the weights that it computes with. A gradient that is
    not finite changes nothing: weights, moments, step counts and averages stay as they were. `check_finite` raises
    the error.

    averages   moving averages of what this rank keeps, to be updated with the new weights
    clip_norm  largest norm of the gradient, which is scaled down to it where it is larger; 0 does not clip
    decay      decay of the moving averages    step  number of this step, from 1
    backend    "reference": torch's clipping, fused AdamW and lerp, one after the other; "kernel": one compiled pass
               over weights, gradients, moments and averages
    sharding   how weights, moments and averages are divided; replicated when left out
    reduction  "fast", or "ordered": the same bits under any sharding, which costs `gradient_norm` its traffic and the
               backend "reference" its fused step
    returns    the gradient's norm before clipping, a scalar on the device
    """
    sharding = sharding or Replicated()
    trained = [parameter for part in parts for parameter in part.parameters().values()]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    norm = gradient_norm(gradients, reduction)
    skipped = norm.isfinite().logical_not().float()
    own = {part.name: sharding.own(part) for part in parts}
    held = _with_gradients(own)
    if backend == "kernel" or reduction == "ordered":
        take_step = step_in_one_pass if backend == "kernel" else step_by_definition
        kept = _averages_of(own, averages)
        take_step(optimizer, kept, _scale(norm, clip_norm), skipped, ema_decay(step, decay))
    else:
        _step_by_torch(optimizer, held, norm, skipped, clip_norm)
        for part in parts:
            if part.name in averages:
                ema_update(averages[part.name], part, step, decay, skipped)
    for tensor in (*trained, *held):
        tensor.grad = None
    sharding.spread(parts)
    return norm


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


@dataclass(frozen=True)
class NormReading:
    """A step's gradient norm on its way to the host, and what an error about it names."""

    norm: Tensor
    """On the host; its value has arrived once `arrived` has happened."""
    arrived: torch.cuda.Event | None
    step: int
    rank: int
    images: Sequence[str]


def read_norm(norm: Tensor, step: int, rank: int, images: Sequence[str]) -> NormReading:
    """Starts the copy of a gradient's norm to the host and waits for nothing.

    norm  as `update` returns it    step  its number    rank, images  this process and the ids of its images
    """
    on_host = norm.to("cpu", non_blocking=True)  # pinned
    arrived = torch.cuda.Event() if norm.is_cuda else None
    if arrived is not None:
        arrived.record()
    return NormReading(on_host, arrived, step, rank, images)


def check_finite(reading: NormReading | None) -> None:
    """Waits for a norm; a step later it has long arrived.

    Raises InputError, naming step, rank and images, when the gradient was not finite.
    """
    if reading is None:
        return
    if reading.arrived is not None:
        reading.arrived.synchronize()
    if not torch.isfinite(reading.norm):
        raise InputError(
            f"step {reading.step}, rank {reading.rank}: the gradient is not finite; lower "
            f"optimizer.learning_rate, or look at the images {', '.join(reading.images)}"
        )


def is_read_at_once(settings: TrainConfig, step: int) -> bool:
    """Whether a step is logged, measured or kept, so that its norm is not left for later; alike on all ranks."""
    every = (settings.log_every, settings.validate_every, settings.sample_every, settings.checkpoint_every)
    return step == settings.steps or any(n and step % n == 0 for n in every)
