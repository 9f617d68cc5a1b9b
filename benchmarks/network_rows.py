"""The operations in the network's blocks as rows of op_rows.py: value and gradients, on tensors of the latents' size.

geglu takes both halves side by side; group_norm_silu takes the latents' values as 64 channels in 32 groups, and
layer_norm as H tokens of 4·W channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.shapes import Inputs
from refimpl.ops import load_ops
from tests.ops import network_checks

REFERENCE, KERNEL = load_ops("reference"), load_ops("kernel")
CHANNELS, GROUPS, EPS = 64, 32, 1e-5
COLUMNS = {
    "geglu": ("eager", "compile", "kernel"),
    "group_norm_silu": ("eager", "compile", "kernel"),
    "layer_norm": ("eager", "compile", "kernel"),
}


def packed_of(x: Inputs) -> Tensor:
    """The input of geglu, [B, 4, H, 2·W]."""
    return torch.cat([x.x0, x.eps], dim=-1).requires_grad_()


def norm_of(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, 64, H / 4, W / 4], weight and bias [64] of group_norm_silu."""
    batch, _, height, width = x.x0.shape
    return _with_parameters(x.x0.reshape(batch, CHANNELS, height // 4, width // 4), CHANNELS)


def tokens_of(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, H, 4·W], weight and bias [4·W] of layer_norm."""
    batch, channels, height, width = x.x0.shape
    return _with_parameters(x.x0.reshape(batch, height, channels * width), channels * width)


def _with_parameters(x: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = torch.linspace(-1, 1, 2 * channels, device=x.device).chunk(2)
    return x.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()


def assert_agreement(x: Inputs) -> None:
    """The checks of the test suite on these very tensors."""
    image, weight, bias = norm_of(x)
    network_checks.check_geglu(KERNEL, packed_of(x), x.eps)
    incoming = x.eps.reshape(image.shape)
    network_checks.check_group_norm_silu(KERNEL, image, weight, bias, GROUPS, EPS, incoming)
    tokens, weight, bias = tokens_of(x)
    network_checks.check_layer_norm(KERNEL, tokens, weight, bias, EPS, x.eps.reshape(tokens.shape))


def rows(x: Inputs) -> dict[str, dict[str, Callable[[], object]]]:
    """The columns of each operation."""
    packed, norm, tokens = packed_of(x), norm_of(x), tokens_of(x)
    gated_gradient, norm_gradient = x.eps, x.eps.reshape(norm[0].shape)
    token_gradient = x.eps.reshape(tokens[0].shape)

    # Functions of their own for torch.compile, which share no cache entry with eager calls.
    def gated(packed: Tensor) -> Tensor:
        return REFERENCE.geglu(packed)

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return REFERENCE.group_norm_silu(x, weight, bias, GROUPS, EPS)

    def normed_rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return REFERENCE.layer_norm(x, weight, bias, EPS)

    compiled_gated = torch.compile(gated, fullgraph=True, dynamic=False)
    compiled_normed = torch.compile(normed, fullgraph=True, dynamic=False)
    compiled_rows = torch.compile(normed_rows, fullgraph=True, dynamic=False)

    def of_geglu(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(packed), packed, gated_gradient)

    def of_norm(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*norm), norm, norm_gradient)

    def of_tokens(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*tokens), tokens, token_gradient)

    return {
        "geglu": {
            "eager": of_geglu(gated),
            "compile": of_geglu(compiled_gated),
            "kernel": of_geglu(KERNEL.geglu),
        },
        "group_norm_silu": {
            "eager": of_norm(normed),
            "compile": of_norm(compiled_normed),
            "kernel": of_norm(lambda x, weight, bias: KERNEL.group_norm_silu(x, weight, bias, GROUPS, EPS)),
        },
        "layer_norm": {
            "eager": of_tokens(normed_rows),
            "compile": of_tokens(compiled_rows),
            "kernel": of_tokens(lambda x, weight, bias: KERNEL.layer_norm(x, weight, bias, EPS)),
        },
    }
