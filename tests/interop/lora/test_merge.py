"""A LoRA merged into a checkpoint's tensors gives the outputs of the adapted networks."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.lora.merge import merge_into_checkpoint
from refimpl.model.lora.adapters import DOWN, merge_lora
from refimpl.text.encoders import penultimate_state, tiny_encoders
from refimpl.text.tower_names import tower_parameters
from tests.interop.lora_examples import CONFIG, EVERYTHING, example, lora_file, networks, unet
from tests.model.diffusers_unet import inputs
from tests.tensors import relative_error
from tests.tolerances import NETWORK_FLOAT32

KEY = "input_blocks.3.1.transformer_blocks.0.attn1.to_q"


def checkpoint(dtype: torch.dtype = torch.float32) -> Checkpoint:
    """The tiny networks without adapters."""
    encoder_l, encoder_g = tiny_encoders()
    parts = {
        "unet": unet().state_dict(),
        "text_l": tower_parameters(encoder_l),
        "text_g": tower_parameters(encoder_g),
    }
    tensors = {
        name: {key: value.detach().clone().to(dtype) for key, value in part.items()}
        for name, part in parts.items()
    }
    return Checkpoint(**tensors, vae={"decoder.conv_in.weight": torch.ones(1)}, metadata={"a": "b"})


@settings(max_examples=4)
@given(
    st.integers(1, 4),
    st.sampled_from((0.25, 1.0, 7.0)),
    st.lists(st.sampled_from(EVERYTHING), min_size=1, max_size=3),
)
@torch.no_grad()
def test_the_merged_unet_gives_what_the_adapted_one_gives(rank, alpha, targets):
    adapted = networks(rank, alpha, tuple(targets))
    merged = merge_into_checkpoint(checkpoint(), lora_file(adapted))
    network = unet(seed=1)
    network.load_state_dict(dict(merged.unet))
    call = inputs(CONFIG, 6, 5)
    wanted = call.ours(adapted["unet"])
    assert relative_error(call.ours(network), wanted) <= NETWORK_FLOAT32
    assert relative_error(call.ours(unet()), wanted) > NETWORK_FLOAT32


@torch.no_grad()
def test_merged_towers_give_what_the_adapted_ones_give():
    adapted = networks()
    merged = merge_into_checkpoint(checkpoint(), lora_file(adapted))
    ids = torch.randint(2, 50, (2, 77), generator=torch.Generator().manual_seed(0))
    for part, plain in zip(("text_l", "text_g"), tiny_encoders(1), strict=True):
        for name, parameter in tower_parameters(plain).items():
            parameter.copy_(getattr(merged, part)[name])
        wanted = penultimate_state(adapted[part], ids)
        assert relative_error(penultimate_state(plain, ids), wanted) <= NETWORK_FLOAT32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_adapted_weights_change_and_each_keeps_its_dtype(dtype):
    before, adapted = checkpoint(dtype), networks()
    merged = merge_into_checkpoint(before, lora_file(adapted))
    for part in ("unet", "text_l", "text_g"):
        old, new, state = getattr(before, part), getattr(merged, part), getattr(lora_file(adapted), part)
        assert list(new) == list(old)
        assert all(value.dtype == dtype for value in new.values())
        changed = {key for key, value in new.items() if not torch.equal(value, old[key])}
        assert changed == {key.replace(DOWN, "weight") for key in state if key.endswith(DOWN)}
    assert merged.vae is before.vae
    assert merged.metadata is before.metadata


@torch.no_grad()
def test_it_is_what_merging_the_networks_gives_bit_for_bit():
    adapted = networks()
    merged = merge_into_checkpoint(checkpoint(), lora_file(adapted))
    for part, network in adapted.items():
        merge_lora(network)
        state = network.state_dict() if part == "unet" else tower_parameters(network)
        assert all(torch.equal(value, getattr(merged, part)[key]) for key, value in state.items())


def test_strength_scales_the_update():
    lora, before = example(), checkpoint(torch.float64)
    weight = before.unet[f"{KEY}.weight"]
    once, twice, back = (
        merge_into_checkpoint(before, lora, strength).unet[f"{KEY}.weight"] for strength in (1.0, 2.0, -1.0)
    )
    torch.testing.assert_close(twice - weight, 2 * (once - weight))
    torch.testing.assert_close(back - weight, weight - once)
    unchanged = merge_into_checkpoint(before, lora, 0.0)
    assert all(torch.equal(value, before.unet[key]) for key, value in unchanged.unet.items())


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(InputError, match=r"strength (nan|inf) must be finite"):
        merge_into_checkpoint(checkpoint(), LoRAFile(), strength)


def test_what_does_not_fit_is_refused_by_name():
    lora, whole = example(), checkpoint()
    with pytest.raises(InputError, match=r"x\.safetensors adapts text_l, which the checkpoint does not have"):
        merge_into_checkpoint(replace(whole, text_l=None), lora, source="x.safetensors")
    lacking = {key: value for key, value in whole.unet.items() if key != f"{KEY}.weight"}
    with pytest.raises(
        InputError, match=r"\(unet\): input_blocks\.3\S+ with down .* which has no such weight"
    ):
        merge_into_checkpoint(replace(whole, unet=lacking), lora)
    other = {**whole.unet, f"{KEY}.weight": torch.ones(64, 63)}
    with pytest.raises(
        InputError, match=r"which has \[64, 63\]; use the checkpoint that the LoRA was trained"
    ):
        merge_into_checkpoint(replace(whole, unet=other), lora)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9], ids=str)
def test_weights_that_would_not_be_finite_are_refused(value):
    lora = example()
    bad = LoRAFile(unet={**lora.unet, f"{KEY}.{DOWN}": torch.full((2, 64), value)})
    with pytest.raises(InputError, match=rf"\(unet\): {KEY}\.weight would not be finite in torch\.float16"):
        merge_into_checkpoint(checkpoint(torch.float16), bad)
