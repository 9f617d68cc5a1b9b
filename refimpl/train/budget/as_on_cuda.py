"""Makes operations on the meta device take and give what they do on a GPU: fused attention, autocast.

Autocast knows no meta device, and attention without data would choose the variant that holds the whole matrix of
logits. Both are decided above autograd, so a mode of torch functions can decide them as a GPU would.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from refimpl.model.projections import Joint, project, projected

LARGEST_FLASH_HEAD = (
    256  # channels of a head; wider ones, as in the autoencoder, go to the memory-efficient variant
)

# https://docs.pytorch.org/docs/stable/amp.html: the operations of the networks that autocast runs in bfloat16, and in
# float32. All others take what they are given.
IN_BFLOAT16 = {F.linear, F.conv2d, torch.matmul, torch.bmm, F.scaled_dot_product_attention}
IN_FLOAT32 = {F.layer_norm, F.group_norm}


class AsOnCuda(TorchFunctionMode):
    """Within its context, attention is fused and, from `start_autocast` on, operands are cast as autocast casts them.

    It has to be active in the backward pass too, where activation checkpointing computes again.
    """

    def __init__(self):
        super().__init__()
        self._bf16 = False
        self._casts: dict[int, Tensor] | None = None  # weights' casts, which autocast keeps until its end
        self._joint: Joint | None = None  # those that `project` keeps
        self._text: tuple[Tensor, Tensor] | None = None

    def start_autocast(self, text: Tensor | None = None) -> None:
        """Begins autocast to bfloat16.

        text  states that the UNet casts once for all of its blocks, unless they are trained
        """
        self._bf16, self._casts, self._joint = True, {}, {}
        if text is not None and not text.requires_grad:
            self._text = text, text.to(torch.bfloat16)

    def end_forward(self) -> None:
        """Drops the casts, where they are not kept for a whole step (`refimpl.train.placement.casting_once`).

        What is computed again in the backward pass is still under autocast.
        """
        self._casts = self._joint = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is project:
            x, layers = args
            weights, dtype = [layer.weight for layer in layers], torch.bfloat16 if self._bf16 else None
            return projected(x if dtype is None else self._low(x), weights, dtype, self._joint)
        if self._bf16 and func in IN_BFLOAT16:
            args = [self._low(value) for value in args]
            kwargs = {name: self._low(value) for name, value in kwargs.items()}
        elif self._bf16 and func in IN_FLOAT32:
            args = [_high(value) for value in args]
            kwargs = {name: _high(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention and len(args) == 3 and set(kwargs) <= {"scale"}:
            return fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _low(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self._text is not None and value is self._text[0]:
            return self._text[1]
        is_weight = value.is_leaf and value.requires_grad and torch.is_grad_enabled()
        if self._casts is None or not is_weight:
            return value.to(torch.bfloat16)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(torch.bfloat16)
        return self._casts[id(value)]


def _high(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attention as a GPU computes it: flash in bfloat16, the memory-efficient variant in float32.

    q, k, v  [B, heads, n, d], on the meta device        scale  factor on q kᵀ; 1 / √d when left out
    """
    if q.dtype != torch.float32 and q.shape[-1] <= LARGEST_FLASH_HEAD:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
    saves = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, saves, scale=scale)[0]
