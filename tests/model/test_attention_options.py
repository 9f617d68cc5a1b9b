"""Self-attention options on a whole UNet: off, at the training size, away from it, and in neighbourhoods."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.model.attention import SpatialTransformer
from refimpl.model.attention_options import AttentionOptions, set_attention, using_attention
from refimpl.model.unet import UNet, UNetConfig
from tests.tolerances import NETWORK_FLOAT64

CONFIG = UNetConfig(
    channels=8,
    channel_mult=(1, 2, 2),
    transformer_depth=(1, 1, 2),
    middle_depth=1,
    res_blocks=1,
    head_dim=4,
    context_dim=6,
    vector_dim=5,
    groups=4,
)


def filled_unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).double()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.2)
    for module in unet.modules():  # logits far from flat, so that their scale shows
        if isinstance(module, SpatialTransformer):
            for block in module.transformer_blocks:
                nn.init.normal_(block.attn1.to_q.weight, std=1.0)  # type: ignore[union-attr]
    return unet


def inputs(height: int, width: int, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(batch, 4, height, width, generator=generator, dtype=torch.float64)
    t = torch.tensor([999, 17][:batch])
    context = torch.randn(batch, 3, 6, generator=generator, dtype=torch.float64)
    vector = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    return x, t, context, vector


def transformers(unet: UNet) -> list[SpatialTransformer]:
    return [module for module in unet.modules() if isinstance(module, SpatialTransformer)]


@torch.no_grad()
def test_off_is_the_default_and_changes_no_bit() -> None:
    unet, given = filled_unet(), inputs(7, 9)
    plain = unet(*given)
    assert all(transformer.level_attention is None for transformer in transformers(unet))
    set_attention(unet, AttentionOptions(train_side=32, window=2))
    assert not torch.equal(unet(*given), plain)
    set_attention(unet, AttentionOptions())
    assert torch.equal(unet(*given), plain)


@torch.no_grad()
@pytest.mark.parametrize("side", [8, 11, 13])
def test_at_the_training_size_nothing_changes(side: int) -> None:
    """On every level, including where a side is odd and its half is rounded up."""
    unet, given = filled_unet(), inputs(side, side)
    plain = unet(*given)
    set_attention(unet, AttentionOptions(train_side=side))
    assert torch.equal(unet(*given), plain)


@torch.no_grad()
@pytest.mark.parametrize("window", [12, 13, 1000])
def test_a_window_that_covers_the_canvas_changes_nothing(window: int) -> None:
    unet, given = filled_unet(), inputs(13, 6)
    plain = unet(*given)
    set_attention(unet, AttentionOptions(window=window))
    assert torch.equal(unet(*given), plain)
    set_attention(unet, AttentionOptions(window=11))
    assert not torch.equal(unet(*given), plain)


@torch.no_grad()
def test_scaled_logits_are_scaled_queries_of_self_attention_alone() -> None:
    """Another route to the same numbers: √(log_T N) of each level folded into its query weights."""
    unet, given = filled_unet(), inputs(12, 20)
    set_attention(unet, AttentionOptions(train_side=8))
    changed = unet(*given)
    set_attention(unet, AttentionOptions())
    by_hand = filled_unet()
    tokens = {0: 12 * 20, 1: 6 * 10, 2: 3 * 5}
    trained = {0: 64, 1: 16, 2: 4}
    levels = [0, 1, 2, 2, 2, 2, 1, 1, 0, 0]  # of the transformers, from the input to the output
    assert len(levels) == len(transformers(by_hand))
    for transformer, level in zip(transformers(by_hand), levels, strict=True):
        for block in transformer.transformer_blocks:
            factor = torch.tensor(tokens[level]).double().log() / torch.tensor(trained[level]).double().log()
            block.attn1.to_q.weight.mul_(factor.sqrt())  # type: ignore[union-attr]
    rounding = NETWORK_FLOAT64 * changed.abs().max()
    assert (changed - by_hand(*given)).abs().max() <= rounding
    assert (changed - unet(*given)).abs().max() > 1e6 * rounding  # it does something


@torch.no_grad()
def test_a_place_sees_no_farther_than_its_window() -> None:
    """One self-attention at level 1 sees ⌈window/2⌉ of its cells."""
    unet = filled_unet()
    set_attention(unet, AttentionOptions(window=5))
    assert [t.level_attention.radius for t in transformers(unet)][:3] == [5, 3, 2]  # type: ignore[union-attr]
    transformer = transformers(unet)[1]
    how = transformer.level_attention.on(1, 12)  # type: ignore[union-attr]
    attention: Any = transformer.transformer_blocks[0].attn1  # type: ignore[union-attr]
    tokens = inputs(2, 24)[0].flatten(2).transpose(1, 2)[:, :12].repeat(1, 1, 4)
    moved = tokens.clone()
    moved[:, 9:] += 1
    change = (attention(moved, how=how) - attention(tokens, how=how)).abs().amax((0, 2))
    assert (change[:6] == 0).all()
    assert (change[6:] > 0).all()


@pytest.mark.parametrize("options", [AttentionOptions(train_side=8), AttentionOptions(window=3)])
def test_checkpointing_changes_no_gradient(options: AttentionOptions) -> None:
    gradients = []
    for checkpointing in ("none", "cheap", "full"):
        unet = filled_unet()
        unet.set_activation_checkpointing(checkpointing)
        set_attention(unet, options)
        unet(*inputs(9, 8)).square().sum().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    for one, *others in zip(*gradients, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_a_block_of_options_ends_with_what_was_before() -> None:
    unet = filled_unet()
    set_attention(unet, AttentionOptions(window=3))
    before = [transformer.level_attention for transformer in transformers(unet)]
    with using_attention(unet, AttentionOptions()):
        assert all(transformer.level_attention is None for transformer in transformers(unet))
    assert [transformer.level_attention for transformer in transformers(unet)] == before
    with pytest.raises(InputError), using_attention(unet, AttentionOptions(train_side=2)):
        pass
    assert [transformer.level_attention for transformer in transformers(unet)] == before


def test_options_are_no_part_of_the_weights() -> None:
    unet = filled_unet()
    keys = list(unet.state_dict())
    set_attention(unet, AttentionOptions(train_side=8, window=3))
    assert list(unet.state_dict()) == keys


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "128", None])
@pytest.mark.parametrize("field", ["train_side", "window"])
def test_wrong_options_are_refused_by_name(field: str, wrong: Any) -> None:
    with pytest.raises(InputError, match=rf"AttentionOptions.{field} = {wrong!r}"):
        AttentionOptions(**{field: wrong})


@pytest.mark.parametrize("side", [1, 4])
def test_a_training_size_of_one_token_is_refused(side: int) -> None:
    with pytest.raises(InputError, match=f"train_side = {side} latent cells is one token at level"):
        set_attention(filled_unet(), AttentionOptions(train_side=side))
