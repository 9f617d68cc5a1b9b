"""Single files that are refused, each with its reason."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.single_file.layout import Found, check_whole, sort_tensors
from refimpl.storage import safetensors_file
from tests.interop.single_file.test_read_write import CLIP_G, CLIP_L, UNET, VAE


def test_every_tensor_that_differs_is_listed(changed) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[UNET + "out.2.bais"] = tensors.pop(UNET + "out.2.bias")
        tensors[VAE + "quant_conv.weight"] = torch.ones(8, 8)
        del tensors[CLIP_L + "text_model.final_layer_norm.bias"]
        tensors[CLIP_G + "transformer.resblocks.0.attn.in_proj_weight"] = torch.ones(64, 64)
        tensors["model.difusion_model.out.0.bias"] = torch.ones(32)

    with pytest.raises(InputError) as error:
        single_file.load(changed(spoil))
    message = str(error.value)
    for line in (
        f"missing   {UNET}out.2.bias [4]",
        f"unknown   {UNET}out.2.bais [4] (the nearest is {UNET}out.2.bias)",
        f"misshapen {VAE}quant_conv.weight: the file has [8, 8], the network needs [8, 8, 1, 1]",
        f"missing   {CLIP_L}text_model.final_layer_norm.bias [32]",
        f"misshapen {CLIP_G}transformer.resblocks.0.attn.in_proj_weight: the file has [64, 64], "
        "the network needs [192, 64]",
        "unknown   model.difusion_model.out.0.bias [32]",
    ):
        assert line in message
    assert "6 of its tensors differ" in message
    assert "--keep-unknown" in message


def test_swapped_embeddings_are_no_smaller_tower(changed) -> None:
    """With vocabulary and positions swapped it still describes a tower, but not one with CLIP's 77 positions."""
    one, two = CLIP_G + "token_embedding.weight", CLIP_G + "positional_embedding"
    path = changed(lambda t: t.update({one: t[two], two: t[one]}))
    with pytest.raises(
        InputError, match=r"misshapen .*positional_embedding: the file has .* needs \[77, 64\]"
    ):
        single_file.load(path)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (CLIP_L + "text_model.embeddings.token_embedding.weight", (0, 32)),
        (CLIP_G + "token_embedding.weight", (0, 64)),
        (CLIP_G + "text_projection", (64, 0)),
    ],
)
def test_a_tower_of_nothing_is_none(key: str, shape: tuple[int, ...], changed) -> None:
    path = changed(lambda tensors: tensors.update({key: torch.empty(shape)}))
    with pytest.raises(
        InputError, match=rf"misshapen {re.escape(key)}: the file has {re.escape(str(list(shape)))}"
    ):
        single_file.load(path)


@pytest.mark.parametrize(
    "key", [UNET + "time_embed.0.weight", VAE + "encoder.conv_in.weight", UNET + "out.2.weight"]
)
@pytest.mark.parametrize("shape", [None, (), (0, 2**40), (7, 11), (2, 2, 2, 2, 2)])
def test_the_tensors_that_tell_the_shape_are_missed_too(
    key: str, shape: tuple[int, ...] | None, whole: Path
) -> None:
    tensors, _ = safetensors_file.read(whole)
    tensors.pop(key)
    if shape is not None:
        tensors[key] = torch.empty(shape)
    with pytest.raises(InputError, match=f"(missing   |misshapen ){key}"):
        check_whole(sort_tensors(tensors), "file", keep_unknown=False)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "looks like a LoRA; merge it"),
        ("base_model.model.x.lora_A.weight", "LoRA in PEFT's layout"),
        ("down_blocks.0.resnets.0.conv1.weight", "UNet in diffusers' layout"),
        ("cond_stage_model.transformer.x", "Stable Diffusion 1 or 2"),
        ("model.diffusion_model.double_blocks.0.x", "looks like Flux"),
        ("double_blocks.0.x", "Flux"),
        ("something.else", "its tensors are something.else"),
    ],
)
def test_other_files_are_named(key: str, message: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match=message):
        single_file.load(tmp_path / "x.safetensors")


def test_nothing_at_all_is_named() -> None:
    with pytest.raises(InputError, match=r"file holds no part of SDXL$"):
        check_whole(Found(), "file", keep_unknown=False)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_weights_of_other_dtypes_are_refused(dtype: torch.dtype, whole: Path, tmp_path: Path) -> None:
    tensors, _ = safetensors_file.read(whole)
    tensors[UNET + "out.0.bias"] = torch.zeros(32).to(dtype)
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(
        InputError, match=r"out\.0\.bias is stored as torch\.\w+; weights are read from float16"
    ):
        single_file.load(tmp_path / "x.safetensors")


def test_a_broken_scale_shift_names_file_and_key(whole: Path, tmp_path: Path) -> None:
    tensors, _ = safetensors_file.read(whole)
    path = tmp_path / "x.safetensors"
    for text in ("{", "[1]", json.dumps({"mean": [0], "std": [0]})):
        safetensors_file.write(path, tensors, {"refimpl.scale_shift": text})
        with pytest.raises(InputError, match=r"x\.safetensors: metadata refimpl\.scale_shift: "):
            single_file.load(path)
