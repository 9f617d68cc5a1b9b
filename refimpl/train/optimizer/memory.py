"""The memory of an optimizer: its state, and what a step of it needs besides (not from a paper)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.ops.stochastic_rounding import AT_ONCE
from refimpl.run.optimizer_config import OptimizerConfig
from refimpl.train.optimizer.kinds import state_bytes
from refimpl.train.sharding.flat import BUCKET

# Most bytes that a step holds at once for each element of the parameter that it is at, counted operation by
# operation. torchao's is written for torch.compile, which would make one pass of its thirty operations.
TEMPORARY = {"adamw": 0, "adamw8bit": 32, "adafactor": 4, "prodigy": 4}
ROUNDING = 28  # the same of `round_stochastically`, for each of AT_ONCE elements


def states_bytes(config: OptimizerConfig, trained: Sequence[Tensor]) -> int:
    """Memory of the optimizer's state of these parameters."""
    return sum(state_bytes(config.kind, parameter.shape) for parameter in trained)


def step_bytes(config: OptimizerConfig, trained: Sequence[Tensor]) -> int:
    """What a step holds at its peak besides weights, gradients and state.

    For weights of bfloat16 that is a bucket's weights and gradients in float32, of Prodigy all; of the rest what the
    optimizer computes with at its largest parameter, and what rounding does.
    """
    low = [parameter for parameter in trained if parameter.dtype == torch.bfloat16]
    largest = max(parameter.numel() for parameter in trained)
    total, one = sum(p.nbytes for p in low), max((p.nbytes for p in low), default=0)
    lifted = 4 * (
        total if config.kind == "prodigy" else min(total, max(BUCKET, one))
    )  # twice the width, and gradients
    rounding = ROUNDING * min(AT_ONCE, one // 2)
    return lifted + max(TEMPORARY[config.kind] * largest, rounding)


def waiting_bytes(trained: Sequence[Tensor]) -> int:
    """Most bytes of gradients at once where the backward pass steps them: a bucket's, the last of which fills it."""
    largest = max(parameter.nbytes for parameter in trained)
    return min(sum(parameter.nbytes for parameter in trained), BUCKET + largest)
