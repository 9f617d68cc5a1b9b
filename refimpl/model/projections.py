"""Linear layers of one input as one product: q, k and v of attention (Vaswani et al. 2017, §3.2.2).

Autograd adds up the layers' gradients by their input in passes of its own; here each product of the backward pass
adds its result to the last one's. Under autocast the casts of the weights lie side by side, so that one product makes
all outputs. The layers keep their weights under their own keys, and float32 ones are not brought side by side: at few
images that moves more than it saves.
"""

import contextlib
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from refimpl.model.casts import autocast_dtype

Joint = MutableMapping[tuple[tuple[int, int], ...], tuple[Sequence[Tensor], Tensor]]
"""Casts side by side, by the weights' ids and versions. The weights are held with them: no other takes an id."""

# Those of the steps under way, the innermost last. They are the process's, as a backward pass has threads of its own.
_kept: list[Joint] = []


@contextlib.contextmanager
def keeping_casts() -> Iterator[None]:
    """Within it, `project` casts each weight once, and anew where one was changed in place.

    Steps of several threads may end in any order.
    """
    own: Joint = {}
    _kept.append(own)
    try:
        yield
    finally:
        _kept[:] = [kept for kept in _kept if kept is not own]


def project(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """layer(x) of each layer, as if each were called, but for the order in which gradients by x are added.

    x        [..., n, in]
    layers   plain ones without a bias share their products; where one has more to it, such as an adapter or a hook,
             all are called one by one
    returns  [..., n, out] of each layer; under autocast in its dtype
    """
    # A compiler sees what is shared; torch.func takes no function of autograd's that is as quick to call; and on the
    # CPU, calling it takes longer than the passes that it spares.
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    dtype = autocast_dtype(x)
    if transformed or (dtype is None and x.is_cpu) or not all(map(_is_plain, layers)):
        return tuple(layer(x) for layer in layers)
    if has_torch_function_unary(x):
        return handle_torch_function(project, (x,), x, layers)
    weights: list[Tensor] = [layer.weight for layer in layers]  # pyright: ignore[reportAssignmentType]
    return projected(x, weights, dtype, _kept[-1] if _kept else None)


def projected(
    x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype | None, kept: Joint | None
) -> tuple[Tensor, ...]:
    """x Wᵀ for each weight [out, in].

    dtype  what autocast computes in, None without it
    kept   casts of earlier calls, to which this call's are added
    """
    joint = None
    if dtype is not None and x.dtype != torch.float64:  # which autocast leaves alone
        x = x.to(dtype)
        if any(weight.dtype != dtype for weight in weights):
            joint = _cast_side_by_side(weights, dtype, kept)
    if joint is None and not x.requires_grad:  # there is nothing to share
        return tuple(F.linear(x, weight) for weight in weights)
    return _Projections.apply(x, joint, *weights)  # pyright: ignore[reportReturnType]


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer is x Wᵀ and nothing else: no adapter, bias, hook, or weight of a kind of its own."""
    if type(layer) is not nn.Linear or type(layer.weight) not in (nn.Parameter, Tensor):
        return False
    hooks = layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks
    return layer.bias is None and not any(hooks) and "forward" not in vars(layer)


def _widths(weights: Sequence[Tensor]) -> list[int]:
    return [len(weight) for weight in weights]


@torch.no_grad()
def _cast_side_by_side(weights: Sequence[Tensor], dtype: torch.dtype, kept: Joint | None) -> Tensor:
    key = () if kept is None else tuple((id(weight), weight._version) for weight in weights)
    if kept is not None and key in kept:
        return kept[key][1]
    joint = weights[0].new_empty((sum(_widths(weights)), weights[0].shape[1]), dtype=dtype)
    for part, weight in zip(joint.split(_widths(weights)), weights, strict=True):
        part.copy_(weight)
    if kept is not None:
        kept[key] = weights, joint
    return joint


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, joint: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, joint, *weights)
        if joint is None:
            return tuple(F.linear(x, weight) for weight in weights)
        return F.linear(x, joint).split(_widths(weights), dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, joint, *weights = ctx.saved_tensors
        needs_x, _, *needs = ctx.needs_input_grad
        twice = torch.is_grad_enabled()  # to be differentiated again, by the weights themselves
        low = [w.to(x.dtype) for w in weights] if joint is None or twice else joint.split(_widths(weights))
        rows, flat = x.flatten(0, -2), [grad.flatten(0, -2) for grad in grads]
        by_x = None
        if needs_x:
            by_x = flat[0] @ low[0]
            for grad, weight in zip(flat[1:], low[1:], strict=True):
                # Within an autocast the first product may have been cast, and the next ones are too.
                adds_in_place = not twice and by_x.dtype == grad.dtype
                by_x = torch.addmm(by_x, grad, weight, out=by_x if adds_in_place else None)
            by_x = by_x.view(x.shape)
        by_weights = [
            (grad.T @ rows).to(weight.dtype) if need else None
            for grad, weight, need in zip(flat, weights, needs, strict=True)
        ]
        return by_x, None, *by_weights
