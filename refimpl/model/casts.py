"""Casts that autocast would make anew for each product of one tensor, made once.

https://docs.pytorch.org/docs/stable/amp.html says what autocast casts; of what it casts it keeps weights alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

Three = tuple[Tensor, Tensor, Tensor]


def cast_once(x: Tensor) -> Tensor:
    """x as autocast would cast it for each of many products.

    Where it is trained it stays as it is: the products' gradients would add up in the lower precision.
    """
    dtype = _autocast_dtype(x)
    return x if dtype is None or x.requires_grad else x.to(dtype)


def cast_for_three(x: Tensor) -> Three:
    """x, to be the input of three linear layers: under autocast cast once, where each of them would cast it.

    The bits stay those of three casts, as the gradients are added in float32 and in autograd's order. A compiler sees
    x three times, and makes one pass of such casts itself.
    """
    if torch.compiler.is_compiling():
        return x, x, x
    if has_torch_function_unary(x):
        return handle_torch_function(cast_for_three, (x,), x)
    dtype = _autocast_dtype(x)
    return (x, x, x) if dtype is None else cast_from_float32(x, dtype)


def cast_from_float32(x: Tensor, dtype: torch.dtype) -> Three:
    """x in a lower precision, three times the same memory; as it is, unless it is in float32."""
    return _Cast.apply(x, dtype) if x.dtype == torch.float32 else (x, x, x)  # pyright: ignore[reportReturnType]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts to where x is; None where it is off, and on the meta device, which knows none."""
    device = x.device.type
    is_on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Three:  # pyright: ignore[reportIncompatibleMethodOverride]
        low = x.to(dtype)
        return low, low.detach(), low.detach()

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return third.float().add_(second).add_(first), None  # autograd begins with the last use
