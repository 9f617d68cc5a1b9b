"""The precision that the network computes in, and what of it the step sees."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from refimpl.run.config import TrainConfig
from refimpl.train.placement import in_precision, set_arithmetic

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The process's settings are put back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("fp32", False), ("bf16", False)])
def test_tf32_is_allowed_where_it_is_asked_for(precision: str, allowed: bool) -> None:
    set_arithmetic(TrainConfig(precision=precision))
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


class Product(nn.Module):
    """A product of matrices, which autocast takes to bfloat16."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """x · xᵀ"""
        return x @ x.T


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("tf32", torch.float32)]
)
def test_only_the_network_computes_in_bfloat16(precision: str, dtype: torch.dtype) -> None:
    x = torch.eye(2)
    network = in_precision(Product(), TrainConfig(precision=precision), CPU)
    assert network(x, x, x, x).dtype == dtype
    assert (x @ x.T).dtype == torch.float32
