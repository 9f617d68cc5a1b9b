"""The compiled operations of the network's blocks, which refimpl.ops.kernel offers beside those on latents."""

import torch
from torch import Tensor

from refimpl.ops import _kernels as _kernels  # registers torch.ops.refimpl; ImportError when it is not built

_GEGLU = torch.ops.refimpl.geglu.default
_GROUP_NORM_SILU = torch.ops.refimpl.group_norm_silu.default
_LAYER_NORM = torch.ops.refimpl.layer_norm.default


def geglu(packed: Tensor) -> Tensor:
    """The gated linear unit a · GELU(b) of both halves of the last dimension, with the exact GELU (Shazeer 2020, §2).

    Computed in float32 (float64 for float64) and rounded once. For the backward pass only `packed` is kept.

    packed  [..., 2·n]  (a, b), as one projection leaves them        returns  [..., n] in packed's dtype
    Raises ValueError when the last dimension is odd, TypeError on an integer dtype.
    """
    return _GEGLU(packed)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x)): the pair in front of every 3×3 convolution (S §2.1; Wu & He 2018, eq. 1).

    Computed in float32 (float64 for float64) and rounded once, in x's memory order; the sums of a group are added in
    a fixed order. For the backward pass x and two numbers per group are kept.

    x  [B, C, H, W]        weight, bias  [C]        groups  of C / groups channels        eps  added to each variance
    returns  [B, C, H, W] in x's dtype
    Raises ValueError when shapes or devices disagree, TypeError on an integer dtype.
    """
    return _GROUP_NORM_SILU(x, weight, bias, groups, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each row normalised over its channels, the last dimension (Ba et al. 2016, eq. 4), as in transformer blocks.

    Computed in float32 (float64 for float64) and rounded once to x's dtype, under autocast too; sums are added in a
    fixed order. For the backward pass x and two numbers per row are kept.

    x  [..., C]        weight, bias  [C]        eps  added to each variance        returns  [..., C] in x's dtype
    Raises ValueError when shapes or devices disagree, TypeError on an integer dtype.
    """
    return _LAYER_NORM(x, weight, bias, eps)


# ---- Shapes and dtypes of the results, for tracing with fake tensors -------------------------------------------


def memory_order(x: Tensor) -> torch.memory_format:
    """Channels-last, or contiguous: the order that the kernels keep x in."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _check_packed(packed: Tensor) -> None:
    torch._check_value(
        packed.ndim >= 1 and packed.shape[-1] % 2 == 0,
        lambda: f"packed must have shape [..., 2·n], got {list(packed.shape)}",
    )


@torch.library.register_fake("refimpl::geglu")
def _(packed):
    _check_packed(packed)
    return packed.new_empty([*packed.shape[:-1], packed.shape[-1] // 2])


@torch.library.register_fake("refimpl::geglu_backward")
def _(grad, packed):
    _check_packed(packed)
    return packed.new_empty(packed.shape)


def _like(x: Tensor) -> Tensor:
    torch._check_value(x.ndim == 4, lambda: f"x must have shape [B, C, H, W], got {list(x.shape)}")
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_order(x))


def _check_per_channel(x: Tensor, channels: int, weight: Tensor, bias: Tensor) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        torch._check_value(
            parameter.ndim == 1 and parameter.shape[0] == channels and parameter.device == x.device,
            lambda name=name, parameter=parameter: (
                f"{name} has shape {list(parameter.shape)} on {parameter.device} and x {list(x.shape)} on "
                f"{x.device}: give one per channel"
            ),
        )


@torch.library.register_fake("refimpl::group_norm_silu")
def _(x, weight, bias, groups, eps):
    y = _like(x)
    _check_per_channel(x, x.shape[1], weight, bias)
    return y


@torch.library.register_fake("refimpl::group_norm_silu_forward")
def _(x, weight, bias, groups, eps):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = _like(x)
    _check_per_channel(x, x.shape[1], weight, bias)
    mean, deviation = (x.new_empty([x.shape[0], groups], dtype=wide) for _ in range(2))
    return y, mean, deviation


@torch.library.register_fake("refimpl::group_norm_silu_backward")
def _(grad, x, weight, bias, mean, deviation, groups, eps):
    return _like(x), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _check_rows(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    torch._check_value(x.ndim >= 1, lambda: f"x must have shape [..., C], got {list(x.shape)}")
    _check_per_channel(x, x.shape[-1], weight, bias)


@torch.library.register_fake("refimpl::layer_norm")
def _(x, weight, bias, eps):
    _check_rows(x, weight, bias)
    return x.new_empty(x.shape)


@torch.library.register_fake("refimpl::layer_norm_forward")
def _(x, weight, bias, eps):
    _check_rows(x, weight, bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, deviation = (x.new_empty(x.shape[:-1], dtype=wide) for _ in range(2))
    return x.new_empty(x.shape), mean, deviation


@torch.library.register_fake("refimpl::layer_norm_backward")
def _(grad, x, weight, bias, mean, deviation, eps):
    _check_rows(x, weight, bias)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)
