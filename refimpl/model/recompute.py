"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again (Chen et al. 2016).

none   everything is kept
cheap  norms, activations and GEGLU are computed again; no matrix product, convolution or attention is
full   a block keeps its input alone, and is computed again as a whole

All three give gradients of the same bits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from refimpl.model.config import Recompute

T = TypeVar("T", Tensor, tuple[Tensor, ...])
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")
ATTENTION = ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention")


def again(function: Callable[..., T], *inputs: Any) -> T:
    """function(*inputs), of which only the inputs are kept."""
    # Nothing in a block is random, so no RNG state needs to be saved for the second time.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def again_but_products(function: Callable[..., T], *inputs: Any) -> T:
    """function(*inputs), of which the inputs and the results of matrix products are kept."""
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def cheap_before(product: nn.Module, cheap: Callable[[Tensor], Tensor], x: Tensor, how: Recompute) -> Tensor:
    """product(cheap(x)); unless `how` is "none", cheap(x) is computed again in the backward pass.

    product  a Linear or Conv2d, perhaps with an adapter        cheap  without matrix products
    """

    def both(x: Tensor) -> Tensor:
        return product(cheap(x))

    if how == "none" or not torch.is_grad_enabled():
        return both(x)
    # The second time stops where the last tensor that is needed is at hand: with a plain layer its input, before the
    # product. An adapted layer has more than one product, whose results are kept instead.
    plain = type(product) in (nn.Linear, nn.Conv2d)
    return again(both, x) if plain else again_but_products(both, x)


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = op.overloadpacket.__name__ if hasattr(op, "overloadpacket") else str(op)
    kept = name in PRODUCTS or name.startswith(ATTENTION)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
