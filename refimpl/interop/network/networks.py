"""Building the networks of a checkpoint and loading its weights a piece at a time (S Tab. 1)."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.architecture import architecture_of
from refimpl.latents.vae import VAE
from refimpl.model.unet import UNet
from refimpl.storage.streaming import load_into
from refimpl.text.tower_names import PREFIX

Tower = TypeVar("Tower", CLIPTextModel, CLIPTextModelWithProjection)


def unet_of(checkpoint: Checkpoint, source: str, dtype: torch.dtype | None = None) -> UNet:
    """The UNet in eval mode on the CPU.

    source  the file or folder, for messages      dtype  dtype of the weights; by default that of the first tensor
    Raises InputError when the checkpoint has no UNet, or listing every tensor that does not fit.
    """
    config = architecture_of(Checkpoint(unet=checkpoint.unet, metadata=checkpoint.metadata), source).unet
    if checkpoint.unet is None or config is None:
        raise InputError(f"{source} has no UNet; give a checkpoint that has one")
    with torch.device("meta"):
        unet = UNet(config)
    return _filled(unet, checkpoint.unet, source, dtype)


def vae_of(checkpoint: Checkpoint, source: str, dtype: torch.dtype | None = None) -> VAE:
    """The autoencoder, frozen, in eval mode on the CPU. Arguments and errors are as in `unet_of`."""
    config = architecture_of(Checkpoint(vae=checkpoint.vae, metadata=checkpoint.metadata), source).vae
    if checkpoint.vae is None or config is None:
        raise InputError(f"{source} has no autoencoder; give a checkpoint that has one")
    with torch.device("meta"):
        vae = VAE(config)
    return _filled(vae, checkpoint.vae, source, dtype).requires_grad_(False)


def towers_of(
    checkpoint: Checkpoint, source: str, dtype: torch.dtype | None = None
) -> tuple[CLIPTextModel | None, CLIPTextModelWithProjection | None]:
    """CLIP-L and bigG, frozen, in eval mode on the CPU; None for a tower that the checkpoint does not have.

    Arguments are as in `unet_of`. Raises InputError listing every tensor that does not fit.
    """
    text = Checkpoint(text_l=checkpoint.text_l, text_g=checkpoint.text_g, metadata=checkpoint.metadata)
    configs = architecture_of(text, source)
    return (
        _tower(CLIPTextModel, configs.text_l, text.text_l, source, dtype),
        _tower(CLIPTextModelWithProjection, configs.text_g, text.text_g, source, dtype),
    )


def _tower(
    kind: type[Tower],
    config: CLIPTextConfig | None,
    state: Mapping[str, Tensor] | None,
    source: str,
    dtype: torch.dtype | None,
) -> Tower | None:
    if config is None or state is None:
        return None
    with torch.device("meta"):
        tower = kind(config)
    if not any(
        key.startswith(PREFIX) for key in tower.state_dict()
    ):  # transformers 5.6 and later, for CLIP-L
        state = {key.removeprefix(PREFIX): value for key, value in state.items()}
    _filled(tower, state, source, dtype)
    for name, buffer in list(tower.named_buffers()):
        if buffer.is_meta:  # the positions' numbers, which no file needs to hold
            path, _, last = name.rpartition(".")
            numbers = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            tower.get_submodule(path).register_buffer(last, numbers, persistent=False)
    return tower.requires_grad_(False)


Network = TypeVar("Network", bound=nn.Module)


def _filled(network: Network, state: Mapping[str, Tensor], source: str, dtype: torch.dtype | None) -> Network:
    network.to(dtype or next(iter(state.values())).dtype)
    load_into(network, state, source)
    return network.eval()
