"""What an implementation of the operations in the network's blocks must satisfy; see tests/ops/checks.py."""

import torch
from torch import Tensor

from refimpl.ops import Ops
from tests.ops.checks import REFERENCE, assert_close, in_float64


def value_and_gradient(function, x: Tensor, incoming: Tensor) -> tuple[Tensor, Tensor]:
    """function(x), and the gradient with respect to x for the incoming gradient."""
    leaf = x.detach().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, incoming)
    return value.detach(), gradient


def check_geglu(ops: Ops, packed: Tensor, incoming: Tensor) -> None:
    """Value and gradient agree with the reference, whether or not a gradient is requested."""
    value, gradient = value_and_gradient(ops.geglu, packed, incoming)
    eager = value_and_gradient(REFERENCE.geglu, packed, incoming)
    packed_64, incoming_64 = in_float64(packed, incoming)
    exact = value_and_gradient(REFERENCE.geglu, packed_64, incoming_64)
    a, b = packed_64.abs().chunk(2, dim=-1)
    by_a, by_b = incoming_64.abs() * b, incoming_64.abs() * a
    assert_close(value, without_overflow(eager[0], exact[0]), exact[0], a * b)
    assert_close(gradient, without_overflow(eager[1], exact[1]), exact[1], torch.cat([by_a, by_b], dim=-1))
    with torch.no_grad():
        assert torch.equal(ops.geglu(packed), value), "the value must not depend on the gradient"


def without_overflow(eager: Tensor, exact: Tensor) -> Tensor:
    """The eager result, with the exact one where eager's steps left the dtype's range on the way to it."""
    return torch.where(eager.isfinite(), eager, exact.to(eager))
