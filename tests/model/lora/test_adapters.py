"""LoRA on whole networks: what is adapted, what is trained, and the weights after merging."""

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.diffusion.philox import draw_key
from refimpl.errors import InputError
from refimpl.model.lora.adapters import (
    adaptable_layers,
    adapted_layers,
    add_lora,
    load_lora_state,
    lora_state,
    merge_lora,
)
from refimpl.model.lora.config import ATTENTION_TARGETS, TEXT_TARGETS, LoRAConfig
from refimpl.model.lora.dropout import draw_lora_dropout
from refimpl.model.unet import UNet, UNetConfig
from refimpl.tables import from_table, to_table
from refimpl.text.encoders import clip_bigg_config, clip_l_config, penultimate_state, tiny_encoders
from tests import strategies
from tests.interop.lora_examples import fill
from tests.model.diffusers_unet import inputs, trained_looking
from tests.model.test_unet import SMALL
from tests.tensors import relative_error
from tests.tolerances import NETWORK_BFLOAT16_FACTOR, NETWORK_FLOAT32, NETWORK_FLOAT64, STANDARD_ERRORS

CONV_TARGETS = ("*.in_layers.2", "*.op", "*.conv", "*.skip_connection")


def plain_unet(config: UNetConfig = SMALL) -> UNet:
    """A small deterministic network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trained_looking(UNet(config))


def adapted_unet(config: UNetConfig = SMALL, targets=(*ATTENTION_TARGETS, *CONV_TARGETS), **options) -> UNet:
    """A small deterministic network with adapters that change its output."""
    unet = plain_unet(config)
    add_lora(unet, targets, **{"rank": 3, "alpha": 2.0, **options})
    return fill(unet)


def test_the_default_targets_are_the_722_maps_of_sdxls_transformers():
    with torch.device("meta"):
        unet = UNet(UNetConfig.sdxl())
    names = add_lora(unet, ATTENTION_TARGETS, 8, 4.0)
    kinds = Counter(re.sub(r".*(transformer_blocks\.\d+|blocks?(\.\d+)+)\.", "", name) for name in names)
    blocks = 2 * 2 + 2 * 10 + 10 + 3 * 10 + 3 * 2  # down, middle, up (S Tab. 1)
    assert blocks == 70
    attention = {f"attn{k}.to_{part}": blocks for k in (1, 2) for part in ("q", "k", "v", "out.0")}
    assert kinds == {
        **attention,
        "ff.net.0.proj": blocks,
        "ff.net.2": blocks,
        "proj_in": 11,
        "proj_out": 11,
    }
    assert len(names) == len(set(names)) == 722 == len(adapted_layers(unet))
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{way}.weight" for name in names for way in ("down", "up")}


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    [
        (CLIPTextModel, clip_l_config(), 12 * 6),
        (CLIPTextModelWithProjection, clip_bigg_config(), 32 * 6),
    ],
    ids=["clip_l", "bigg"],
)
def test_text_targets_are_the_maps_of_the_towers_layers(kind, config, count):
    with torch.device("meta"):
        tower = kind(config)
    names = add_lora(tower, TEXT_TARGETS, 8, 4.0)
    assert len(names) == count
    assert names[0] == "text_model.encoder.layers.0.self_attn.k_proj"  # whatever transformers calls it


@settings(max_examples=15)
@given(
    strategies.unet_configs(),
    strategies.lora_targets(),
    st.integers(1, 4),
    st.floats(0.125, 8, width=32),
    st.integers(0, 2**63 - 1),
)
@torch.no_grad()
def test_merged_weights_equal_the_adapted_forward_pass(config, targets, rank, alpha, seed):
    unet = trained_looking(
        UNet(replace(config, transformer_depth=(*config.transformer_depth[:-1], 1)))
    ).double()
    call = inputs(config, 5, 3).to(torch.float64)
    before, plain = call.ours(unet), {key: value.clone() for key, value in unet.state_dict().items()}
    sizes = [layer.weight.shape for layer in adaptable_layers(unet).values()]
    rank = min(rank, *(min(shape[0], math.prod(shape[1:])) for shape in sizes))
    names = add_lora(unet, targets, rank, alpha, seed=seed)
    assert relative_error(call.ours(unet), before) <= NETWORK_FLOAT64  # up is 0; memory layouts may differ
    fill(unet)
    adapted = call.ours(unet)
    merge_lora(unet)
    assert relative_error(call.ours(unet), adapted) <= NETWORK_FLOAT64
    state = unet.state_dict()
    assert list(state) == list(plain)
    changed = {key for key, value in state.items() if not torch.equal(value, plain[key])}
    assert changed == {f"{name}.weight" for name in names}
    assert not adapted_layers(unet)


@torch.no_grad()
def test_text_towers_merge_to_their_adapted_states():
    ids = torch.randint(2, 50, (2, 77), generator=torch.Generator().manual_seed(0))
    for tower in tiny_encoders():
        plain = {key: value.clone() for key, value in tower.state_dict().items()}
        before = penultimate_state(tower, ids)
        add_lora(tower, TEXT_TARGETS, 2, 1.0)
        assert torch.equal(penultimate_state(tower, ids), before)
        adapted = penultimate_state(fill(tower), ids)
        assert relative_error(adapted, before) > NETWORK_FLOAT32
        merge_lora(tower)
        assert relative_error(penultimate_state(tower, ids), adapted) <= NETWORK_FLOAT32
        assert list(tower.state_dict()) == list(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@torch.no_grad()
def test_merging_keeps_the_weights_dtype_and_rounds_once(dtype):
    network = nn.Sequential(nn.Linear(16, 16)).to(dtype)
    add_lora(network, ["0"], 4, 2.0)
    fill(network)
    layer = adapted_layers(network)["0"]
    assert layer.lora_up.weight.dtype == torch.promote_types(dtype, torch.float32)
    wide = layer.weight.double() + 0.5 * layer.lora_up.weight.double() @ layer.lora_down.weight.double()
    merge_lora(network)
    merged = network[0].weight
    assert merged.dtype == dtype
    error = (merged.double() - wide).abs().max() / wide.abs().max()
    assert error <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_merged_low_precision_weights_are_those_of_float32_rounded(dtype):
    network = nn.Sequential(nn.Linear(32, 32)).to(dtype)
    add_lora(network, ["0"], 4, 2.0)
    fill(network)
    layer = adapted_layers(network)["0"]
    wide = layer.weight.float() + 0.5 * (layer.lora_up.weight @ layer.lora_down.weight)
    merge_lora(network)
    assert torch.equal(network[0].weight, wide.to(dtype))


def test_the_first_draw_is_a_function_of_the_seed_and_the_module_alone():
    torch.manual_seed(5)
    untouched = torch.random.get_rng_state()
    first = plain_unet()
    other = plain_unet()
    torch.random.set_rng_state(untouched)
    add_lora(first, ["*.to_q"], 3, 1.0, seed=7)
    assert torch.equal(torch.random.get_rng_state(), untouched)
    add_lora(other, ["*.attn2.*", "*.to_q"], 3, 1.0, seed=7)
    ours, theirs = lora_state(first), lora_state(other)
    assert set(ours) < set(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    downs = [value for key, value in theirs.items() if key.endswith("lora_down.weight")]
    assert len({tuple(down.flatten().tolist()) for down in downs}) == len(downs)
    third = plain_unet()
    add_lora(third, ["*.to_q"], 3, 1.0, seed=8)
    assert not any(
        torch.equal(value, ours[key])
        for key, value in lora_state(third).items()
        if key.endswith("down.weight")
    )


@pytest.mark.parametrize("layer", [nn.Linear(300, 200), nn.Conv2d(40, 200, 3)], ids=["linear", "conv"])
def test_down_is_uniform_within_one_over_the_root_of_its_inputs(layer):
    network = nn.Sequential(layer)
    add_lora(network, ["0"], 100, 1.0)
    state = lora_state(network)
    assert not state["0.lora_up.weight"].any()
    down = state["0.lora_down.weight"].double() * math.sqrt(layer.weight[0].numel())
    assert down.abs().max() <= 1
    error = STANDARD_ERRORS / math.sqrt(down.numel())
    assert abs(float(down.mean())) <= error
    assert abs(float(down.square().mean()) - 1 / 3) <= error


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_gradients(dropout):
    call, found = inputs(SMALL, 5, 3), []
    for checkpointing in ("none", "cheap", "full"):
        unet = adapted_unet(dropout=dropout)
        unet.set_activation_checkpointing(checkpointing)
        draw_lora_dropout(unet, draw_key(0, torch.arange(2), 0, 0))
        call.ours(unet).square().sum().backward()
        found.append(gradients(unet))
    plain, *recomputed = found
    assert set(plain) == {key for key in lora_state(unet) if not key.endswith("alpha")}
    for name, gradient in plain.items():
        for gradients_again in recomputed:
            torch.testing.assert_close(gradients_again[name], gradient, rtol=0, atol=0)


def test_an_optimizer_step_moves_the_adapters_and_nothing_else():
    unet = plain_unet()
    add_lora(unet, ATTENTION_TARGETS, 2, 1.0)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):  # the first step moves up, which starts at 0; the second moves down as well
        inputs(SMALL, 5, 3).ours(unet).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {key for key, value in unet.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in lora_state(unet) if not key.endswith("alpha")}


def test_it_compiles_without_graph_breaks():
    unet = adapted_unet(UNetConfig.tiny(), dropout=0.25)
    call = inputs(UNetConfig.tiny(), 4, 4, size_features=256)
    draw_lora_dropout(unet, draw_key(0, torch.arange(2), 0, 0))
    stage = unet.input_blocks[3]
    emb = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    arguments = (torch.randn(2, 32, 4, 4), emb, call.context, (4, 4))
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), stage(*arguments))


def test_data_parallel_training_sees_only_the_adapters(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        unet, alone = adapted_unet(), adapted_unet()
        call = inputs(SMALL, 5, 3)
        call.ours(DistributedDataParallel(unet)).square().sum().backward()
    finally:
        dist.destroy_process_group()
    call.ours(alone).square().sum().backward()
    expected = gradients(alone)
    assert set(expected) == set(gradients(unet))
    for name, gradient in gradients(unet).items():
        torch.testing.assert_close(gradient, expected[name])


@torch.no_grad()
def test_bfloat16_errs_no_more_than_the_merged_network():
    call = inputs(SMALL, 6, 6)
    adapted, merged = adapted_unet(), adapted_unet()
    merge_lora(merged)
    exact = call.ours(merged)
    low = call.to(torch.bfloat16)
    theirs = relative_error(low.ours(merged.bfloat16()).float(), exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(call.ours(adapted).float(), exact) <= NETWORK_BFLOAT16_FACTOR * theirs
    for name, layer in adapted.named_modules():  # bfloat16 weights under float32 adapters
        if not name.endswith(("lora_down", "lora_up")):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()
    output = low.ours(adapted)
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), exact) <= NETWORK_BFLOAT16_FACTOR * theirs


def test_dropout_of_a_row_depends_on_its_key_alone():
    unet, call = adapted_unet(dropout=0.5), inputs(SMALL, 5, 3, batch=3)
    keys = draw_key(3, torch.tensor([11, 12, 13]), 4, 0)
    draw_lora_dropout(unet, keys)
    masks = {name: layer.kept for name, layer in adapted_layers(unet).items()}
    with torch.no_grad():
        together = call.ours(unet)
    draw_lora_dropout(unet, keys[[2, 0]])
    for name, layer in adapted_layers(unet).items():
        assert torch.equal(layer.kept, masks[name][[2, 0]])
    values = torch.cat([mask.flatten() for mask in masks.values()])
    assert set(values.tolist()) == {0.0, 2.0}
    assert abs(float(values.mean()) - 1) <= STANDARD_ERRORS / math.sqrt(len(values))
    assert not torch.equal(*list(masks.values())[:2])  # layers differ
    with torch.no_grad():
        assert torch.equal(call.ours(unet.eval()), call.ours(adapted_unet().eval()))
        assert not torch.equal(call.ours(unet), together)


def test_a_network_without_dropout_draws_none():
    unet = adapted_unet()
    draw_lora_dropout(unet, draw_key(0, torch.arange(2), 0, 0))
    assert all(layer.kept is None for layer in adapted_layers(unet).values())


def test_a_state_goes_to_another_network_with_the_same_adapters():
    ours, theirs = adapted_unet(alpha=0.1), fill(adapted_unet(alpha=7.0), seed=1)
    load_lora_state(theirs, lora_state(ours), "adapters.safetensors")
    call = inputs(SMALL, 5, 3)
    with torch.no_grad():
        assert torch.equal(call.ours(theirs), call.ours(ours))
    first, second = lora_state(ours), lora_state(theirs)
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_state_that_does_not_fit_is_reported_in_full():
    unet = adapted_unet(targets=["*.attn1.to_q"])
    state = lora_state(unet)
    removed, changed, *_ = state
    state["input_blocks.4.1.transformer_blocks.0.attn1.to_qq.alpha"] = state.pop(removed)
    state[changed] = torch.zeros(2, 2)
    with pytest.raises(InputError) as error:
        load_lora_state(unet, state, "adapters.safetensors")
    message = str(error.value)
    assert message.startswith("adapters.safetensors does not fit these adapters; 3 of its tensors differ:")
    assert f"missing   {removed} [3, 16]" in message
    assert (
        "unknown   input_blocks.4.1.transformer_blocks.0.attn1.to_qq.alpha [3, 16] (the nearest are "
        in message
    )
    assert f"misshapen {changed}: the file has [2, 2], the network needs [16, 3]" in message


def test_merging_without_adapters_changes_nothing():
    unet = plain_unet()
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    merge_lora(unet)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


WRONG = {
    "rank 0": ({"rank": 0}, r"LoRA rank 0 must be a whole number of at least 1"),
    "negative rank": ({"rank": -3}, r"LoRA rank -3 must be"),
    "fractional rank": ({"rank": 2.5}, r"LoRA rank 2\.5 must be"),
    "True": ({"rank": True}, r"LoRA rank True must be"),
    "large rank": (
        {"rank": 17},
        r"LoRA rank 17 exceeds that of \S+attn1\.to_q, whose weight \[16, 16\] has rank at most 16; lower the rank",
    ),
    "alpha 0": ({"alpha": 0.0}, r"LoRA alpha 0\.0 must be positive and finite"),
    "negative alpha": ({"alpha": -1.0}, r"LoRA alpha -1\.0 must be positive"),
    "alpha nan": ({"alpha": math.nan}, r"LoRA alpha nan must be positive"),
    "alpha inf": ({"alpha": math.inf}, r"LoRA alpha inf must be positive"),
    "alpha beyond float32": ({"alpha": 1e300}, r"LoRA alpha 1e\+300 must be positive and finite in float32"),
    "alpha below float32": ({"alpha": 1e-300}, r"LoRA alpha 1e-300 must be positive"),
    "dropout 1": ({"dropout": 1.0}, r"LoRA dropout 1\.0 must be at least 0 and below 1"),
    "negative dropout": ({"dropout": -0.1}, r"LoRA dropout -0\.1 must be"),
    "dropout nan": ({"dropout": math.nan}, r"LoRA dropout nan must be"),
    "no targets": ({"targets": ()}, r"LoRA targets are empty; name at least one pattern"),
    "unknown target": (
        {"targets": ["*.attn1.to_q", "*.attn3.to_q"]},
        r"target '\*\.attn3\.to_q' matches no module; the nearest are input_blocks\.3\.1\.\S+\.attn1\.to_q",
    ),
    "misspelt module": (
        {"targets": ["input_block.5.1.proj_in"]},
        r"target 'input_block\.5\.1\.proj_in' matches no module; the nearest are input_blocks\.5\.1\.proj_in",
    ),
    "wrong case": ({"targets": ["*.Attn1.to_q"]}, r"target '\*\.Attn1\.to_q' matches no module"),
    "a norm": ({"targets": ["*.norm1"]}, r"target '\*\.norm1' matches no module"),
    "empty pattern": ({"targets": [""]}, r"target '' matches no module"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_adapted_is_refused_before_anything_changes(name):
    options, message = WRONG[name]
    unet = UNet(SMALL)
    arguments = {"targets": ["*.attn1.to_q"], "rank": 2, "alpha": 1.0, **options}
    with pytest.raises(InputError, match=message):
        add_lora(unet, **arguments)
    assert list(unet.state_dict()) == list(UNet(SMALL).state_dict())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_adapters_are_not_adapted_again():
    unet = adapted_unet()
    with pytest.raises(InputError, match=r"has LoRA adapters already; merge them"):
        add_lora(unet, ["*.norm1"], 1, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, r"lora\.rank -1 must be a whole number of at least 1"),
        ({"rank": 4, "alpha": math.nan}, r"lora\.alpha nan must be positive"),
        ({"rank": 4, "dropout": 1.5}, r"lora\.dropout 1\.5 must be"),
        ({"rank": 4, "targets": ()}, r"lora\.targets and lora\.text_targets are both empty"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        LoRAConfig(**options)


@pytest.mark.parametrize(
    "config", [LoRAConfig(), LoRAConfig(4, 0.5, (), TEXT_TARGETS, 0.25)], ids=["off", "towers alone"]
)
def test_settings_survive_the_file(config):
    assert from_table(LoRAConfig, to_table(config), "config") == config
