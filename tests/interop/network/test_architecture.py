"""Configurations inferred from tensors: every one is recovered, and anything else is rejected."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.architecture import (
    METADATA_KEY,
    Architecture,
    architecture_of,
    noted,
)
from refimpl.interop.network.shapes import unet_config, vae_config
from refimpl.latents.vae import VAEConfig
from refimpl.model.unet import UNetConfig
from refimpl.text.encoders import clip_bigg_config, clip_l_config, tiny_configs
from tests.interop.checkpoints import TINY, shapes_only
from tests.strategies import unet_configs, vae_configs

PUBLISHED = Architecture(UNetConfig.sdxl(), VAEConfig.sdxl(), clip_l_config(), clip_bigg_config())


def same_towers(a: Architecture, b: Architecture) -> bool:
    pairs = ((a.text_l, b.text_l), (a.text_g, b.text_g))
    return all((x and x.to_dict()) == (y and y.to_dict()) for x, y in pairs)


@pytest.mark.parametrize("architecture", [PUBLISHED, TINY], ids=["published", "tiny"])
def test_presets_are_told_without_notes(architecture: Architecture) -> None:
    checkpoint = shapes_only(architecture)
    found = architecture_of(checkpoint, "test")
    assert (found.unet, found.vae) == (architecture.unet, architecture.vae)
    assert same_towers(found, architecture)
    assert noted({"title": "x"}, found) == {"title": "x"}


def test_the_refiner_is_told() -> None:
    checkpoint = shapes_only(Architecture(unet=UNetConfig.refiner(), text_g=clip_bigg_config()))
    found = architecture_of(checkpoint, "test")
    assert found.unet == UNetConfig.refiner()
    assert (found.vae, found.text_l) == (None, None)


def test_an_inpainting_network_keeps_the_preset_s_heads() -> None:
    config = dataclasses.replace(UNetConfig.tiny(), in_channels=9)
    assert architecture_of(shapes_only(Architecture(unet=config)), "test").unet == config


@settings(max_examples=15)
@given(unet_configs(), vae_configs())
def test_any_shape_is_told_with_its_notes(unet: UNetConfig, vae: VAEConfig) -> None:
    architecture = Architecture(unet=unet, vae=vae)
    metadata = noted({METADATA_KEY: "an old one", "title": "x"}, architecture)
    assert metadata["title"] == "x"
    checkpoint = shapes_only(architecture, metadata)
    found = architecture_of(checkpoint, "test")
    assert found.unet == unet
    assert found.vae is not None
    # the unit of the widths matters only to the configuration
    assert found.vae.widths == vae.widths
    assert dataclasses.replace(found.vae, channels=vae.channels, channel_mult=vae.channel_mult) == vae


def test_towers_of_another_kind_are_told_with_their_notes() -> None:
    text_l, text_g = (type(config)(**config.to_dict()) for config in tiny_configs())
    text_l.num_attention_heads, text_g.hidden_act = 8, "gelu_new"
    architecture = Architecture(text_l=text_l, text_g=text_g)
    metadata = noted({}, architecture)
    assert same_towers(architecture_of(shapes_only(architecture, metadata), "test"), architecture)


def test_shapes_that_need_notes_say_so() -> None:
    config = dataclasses.replace(UNetConfig.tiny(), channels=16, head_dim=16)
    with pytest.raises(InputError, match=r"groups = 32 does not divide.*metadata"):
        architecture_of(shapes_only(Architecture(unet=config)), "some file")


@pytest.mark.parametrize(
    "notes",
    [
        "{",
        "[]",
        "7",
        '{"unet_heads": 4}',
        '{"unet_groups": 0}',
        '{"unet_groups": "8"}',
        '{"vae_groups": 3}',
        "[" * 10**5,
    ],
)
def test_broken_notes_are_refused(notes: str) -> None:
    with pytest.raises(InputError, match="some file"):
        architecture_of(shapes_only(TINY, {METADATA_KEY: notes}), "some file")


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def told(state: dict[str, Tensor]) -> UNetConfig | None:
    return architecture_of(Checkpoint(unet=state), "some file").unet


@pytest.mark.parametrize(
    "missing",
    ["time_embed.0.weight", "attn2.to_k", "input_blocks.1.0", "middle_block.1", "out.2", "label_emb", "."],
)
def test_parts_that_are_no_sdxl_unet_are_refused(missing: str) -> None:
    state = without(dict(shapes_only(TINY).unet or {}), missing)
    with pytest.raises(InputError, match="some file"):
        told(state)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("time_embed.0.weight", ()),
        ("time_embed.0.weight", (128,)),
        ("time_embed.0.weight", (128, 0)),
        ("time_embed.0.weight", (0, 2**40)),
        ("time_embed.0.weight", (128, 33)),
        ("input_blocks.1.0.in_layers.2.weight", ()),
        ("input_blocks.1.0.in_layers.2.weight", (33, 32, 3, 3)),
        ("out.2.weight", (0, 32)),
        ("out.2.weight", (2**40, 0)),
    ],
)
def test_impossible_shapes_are_refused(key: str, shape: tuple[int, ...]) -> None:
    state = dict(shapes_only(TINY).unet or {})
    state[key] = torch.empty(shape, device="meta")
    with pytest.raises(InputError, match="some file"):
        told(state)


def test_huge_numbers_in_keys_count_once() -> None:
    state = dict(shapes_only(Architecture(unet=UNetConfig.sdxl())).unet or {})
    state["middle_block.1.transformer_blocks.99999999.norm1.weight"] = torch.empty(1280, device="meta")
    assert told(state) == dataclasses.replace(UNetConfig.sdxl(), middle_depth=11)


def test_published_choices_are_arguments_too() -> None:
    unet = dict(shapes_only(TINY).unet or {})
    assert unet_config(unet, "test", head_dim=16, groups=4) == dataclasses.replace(
        UNetConfig.tiny(), head_dim=16, groups=4
    )
    vae = dict(shapes_only(TINY).vae or {})
    assert vae_config(vae, "test", groups=4).groups == 4
    assert json.loads(
        noted({}, Architecture(vae=dataclasses.replace(VAEConfig.tiny(), groups=4)))[METADATA_KEY]
    )
