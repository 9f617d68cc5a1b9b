"""Tensors as the tests draw and compare them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal values, the same for the same shape."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference of a from b, relative to the largest value of b."""
    return ((a - b).abs().max() / b.abs().max()).item()


def same(a: Mapping[Any, Tensor], b: Mapping[Any, Tensor]) -> bool:
    """Whether both hold the same keys, and equal tensors under each."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
