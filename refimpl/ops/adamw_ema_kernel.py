"""AdamW and the moving average compiled from csrc/: one pass over many tensors, in place.

`refimpl.ops.adamw_ema` defines what happens to each tensor. An element's weight, gradient, moments and average are
read once, and all but the gradient written once: 36 bytes, where torch's fused AdamW and its moving average move 40
and the scaling of the gradients 8 more. The gradients are not changed. The arithmetic is float32, and bits are equal
on every run, for any number of threads and on every processor with fused multiply-adds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.ops import _kernels as _kernels  # registers torch.ops.refimpl; ImportError when it is not built

_ADAMW_EMA = torch.ops.refimpl.adamw_ema_.default


def adamw_ema_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    averages: Sequence[Tensor],
    steps: Sequence[Tensor],
    scale: Tensor,
    found_inf: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decay: float,
) -> None:
    """Takes one optimizer step of many tensors in place, and moves their averages towards the new weights.

    weights, gradients, exp_avgs, exp_avg_sqs  float32, alike in shape and device; those that lie in another memory
               order than their weight are copied
    averages   the same, or empty: none are kept
    steps      number of steps that each tensor has taken, one float32 value each; counted here
    scale      what the gradients are multiplied by    found_inf  0, or else nothing changes; one float32 value each
    decay      of the averages
    Nothing waits for the device.
    Raises ValueError when lists, shapes or devices disagree, and TypeError on another dtype.
    """
    _ADAMW_EMA(
        weights,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        averages,
        steps,
        scale,
        found_inf,
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        decay,
    )


@torch.library.register_fake("refimpl::adamw_ema_")
def _(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps, scale, found_inf, *settings):
    lists = (gradients, exp_avgs, exp_avg_sqs, steps)
    torch._check_value(
        all(len(tensors) == len(weights) for tensors in lists) and len(averages) in (0, len(weights)),
        lambda: f"the lists have {len(weights)} weights and others of another length: they must agree",
    )
    for tensors in (gradients, exp_avgs, exp_avg_sqs, averages):
        for weight, tensor in zip(weights, tensors, strict=False):
            torch._check_value(
                tensor.shape == weight.shape,
                lambda a=tensor, b=weight: (
                    f"a tensor has shape {list(a.shape)} and its weight {list(b.shape)}: they must agree"
                ),
            )
