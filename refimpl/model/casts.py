"""Casts that autocast would make anew for each product of one tensor, made once.

https://docs.pytorch.org/docs/stable/amp.html says what autocast casts; of what it casts it keeps weights alone.
"""

import torch
from torch import Tensor


def cast_once(x: Tensor) -> Tensor:
    """x as autocast would cast it for each of many products.

    Where it is trained it stays as it is: the products' gradients would add up in the lower precision.
    """
    dtype = autocast_dtype(x)
    return x if dtype is None or x.requires_grad else x.to(dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts to where x is; None where it is off, and on the meta device, which knows none."""
    device = x.device.type
    is_on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None
