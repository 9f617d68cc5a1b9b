"""diffusers' names against diffusers' own converters and networks, for every architecture."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from hypothesis import given, settings
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.diffusers_folder.vae_keys import current_name, vae_from_diffusers, vae_to_diffusers
from refimpl.interop.network.renaming import inverted, renamed_keys
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet, UNetConfig
from refimpl.storage import safetensors_file
from refimpl.text.encoders import tiny_configs
from tests.interop.checkpoints import same_bits, working
from tests.strategies import unet_configs, vae_configs

EARLY = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
UNETS = {"sdxl": UNetConfig.sdxl(), "refiner": UNetConfig.refiner(), "tiny": UNetConfig.tiny()}
VAES = {"sdxl": VAEConfig.sdxl(), "tiny": VAEConfig.tiny()}


def unet_state(config: UNetConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return UNet(config).state_dict()


def check_unet(config: UNetConfig) -> None:
    """Each tensor gets the name that diffusers' converter gives it, and gets its own name back."""
    state = unet_state(config)
    names = renamed_keys(state, unet_modules(config), "test")
    theirs = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()},
        {"layers_per_block": config.res_blocks, "addition_embed_type": "text_time"},
    )
    assert {name: id(state[key]) for key, name in names.items()} == {k: id(v) for k, v in theirs.items()}
    back = renamed_keys(names.values(), inverted(unet_modules(config)), "test")
    assert back == {name: key for key, name in names.items()}


@pytest.mark.parametrize("name", UNETS)
def test_unet_names_are_those_of_diffusers_converter(name: str) -> None:
    check_unet(UNETS[name])


@settings(max_examples=20)
@given(unet_configs())
def test_unet_names_of_any_shape(config: UNetConfig) -> None:
    check_unet(config)


def check_vae(config: VAEConfig, device: str = "cpu") -> None:
    with torch.device(device):
        state = VAE(config).state_dict()
    converted = vae_to_diffusers(state, config, "test")
    theirs = convert_ldm_vae_checkpoint(
        {f"first_stage_model.{key}": tensor for key, tensor in state.items()},
        {"down_block_types": config.channel_mult, "up_block_types": config.channel_mult},
    )
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in theirs.items()}
    back = vae_from_diffusers(converted, config, "test")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    if device == "cpu":
        assert all(torch.equal(converted[key], theirs[key]) for key in theirs)
        assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", VAES)
def test_vae_names_are_those_of_diffusers_converter(name: str) -> None:
    check_vae(VAES[name], "meta")


@settings(max_examples=20)
@given(vae_configs())
def test_vae_names_and_values_of_any_shape(config: VAEConfig) -> None:
    check_vae(config)


def test_vae_tensors_are_not_copied() -> None:
    config = VAEConfig.tiny()
    state = VAE(config).state_dict()
    converted = vae_to_diffusers(state, config, "test")
    pointers = {tensor.data_ptr() for tensor in state.values()}
    assert {tensor.data_ptr() for tensor in converted.values()} == pointers


def test_attention_names_of_early_diffusers_are_read() -> None:
    config = VAEConfig.tiny()
    state = VAE(config).state_dict()
    early = {
        key.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): t
        for key, t in vae_to_diffusers(state, config, "test").items()
    }
    assert any(".proj_attn." in key for key in early)
    assert {current_name(key) for key in early} == vae_to_diffusers(state, config, "test").keys()


def test_keys_without_a_place_are_all_listed() -> None:
    config = UNetConfig.tiny()
    shallow = dataclasses.replace(config, transformer_depth=(0, 0, 0))
    with pytest.raises(InputError) as caught:
        renamed_keys(unet_state(config), unet_modules(shallow), "some file")
    lost = [key for key in unet_state(config) if key.startswith(("input_blocks.3.1", "input_blocks.5.1"))]
    assert lost
    assert all(key in str(caught.value) for key in lost)
    assert "some file" in str(caught.value)


def test_two_names_of_one_tensor_are_refused() -> None:
    with pytest.raises(InputError, match=r"a\.x and b\.x are the same tensor, c\.x"):
        renamed_keys(["a.x", "b.x"], {"a": "c", "b": "c"}, "test")


@pytest.mark.parametrize(
    "key", ["", ".", "out.1.weight", "input_blocks.0.1.weight", "middle_block.3.in_layers.0.bias"]
)
def test_keys_of_nothing_are_refused(key: str) -> None:
    with pytest.raises(InputError, match="1 tensors"):
        renamed_keys([key], unet_modules(UNetConfig.tiny()), "test")


def test_towers_are_those_of_diffusers_converters(tmp_path: Path) -> None:
    """The single file's towers, read by us and by diffusers, are bitwise equal."""
    checkpoint = working()
    single_file.save(checkpoint, tmp_path / "a.safetensors")
    tensors, _ = safetensors_file.read(tmp_path / "a.safetensors")
    found = single_file.load(tmp_path / "a.safetensors")
    width = CLIPTextModelWithProjection(tiny_configs()[1])  # asked only for its width
    clip_g = convert_open_clip_checkpoint(width, tensors, prefix="conditioner.embedders.1.model.")
    for mine, theirs in ((found.text_l, convert_ldm_clip_checkpoint(tensors)), (found.text_g, clip_g)):
        assert same_bits(mine, theirs)
