"""A checkpoint's networks compute the same as the networks they were saved from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.architecture import Architecture, noted
from refimpl.interop.network.networks import towers_of, unet_of, vae_of
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.encoders import tiny_encoders
from refimpl.text.tower_names import tower_parameters
from tests.interop.checkpoints import working


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("networks") / "model.safetensors"
    single_file.save(working(), path)
    return single_file.load(path)


def same_weights(network: nn.Module, expected: nn.Module, dtype: torch.dtype) -> bool:
    """Same names and values, all of one dtype, and all frozen or not."""
    one, two = network.state_dict(), expected.state_dict()
    return one.keys() == two.keys() and all(
        one[key].dtype == dtype and torch.equal(one[key], two[key].to(dtype)) for key in one
    )


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_networks_hold_the_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
    kept = dtype or torch.float32
    source = working()
    unet, vae = UNet(UNetConfig.tiny()), VAE(VAEConfig.tiny())
    unet.load_state_dict(dict(source.unet or {}))
    vae.load_state_dict(dict(source.vae or {}))
    assert same_weights(unet_of(checkpoint, "file", dtype), unet, kept)
    read = vae_of(checkpoint, "file", dtype)
    assert same_weights(read, vae, kept)
    assert not any(parameter.requires_grad for parameter in read.parameters())
    for tower, expected in zip(towers_of(checkpoint, "file", dtype), tiny_encoders(), strict=True):
        assert tower is not None
        assert same_weights(tower, expected, kept)
        assert not tower.training


def test_towers_encode_as_those_they_were_saved_from(checkpoint: Checkpoint) -> None:
    """Position ids are in no file, and a network built on the meta device has none of its own."""
    ids = torch.arange(77)[None] % 20
    for tower, expected in zip(towers_of(checkpoint, "file"), tiny_encoders(), strict=True):
        assert tower is not None
        assert torch.equal(tower(input_ids=ids)[0], expected(input_ids=ids)[0])


def test_absent_parts_are_named(checkpoint: Checkpoint) -> None:
    assert towers_of(replace(checkpoint, text_l=None, text_g=None), "file") == (None, None)
    with pytest.raises(InputError, match="file has no UNet"):
        unet_of(replace(checkpoint, unet=None), "file")
    with pytest.raises(InputError, match="file has no autoencoder"):
        vae_of(replace(checkpoint, vae=None), "file")


def test_notes_in_the_metadata_tell_heads_and_groups(tmp_path: Path) -> None:
    """No tensor shows them, and an unpublished size has no usual ones."""
    config = replace(UNetConfig.tiny(), channels=24, head_dim=12, groups=3)
    unet, path = UNet(config), tmp_path / "unet.safetensors"
    metadata = noted({}, Architecture(unet=config))
    single_file.save(Checkpoint(unet=unet.state_dict(), metadata=metadata), path)
    assert unet_of(single_file.load(path), "file").config == config
    single_file.save(Checkpoint(unet=unet.state_dict()), path)
    with pytest.raises(InputError, match="unusual heads or groups"):
        unet_of(single_file.load(path), "file")


def test_towers_names_are_complete() -> None:
    """A run's towers are saved with the names that a file has."""
    source = working()
    for tower, part in zip(tiny_encoders(), (source.text_l, source.text_g), strict=True):
        assert part is not None
        assert tower_parameters(tower).keys() == part.keys()
