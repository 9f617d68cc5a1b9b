"""Attention and transformer blocks against their formulas written out."""

import pytest
import torch
from torch import nn

from refimpl.model.attention import GEGLU, Attention, SpatialTransformer
from tests.tensors import normal
from tests.tolerances import FLOAT64_ROUNDING


@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_softmax_of_scaled_products_per_head(cross: bool) -> None:
    channels, head_dim, width = 12, 4, 7
    attention = Attention(channels, width if cross else channels, head_dim).double()
    tokens, context = normal(2, 5, channels), normal(2, 3, width) if cross else None
    out = attention(tokens, context)
    source = tokens if context is None else context
    heads = []
    for head in range(channels // head_dim):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        q = tokens @ attention.to_q.weight[rows].T
        k = source @ attention.to_k.weight[rows].T
        v = source @ attention.to_v.weight[rows].T
        heads.append(torch.softmax(q @ k.transpose(1, 2) / head_dim**0.5, dim=-1) @ v)
    expected = torch.cat(heads, dim=-1) @ attention.to_out[0].weight.T + attention.to_out[0].bias
    assert (out - expected).abs().max() <= FLOAT64_ROUNDING


def test_geglu_gates_with_the_exact_gelu() -> None:
    layer = GEGLU(3, 8).double()
    x = normal(2, 4, 3)
    y = x @ layer.proj.weight.T + layer.proj.bias
    a, b = y[..., :8], y[..., 8:]
    gelu = b * (1 + torch.erf(b / 2**0.5)) / 2
    assert (layer(x) - a * gelu).abs().max() <= FLOAT64_ROUNDING


def filled_transformer() -> SpatialTransformer:
    torch.manual_seed(0)
    transformer = SpatialTransformer(8, 6, head_dim=4, depth=2, groups=2).double()
    nn.init.normal_(transformer.proj_out.weight)
    return transformer


def test_a_new_transformer_is_the_identity() -> None:
    x = normal(2, 8, 3, 5)
    new = SpatialTransformer(8, 6, head_dim=4, depth=1, groups=2).double()
    assert torch.equal(new(x, normal(2, 4, 6)), x)


def test_a_transformer_knows_no_positions() -> None:
    x, context = normal(2, 8, 3, 5), normal(2, 4, 6)
    transformer = filled_transformer()
    out = transformer(x, context)
    assert (out - x).abs().max() > 0.1  # it does something
    assert (transformer(x.flip(2, 3), context.flip(1)) - out.flip(2, 3)).abs().max() <= FLOAT64_ROUNDING


def test_every_gradient_is_the_derivative() -> None:
    transformer = filled_transformer()
    x, context = normal(1, 8, 2, 3).requires_grad_(), normal(1, 2, 6).requires_grad_()
    assert torch.autograd.gradcheck(transformer, (x, context))
