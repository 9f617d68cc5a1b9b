"""Adapted layers against the same layer with the update merged into its weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from refimpl.errors import InputError
from refimpl.model.lora.adapters import merged_weight
from refimpl.model.lora.layers import LoRAConv2d, LoRALayer, LoRALinear
from tests import strategies
from tests.tolerances import (
    BFLOAT16_ROUNDING,
    FLOAT64_ROUNDING,
    LORA_AUTOCAST_ROUNDINGS,
    LORA_ROUNDINGS,
)


def adapt(layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float = 0.0) -> LoRALayer:
    """An adapted layer whose two maps are unit normals."""
    adapted = (LoRALinear if isinstance(layer, nn.Linear) else LoRAConv2d)(layer, rank, alpha, dropout)
    nn.init.normal_(adapted.lora_down.weight)
    nn.init.normal_(adapted.lora_up.weight)
    return adapted


@given(strategies.layers_to_adapt(), st.integers(1, 4), strategies.lora_alphas())
@torch.no_grad()
def test_it_is_the_layer_with_the_update_in_its_weight(example, rank, alpha):
    layer, x = example
    adapted = adapt(layer, rank, alpha)
    down, up = adapted.lora_down.weight, adapted.lora_up.weight
    merged = adapted.plain()
    merged.weight = nn.Parameter(merged_weight(layer.weight, down, up, adapted.alpha))
    ours, wanted = adapted(x), merged(x)
    assert ours.shape == wanted.shape == layer(x).shape
    terms = layer.weight.abs().max() + adapted.alpha * up.abs().max() * down.abs().max()
    bound = float(terms * layer.weight[0].numel() * (x.abs().max() if x.numel() else 0) + 1)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=FLOAT64_ROUNDING * bound)


@given(strategies.layers_to_adapt(), st.integers(1, 4))
def test_without_an_update_it_is_the_layer_bit_for_bit(example, rank):
    layer, x = example
    adapted = adapt(layer, rank, 1.0)
    nn.init.zeros_(adapted.lora_up.weight)
    assert torch.equal(adapted(x), layer(x))
    assert torch.equal(adapted.plain()(x), layer(x))


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(5, 3, 3)], ids=["linear", "conv"])
def test_plain_and_adapted_layers_share_their_parameters_and_keys(layer):
    layer.eval()
    adapted = adapt(layer, 2, 1.0)
    assert adapted.weight is layer.weight
    assert adapted.bias is layer.bias
    assert {*adapted.state_dict()} == {*layer.state_dict(), "lora_down.weight", "lora_up.weight"}
    plain = adapted.plain()
    assert type(plain) is type(layer)
    assert plain.weight is layer.weight
    assert plain.bias is layer.bias
    assert not adapted.training
    assert not plain.training
    assert repr(plain) == repr(layer)


@torch.no_grad()
def test_maps_of_a_low_precision_layer_are_float32_and_its_output_keeps_its_dtype():
    layer = nn.Linear(64, 64).bfloat16()
    adapted = adapt(layer, 4, 1.0)
    x = torch.randn(8, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    assert adapted.lora_down.weight.dtype == adapted.lora_up.weight.dtype == torch.float32
    output = adapted(x)
    assert output.dtype == torch.bfloat16
    update = x.double() @ adapted.lora_down.weight.double().T @ adapted.lora_up.weight.double().T / 4
    exact = layer.double()(x.double()) + update
    bound = LORA_ROUNDINGS * BFLOAT16_ROUNDING * float(exact.abs().max())
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=bound)


@torch.no_grad()
def test_autocast_computes_the_maps_in_bfloat16():
    layer = nn.Linear(64, 64)
    adapted = adapt(layer, 4, 1.0)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        output = adapted(x)
    assert output.dtype == torch.bfloat16
    exact = adapted(x)
    bound = LORA_AUTOCAST_ROUNDINGS * BFLOAT16_ROUNDING * float(exact.abs().max())
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (4, 5)),
        (nn.Linear(5, 3), (4, 7, 5)),
        (nn.Conv2d(5, 3, 3), (4, 5, 6, 6)),
    ],
    ids=["rows", "tokens", "images"],
)
def test_dropout_takes_components_of_the_rank_from_each_image(layer, shape):
    adapted = adapt(layer, 6, 3.0, dropout=0.5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    full = adapted.eval()(x)
    adapted.train().kept = torch.ones(4, 6)
    torch.testing.assert_close(adapted(x), full, rtol=0, atol=0)
    adapted.kept = torch.zeros(4, 6)
    torch.testing.assert_close(adapted(x), layer(x), rtol=0, atol=0)
    kept = torch.zeros(4, 6)
    kept[2, 3] = 2.0
    adapted.kept = kept
    changed = (adapted(x) - layer(x)).flatten(1).abs().amax(dim=1) > 0
    assert changed.tolist() == [False, False, True, False]


def test_dropout_without_a_draw_for_the_batch_says_what_to_call():
    adapted = adapt(nn.Linear(5, 3), 2, 1.0, dropout=0.5)
    with pytest.raises(InputError, match=r"drawn for no rows and the batch has 4; call draw_lora_dropout"):
        adapted(torch.zeros(4, 5))
    adapted.kept = torch.ones(3, 2)
    with pytest.raises(InputError, match=r"drawn for 3 rows and the batch has 4"):
        adapted(torch.zeros(4, 5))
    assert adapted.eval()(torch.zeros(4, 5)).shape == (4, 3)


def test_a_grouped_convolution_is_refused():
    with pytest.raises(InputError, match=r"cannot adapt grouped convolutions; one has 2 groups"):
        LoRAConv2d(nn.Conv2d(4, 4, 3, groups=2), 1, 1.0, 0.0)
