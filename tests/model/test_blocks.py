"""Residual block and resizing of the UNet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refimpl.model.blocks import Downsample, LayerNorm, ResBlock, Upsample
from tests.tensors import normal
from tests.tolerances import FLOAT64_ROUNDING


def test_residual_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 6, 5, groups=2).double()
    last = block.out_layers[3]
    nn.init.normal_(last.weight)
    x, emb = normal(2, 4, 3, 5), normal(2, 5)

    def norm_silu(h: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
        groups = h.unflatten(1, (norm.num_groups, -1))
        mean = groups.mean((2, 3, 4), keepdim=True)
        variance = groups.var((2, 3, 4), keepdim=True, correction=0)
        h = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        h = h * norm.weight[:, None, None] + norm.bias[:, None, None]
        return h / (1 + torch.exp(-h))

    first = block.in_layers[2]
    h = F.conv2d(norm_silu(x, block.in_layers[0]), first.weight, first.bias, padding=1)
    h = h + (emb @ block.emb_layers[1].weight.T + block.emb_layers[1].bias)[:, :, None, None]
    h = F.conv2d(norm_silu(h, block.out_layers[0]), last.weight, last.bias, padding=1)
    expected = F.conv2d(x, block.skip_connection.weight, block.skip_connection.bias) + h
    assert (block(x, emb) - expected).abs().max() <= FLOAT64_ROUNDING


def test_a_new_residual_block_is_its_skip() -> None:
    block = ResBlock(4, 4, 5, groups=2).double()
    x = normal(2, 4, 3, 5)
    assert torch.equal(block(x, normal(2, 5)), x)


@pytest.mark.parametrize(
    ("size", "half"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((1, 1), (1, 1)), ((2, 1), (1, 1))]
)
def test_down_rounds_up_and_up_returns_to_any_size(size: tuple[int, int], half: tuple[int, int]) -> None:
    x = normal(1, 2, *size)
    down = Downsample(2).double()(x)
    assert down.shape[2:] == half
    assert Upsample(2).double()(down, size).shape[2:] == size


def test_upsample_repeats_pixels() -> None:
    up = Upsample(1).double()
    with torch.no_grad():
        up.conv.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
        up.conv.bias.zero_()
    x = normal(1, 1, 2, 3)
    assert torch.equal(up(x, (4, 6)), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
def test_a_layer_norm_is_torchs(low: bool) -> None:
    """With its keys and its bits, as long as the backend is the reference."""
    ours, theirs = LayerNorm(6, eps=0.5), nn.LayerNorm(6, eps=0.5)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    x = normal(2, 3, 6).to(torch.bfloat16 if low else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        a, b = ours(x), theirs(x)
    assert a.dtype == b.dtype
    assert torch.equal(a, b)
