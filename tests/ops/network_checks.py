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


# ---- group_norm_silu ------------------------------------------------------------------------------------


def norm_results(
    ops: Ops, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, incoming: Tensor
) -> list[Tensor]:
    """The value, and the gradients with respect to x, weight and bias."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    value = ops.group_norm_silu(*leaves, groups, eps)
    return [value.detach(), *torch.autograd.grad(value, leaves, incoming)]


def check_group_norm_silu(
    ops: Ops, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, incoming: Tensor
) -> None:
    """Value and gradients agree with the reference, whether or not a gradient is requested."""
    results = norm_results(ops, x, weight, bias, groups, eps, incoming)
    if x.numel() == 0:
        assert results[0].shape == results[1].shape == x.shape
        assert not results[2].any()
        assert not results[3].any()
        return
    eager = norm_results(REFERENCE, x, weight, bias, groups, eps, incoming)
    x_64, weight_64, bias_64, incoming_64 = in_float64(x, weight, bias, incoming)
    exact = norm_results(REFERENCE, x_64, weight_64, bias_64, groups, eps, incoming_64)
    terms = norm_terms(x_64, weight_64, bias_64, groups, eps, incoming_64)
    for result, other, wanted, size in zip(results, eager, exact, terms, strict=True):
        assert_close(result, without_overflow(other, wanted), wanted, size)
    with torch.no_grad():
        assert torch.equal(ops.group_norm_silu(x, weight, bias, groups, eps), results[0])


def norm_terms(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, incoming: Tensor
) -> list[Tensor]:
    """Magnitudes of what is added for the value and the three gradients; |silu′| is at most 1.1."""
    grouped = x.unflatten(1, (groups, -1))
    axes = (2, 3, 4)
    mean = grouped.mean(axes, keepdim=True)
    deviation = (grouped.var(axes, keepdim=True, correction=0) + eps).sqrt()
    w = weight.abs()[:, None, None]
    # Each value is known to a rounding of itself and of the mean, and its slope moves with it.
    z = ((grouped.abs() + mean.abs()) / deviation).flatten(1, 2)
    value = z * w + bias.abs()[:, None, None]
    dz = incoming.abs() * (1 + z * w)
    of_group = (w * dz).unflatten(1, (groups, -1))
    share = of_group.mean(axes, keepdim=True) + z.unflatten(1, (groups, -1)) * (
        of_group * z.unflatten(1, (groups, -1))
    ).mean(axes, keepdim=True)
    by_x = ((of_group * (1 + z.unflatten(1, (groups, -1))) + share) / deviation).flatten(1, 2)
    return [value, by_x, (dz * (1 + z)).sum((0, 2, 3)), dz.sum((0, 2, 3))]


# ---- layer_norm -------------------------------------------------------------------------------------------


def row_results(
    layer_norm, x: Tensor, weight: Tensor, bias: Tensor, eps: float, incoming: Tensor
) -> list[Tensor]:
    """The value, and the gradients with respect to x, weight and bias."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    value = layer_norm(*leaves, eps)
    return [value.detach(), *torch.autograd.grad(value, leaves, incoming)]


def widened_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The reference in the wider of x's and weight's dtypes, as a GPU's autocast computes it, and rounded to x's."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    return REFERENCE.layer_norm(x.to(wide), weight.to(wide), bias.to(wide), eps).to(x.dtype)


def check_layer_norm(ops: Ops, x: Tensor, weight: Tensor, bias: Tensor, eps: float, incoming: Tensor) -> None:
    """Value and gradients agree with the reference, whether or not a gradient is requested."""
    results = row_results(ops.layer_norm, x, weight, bias, eps, incoming)
    if x.numel() == 0:
        assert results[0].shape == results[1].shape == x.shape
        assert not results[2].any()
        assert not results[3].any()
        return
    eager = row_results(widened_layer_norm, x, weight, bias, eps, incoming)
    x_64, weight_64, bias_64, incoming_64 = in_float64(x, weight, bias, incoming)
    exact = row_results(REFERENCE.layer_norm, x_64, weight_64, bias_64, eps, incoming_64)
    terms = row_terms(x_64, weight_64, bias_64, eps, incoming_64)
    for result, other, wanted, size in zip(results, eager, exact, terms, strict=True):
        assert_close(result, without_overflow(other, wanted), wanted, size)
    with torch.no_grad():
        assert torch.equal(ops.layer_norm(x, weight, bias, eps), results[0])


def row_terms(x: Tensor, weight: Tensor, bias: Tensor, eps: float, incoming: Tensor) -> list[Tensor]:
    """Magnitudes of what is added for the value and the three gradients."""
    mean = x.mean(-1, keepdim=True)
    deviation = (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
    z = (x.abs() + mean.abs()) / deviation  # a value is known to a rounding of itself and of the mean
    dz = incoming.abs()
    own = weight.abs() * dz
    share = own.mean(-1, keepdim=True) + z * (own * z).mean(-1, keepdim=True)
    rows = tuple(range(x.ndim - 1))
    by_weight, by_bias = ((dz * z).sum(rows), dz.sum(rows)) if rows else (dz * z, dz)
    return [z * weight.abs() + bias.abs(), (own + share) / deviation, by_weight, by_bias]
