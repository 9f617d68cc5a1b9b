"""LoRA files: written as kohya's trainer does, read in every spelling, rejected with a list of all that is wrong."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.interop.lora import files as lora_files
from refimpl.interop.lora.files import LoRAFile
from refimpl.model.lora.adapters import ALPHA, DOWN, UP, add_lora, lora_state
from refimpl.model.lora.config import ATTENTION_TARGETS, TEXT_TARGETS
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.encoders import clip_bigg_config, clip_l_config
from tests import strategies
from tests.interop.lora_examples import (
    ARCHITECTURE,
    EVERYTHING,
    diffusers_spelled,
    example,
    kohya,
    lora_file,
    networks,
    peft,
)

LDM_MODULE = "input_blocks.3.1.transformer_blocks.0.attn1.to_q"
LDM_KEY = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
TEXT_KEY = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture(name="example")
def whole_example() -> LoRAFile:
    """Adapters of every kind of module of the tiny UNet and towers."""
    return example()


def assert_same(ours: LoRAFile, theirs: LoRAFile) -> None:
    for part in lora_files.PARTS:
        first, second = getattr(ours, part), getattr(theirs, part)
        assert set(first) == set(second)
        for key, value in first.items():
            assert value.dtype == second[key].dtype
            assert torch.equal(value, second[key]), key


def write(path: Path, tensors, metadata=None) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path), metadata)
    return path


@settings(max_examples=8)
@given(
    st.integers(1, 4),
    strategies.lora_alphas(),
    st.lists(st.sampled_from(EVERYTHING), min_size=1, max_size=3),
    st.sampled_from((None, torch.float32, torch.bfloat16, torch.float16)),
)
def test_a_round_trip_changes_no_bit(tmp_path_factory, rank, alpha, targets, dtype):
    path = tmp_path_factory.mktemp("round") / "lora.safetensors"
    written = lora_file(networks(rank, alpha, tuple(targets)), note="é")
    lora_files.save(written, path, dtype)
    read = lora_files.load(path, ARCHITECTURE)
    expected = {
        part: {
            key: value if dtype is None or key.endswith(ALPHA) else value.to(dtype)
            for key, value in getattr(written, part).items()
        }
        for part in lora_files.PARTS
    }
    assert_same(LoRAFile(**expected), read)
    alphas = {float(value) for key, value in read.unet.items() if key.endswith(ALPHA)}
    assert len(alphas) == 1
    assert read.metadata == {
        "note": "é",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alphas.pop()),
    }
    again = path.with_name("again.safetensors")
    lora_files.save(read, again)
    assert again.read_bytes() == path.read_bytes()


def test_keys_are_those_of_kohyas_trainer(tmp_path, example):
    path = tmp_path / "lora.safetensors"
    lora_files.save(example, path)
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        assert list(file.get_tensor(f"{LDM_KEY}.lora_down.weight").shape) == [2, 64]
        assert list(file.get_tensor(f"{LDM_KEY}.lora_up.weight").shape) == [64, 2]
        assert file.get_tensor(f"{LDM_KEY}.alpha").tolist() == 3.0
    assert {
        f"{TEXT_KEY}.lora_down.weight",
        "lora_te2_text_model_encoder_layers_2_mlp_fc1.lora_up.weight",
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj.alpha",
        "lora_unet_output_blocks_1_2_conv.lora_down.weight",
        "lora_unet_input_blocks_2_0_op.lora_up.weight",
    } <= keys
    assert len(keys) == sum(len(getattr(example, part)) for part in lora_files.PARTS)


def spelled_files(example: LoRAFile) -> dict[str, dict[str, torch.Tensor]]:
    """The same adapters as other trainers write them."""
    unet = diffusers_spelled(example.unet)
    short_l = {key.removeprefix("text_model."): value for key, value in example.text_l.items()}
    towers = {**kohya("lora_te1", example.text_l), **kohya("lora_te2", example.text_g)}
    dotted = {**peft("text_encoder.", example.text_l), **peft("text_encoder_2.", example.text_g)}
    return {
        "kohya with diffusers' names": {**kohya("lora_unet", unet), **towers},
        "kohya without text_model": {
            **kohya("lora_unet", example.unet),
            **kohya("lora_te1", short_l),
            **kohya("lora_te2", example.text_g),
        },
        "PEFT": {**peft("unet.", unet), **dotted},
        "PEFT of transformers without text_model": {
            **peft("unet.", unet),
            **peft("text_encoder.", short_l),
            **peft("text_encoder_2.", example.text_g),
        },
        "PEFT, wrapped": {**peft("base_model.model.unet.", unet), **dotted},
        "PEFT, one network at a time": {
            **peft("base_model.model.", unet),
            **peft("base_model.model.", example.text_l),
            **{key.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"): value
               for key, value in peft("text_encoder_2.", example.text_g).items()},
        },
        "linear maps as 1×1 convolutions": {
            **{key: value[:, :, None, None] if value.ndim == 2 else value
               for key, value in {**kohya("lora_unet", example.unet), **towers}.items()},
        },
        "a checkpoint's markers in it": {
            **kohya("lora_unet", example.unet),
            **towers,
            "v_pred": torch.zeros(0),
            "ztsnr": torch.zeros(0),
        },
    }  # fmt: skip


SPELLINGS = list(spelled_files(LoRAFile()))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_means_the_same_modules(tmp_path, example, spelling):
    tensors = spelled_files(example)[spelling]
    path = write(tmp_path / "lora.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert_same(example, lora_files.load(path, ARCHITECTURE))


@pytest.mark.parametrize("spelling", ["kohya", "PEFT"])
def test_a_missing_alpha_is_the_rank(tmp_path, example, spelling):
    tensors = spelled_files(example)["kohya with diffusers' names" if spelling == "kohya" else "PEFT"]
    tensors = {key: value for key, value in tensors.items() if not key.endswith("alpha")}
    read = lora_files.load(write(tmp_path / "lora.safetensors", tensors), ARCHITECTURE)
    assert {float(value) for key, value in read.unet.items() if key.endswith(ALPHA)} == {2.0}
    assert set(read.unet) == set(example.unet)


def test_a_peft_folder_is_read_with_its_settings(tmp_path, example):
    write(tmp_path / "adapter_model.safetensors", peft("base_model.model.", diffusers_spelled(example.unet)))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 0.5}')
    read = lora_files.load(tmp_path, ARCHITECTURE)
    assert float(read.unet[f"{LDM_MODULE}.{ALPHA}"]) == 0.5
    assert not read.text_l
    assert not read.text_g
    with pytest.raises(
        InputError, match=r"holds neither adapter_model\.safetensors nor pytorch_lora_weights"
    ):
        lora_files.load(tmp_path.parent / tmp_path.name / "..", ARCHITECTURE)


def test_full_size_names_resolve_without_a_network_in_memory(tmp_path):
    """Kohya's names of SDXL's own modules, in both spellings; shapes as published."""
    shapes = {
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k": (1280, 2048),
        "lora_unet_down_blocks_2_attentions_1_transformer_blocks_8_attn2_to_v": (1280, 2048),
        "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj": (5120, 640),
        "lora_unet_mid_block_attentions_0_proj_in": (1280, 1280),
        "lora_te1_text_model_encoder_layers_11_mlp_fc1": (3072, 768),
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj": (1280, 1280),
        "lora_te2_text_projection": (1280, 1280),
    }
    tensors = {}
    for name, (out, wide) in shapes.items():
        tensors |= {f"{name}.{DOWN}": torch.zeros(1, wide), f"{name}.{UP}": torch.zeros(out, 1)}
    read = lora_files.load(write(tmp_path / "lora.safetensors", tensors))
    assert {key.removesuffix(f".{DOWN}") for key in read.unet if key.endswith(DOWN)} == {
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k",
        "input_blocks.8.1.transformer_blocks.8.attn2.to_v",
        "output_blocks.5.1.transformer_blocks.1.ff.net.0.proj",
        "middle_block.1.proj_in",
    }
    assert f"text_model.encoder.layers.11.mlp.fc1.{ALPHA}" in read.text_l
    assert {f"text_projection.{UP}", f"text_model.encoder.layers.31.self_attn.out_proj.{UP}"} < set(
        read.text_g
    )


def test_every_module_of_sdxl_comes_back_from_its_file(tmp_path):
    """Everything that kohya's trainer adapts, by name and shape, at the published size and rank 1."""
    with torch.device("meta"):
        parts = {
            "unet": UNet(UNetConfig.sdxl()),
            "text_l": CLIPTextModel(clip_l_config()),
            "text_g": CLIPTextModelWithProjection(clip_bigg_config()),
        }
    for part, network in parts.items():
        add_lora(network, ATTENTION_TARGETS if part == "unet" else TEXT_TARGETS, 1, 1.0)
    states = {
        part: {key: torch.zeros_like(value, device="cpu") for key, value in lora_state(network).items()}
        for part, network in parts.items()
    }
    assert [len(state) // 3 for state in states.values()] == [722, 72, 192]
    path = tmp_path / "lora.safetensors"
    lora_files.save(LoRAFile(**states), path, torch.float16)
    with safe_open(path, "pt") as file:
        assert len({*file.keys()}) == 3 * (722 + 72 + 192)
    read = lora_files.load(path)
    for part, state in states.items():
        found = getattr(read, part)
        assert {key: value.shape for key, value in found.items()} == {
            key: value.shape for key, value in state.items()
        }


KINDS = {
    "DoRA": f"{LDM_KEY}.dora_scale",
    "DoRA ": "unet.down_blocks.1.attentions.0.proj_in.lora_magnitude_vector",
    "IA3": f"{LDM_KEY}.on_input",
    "IA3 ": "base_model.model.unet.mid_block.attentions.0.proj_in.ia3_l",
    "OFT": f"{LDM_KEY}.oft_blocks",
    "LoCon with a Tucker core": f"{LDM_KEY}.lora_mid.weight",
    "VeRA": "base_model.model.unet.conv_in.vera_lambda_b",
    "GLoRA": f"{LDM_KEY}.a1.weight",
    "full difference": f"{LDM_KEY}.diff",
    "adapter of norms": f"{LDM_KEY}.w_norm",
    "LoRA of biases": "unet.down_blocks.1.attentions.0.proj_in.lora_B.bias",
    "LoRA of embeddings": "text_encoder.text_model.embeddings.token_embedding.lora_embedding_A",
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_adapters_are_refused_by_name(tmp_path, example, kind):
    tensors = {**kohya("lora_unet", example.unet), KINDS[kind]: torch.ones(2)}
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(
        InputError, match=rf"lora\.safetensors holds {kind.strip()}: tensor {re.escape(KINDS[kind])}"
    ):
        lora_files.load(path, ARCHITECTURE)


def down_up(name: str, out: int, wide: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{name}.{DOWN}": torch.ones(rank, wide), f"{name}.{UP}": torch.ones(out, rank)}


FOREIGN = {
    "FLUX": (down_up("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072), "a LoRA for FLUX"),
    "FLUX of PEFT": (peft("transformer.", {f"single_transformer_blocks.0.attn.to_q.{DOWN}": torch.ones(2, 8)}),
                     "a LoRA for FLUX"),
    "SD 3": (down_up("lora_unet_joint_blocks_0_x_block_attn_qkv", 64, 64), "a LoRA for Stable Diffusion 3"),
    "SD 1.5": (
        {
            **down_up("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320),
            **down_up("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768),
        },
        "a LoRA for Stable Diffusion 1 or 2",
    ),
    "another size": (down_up(LDM_KEY, 640, 640), "misshapen"),
}  # fmt: skip


@pytest.mark.parametrize("network", FOREIGN)
def test_a_lora_for_another_network_is_reported_in_full(tmp_path, network):
    tensors, told = FOREIGN[network]
    path = write(tmp_path / "lora.safetensors", tensors)
    modules = {re.split(r"\.lora_", key)[0] for key in tensors}
    with pytest.raises(InputError) as error:
        lora_files.load(path, ARCHITECTURE)
    message = str(error.value)
    assert f"{path} does not fit this model; {len(modules)} of its entries differ:" in message
    assert told in message
    for module in modules:
        assert module in message


WRONG = {
    "misspelt": (
        lambda t: {**t, **down_up(LDM_KEY + "q", 64, 64)},
        f"unknown   {LDM_KEY}q; the nearest are {LDM_KEY}",
    ),
    "wrong number": (
        lambda t: {**t, **down_up(LDM_KEY.replace("3_1", "13_1"), 64, 64)},
        "lora_unet_input_blocks_13_1_transformer_blocks_0_attn1_to_q; the nearest are lora_unet_input_blocks_",
    ),
    "no LoRA's tensor": (
        lambda t: {**t, "first_stage_model.x": torch.ones(2)},
        "unknown   first_stage_model.x [2]",
    ),
    "no up": (
        lambda t: without(t, f"{LDM_KEY}.{UP}"),
        f"missing   {LDM_KEY}: the file has no lora_up.weight for it",
    ),
    "no down": (lambda t: without(t, f"{LDM_KEY}.{DOWN}"), "the file has no lora_down.weight for it"),
    "alpha alone": (
        lambda t: without(t, f"{LDM_KEY}.{UP}", f"{LDM_KEY}.{DOWN}"),
        "the file has no lora_down.weight and no lora_up.weight for it",
    ),
    "wrong width": (
        lambda t: {**t, f"{LDM_KEY}.{DOWN}": torch.ones(2, 63)},
        f"misshapen {LDM_KEY}: down [2, 63] and up [64, 2] do not fit its weight [64, 64]",
    ),
    "ranks that differ": (lambda t: {**t, f"{LDM_KEY}.{DOWN}": torch.ones(3, 64)}, f"misshapen {LDM_KEY}"),
    "rank 0": (lambda t: {**t, **down_up(LDM_KEY, 64, 64, 0)}, f"misshapen {LDM_KEY}"),
    "a scalar": (lambda t: {**t, f"{LDM_KEY}.{DOWN}": torch.tensor(1.0)}, f"misshapen {LDM_KEY}"),
    "integers": (
        lambda t: {**t, f"{LDM_KEY}.{UP}": torch.ones(64, 2, dtype=torch.int8)},
        f"unusable  {LDM_KEY}.lora_up.weight is of torch.int8",
    ),
    "alpha nan": (
        lambda t: {**t, f"{LDM_KEY}.alpha": torch.tensor(math.nan)},
        f"unusable  {LDM_KEY}.alpha [] is not one finite number",
    ),
    "alpha inf": (lambda t: {**t, f"{LDM_KEY}.alpha": torch.tensor(math.inf)}, "is not one finite number"),
    "two alphas": (lambda t: {**t, f"{LDM_KEY}.alpha": torch.ones(2)}, "alpha [2] is not one finite number"),
    "no alpha in it": (
        lambda t: {**t, f"{LDM_KEY}.alpha": torch.ones(0)},
        "alpha [0] is not one finite number",
    ),
    "alpha true": (lambda t: {**t, f"{LDM_KEY}.alpha": torch.tensor(True)}, "alpha is of torch.bool"),
    "two names of a module": (
        lambda t: {**t, **down_up("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 64, 64)},
        "repeated  unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q: another name in the file",
    ),
    "two names of a tensor": (
        lambda t: {**t, f"base_model.model.{LDM_KEY}.lora_A.weight": torch.ones(2, 64)},
        ": another key is the same tensor",
    ),
}


def without(tensors, *keys):
    return {key: value for key, value in tensors.items() if key not in keys}


@pytest.mark.parametrize("name", WRONG)
def test_every_fault_is_named(tmp_path, example, name):
    change, told = WRONG[name]
    tensors = change({**kohya("lora_unet", example.unet), **kohya("lora_te1", example.text_l)})
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(InputError) as error:
        lora_files.load(path, ARCHITECTURE)
    assert f"{path} does not fit this model; 1 of its entries differ:" in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [{}, {"v_pred": torch.zeros(0)}, {"model.diffusion_model.out.2.bias": torch.zeros(4)}],
    ids=["empty", "marker alone", "a checkpoint"],
)
def test_a_file_without_adapters_is_none(tmp_path, tensors):
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(InputError, match=r"lora\.safetensors holds no LoRA: none of its \d tensors"):
        lora_files.load(path, ARCHITECTURE)


def test_thousands_of_unknown_modules_are_listed_at_once(tmp_path):
    tensors = {
        f"lora_unet_{'abcdefgh'[k % 8]}{k}_x{'y' * (k % 97)}.alpha": torch.tensor(1.0) for k in range(3000)
    }
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(InputError, match=r"3000 of its entries differ"):
        lora_files.load(path, ARCHITECTURE)


def test_nothing_is_overwritten_and_nothing_empty_is_written(tmp_path, example):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"lora\.safetensors exists; choose another name"):
        lora_files.save(example, path)
    assert path.read_bytes() == b"mine"
    with pytest.raises(InputError, match=r"there are no adapters to write"):
        lora_files.save(LoRAFile(), tmp_path / "other.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora.safetensors"]


def test_ranks_that_differ_are_dynamic(tmp_path):
    parts = networks(2)
    parts["text_l"] = networks(1)["text_l"]
    path = tmp_path / "lora.safetensors"
    lora_files.save(lora_file(parts), path)
    metadata = lora_files.load(path, ARCHITECTURE).metadata
    assert metadata == {"ss_network_dim": "Dynamic", "ss_network_alpha": "3.0"}
    assert_same(lora_file(parts), lora_files.load(path, ARCHITECTURE))
