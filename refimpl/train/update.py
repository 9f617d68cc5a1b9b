"""What follows the gradient: clip, AdamW, moving average (S §2.5, N §4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.run.ema import ema_update
from refimpl.train.setup.trainable import Averages, Part


def update(
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    averages: Averages,
    clip_norm: float,
    decay: float,
    step: int,
    rank: int,
    images: Sequence[str],
) -> Tensor:
    """Takes one optimizer step with the gradients in every parameter's `.grad`, which it then clears.

    averages   moving averages to update with the new weights; ranks other than 0 hold none
    clip_norm  largest norm of the gradient, which is scaled down to it where it is larger; 0 does not clip
    decay      decay of the moving averages    step  number of this step, from 1
    rank, images  this process and the ids of its images, for the message
    returns    the gradient's norm before clipping, a scalar on the device
    Raises InputError when the gradient is not finite; weights and averages stay as they were.
    """
    parameters = [parameter for part in parts for parameter in part.parameters().values()]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf"))
    if not torch.isfinite(norm):
        raise InputError(
            f"step {step}, rank {rank}: the gradient is not finite; lower optimizer.learning_rate, or "
            f"look at the images {', '.join(images)}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        if part.name in averages:
            ema_update(averages[part.name], part, step, decay)
    return norm
