"""Neighbourhoods and scaled logits against the masked softmax written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from refimpl.model import self_attention
from refimpl.model.self_attention import TILE, SelfAttention, attend, entropy_scale
from tests.tolerances import FLOAT64_ROUNDING

SIDES = st.integers(1, 2 * TILE + 1)


def qkv(cells: int, heads: int = 2, head_dim: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(cells)
    return list(torch.randn(3, 2, heads, cells, head_dim, generator=generator, dtype=dtype))


def dense(q: Tensor, k: Tensor, v: Tensor, how: SelfAttention) -> Tensor:
    """The matrix of all logits, −∞ where a key is masked out."""
    rows, columns = torch.arange(how.height), torch.arange(how.width)
    place = torch.cartesian_prod(rows, columns)
    far = (place[:, None] - place).abs().amax(-1)
    logits = how.logit_scale * q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if how.radius is not None:
        logits = logits.masked_fill(far > how.radius, -math.inf)
    return torch.softmax(logits, -1) @ v


@given(height=SIDES, width=SIDES, radius=st.integers(0, 2 * TILE), scale=st.sampled_from((0.9, 1.0, 1.2)))
def test_a_neighbourhood_is_the_masked_softmax(height: int, width: int, radius: int, scale: float) -> None:
    how = SelfAttention(height, width, scale, radius)
    q, k, v = qkv(height * width)
    assert (attend(q, k, v, how) - dense(q, k, v, how)).abs().max() <= FLOAT64_ROUNDING


@pytest.mark.parametrize("scale", [0.0, 0.9, 1.2])
def test_without_a_radius_only_the_logits_are_scaled(scale: float) -> None:
    how = SelfAttention(4, 5, scale)
    q, k, v = qkv(20)
    assert (attend(q, k, v, how) - dense(q, k, v, how)).abs().max() <= FLOAT64_ROUNDING


def test_gradients_pass_through_every_tile() -> None:
    how = SelfAttention(2 * TILE + 1, TILE + 2, 1.1, 5)
    inputs = [x.requires_grad_() for x in qkv(how.height * how.width, heads=1)]
    weight = qkv(how.height * how.width, heads=1)[1].detach().flip(2)
    ours = torch.autograd.grad((attend(*inputs, how) * weight).sum(), inputs)
    expected = torch.autograd.grad((dense(*inputs, how) * weight).sum(), inputs)
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).abs().max() <= FLOAT64_ROUNDING


def test_every_gradient_is_the_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_attention, "TILE", 2)
    inputs = [x[:1].requires_grad_() for x in qkv(15, heads=1, head_dim=2)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, SelfAttention(5, 3, 0.9, 1)), inputs)


class LargestTensor(TorchDispatchMode):
    """Records the size, in values, of the largest tensor that any operation creates."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.values = max(self.values, tensor.numel())
        return out


def test_no_tensor_grows_with_the_square_of_the_canvas() -> None:
    heads, head_dim, radius = 2, 3, 4
    for side in (40, 80):
        q, k, v = (x[:1] for x in qkv(side**2, dtype=torch.float32))
        with LargestTensor() as largest:
            attend(q, k, v, SelfAttention(side, side, 1.0, radius))
        tile = heads * TILE**2 * (TILE + 2 * radius) ** 2
        assert largest.values <= max(tile, heads * side**2 * head_dim)
        assert largest.values < side**4


def test_the_scale_grows_as_the_logarithm_of_the_tokens() -> None:
    """Exactly 1 for the training token count; otherwise √(ln N / ln T)."""
    assert [entropy_scale(n, n) for n in (2, 3, 4096, 16384)] == [1, 1, 1, 1]
    assert entropy_scale(4096**2, 4096) == math.sqrt(2)
    assert entropy_scale(65536, 4096) == pytest.approx(math.sqrt(16 / 12), rel=FLOAT64_ROUNDING)
    assert entropy_scale(256, 4096) == pytest.approx(math.sqrt(8 / 12), rel=FLOAT64_ROUNDING)
    assert entropy_scale(1, 4096) == 0  # one token attends to itself whatever the scale
    scales = [entropy_scale(n, 4096) for n in range(2, 9000, 7)]
    assert scales == sorted(scales)
