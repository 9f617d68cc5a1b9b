"""A whole model of SDXL's shape that one core trains in a minute, with pixels in place of latents."""

import torch
from torch import Tensor, nn

from refimpl.diffusion.config import DiffusionConfig
from refimpl.latents.config import VAEConfig
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.model.config import UNetConfig
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet
from refimpl.text.config import TextConfig
from refimpl.text.encoders import tiny_encoders
from refimpl.text.tokenizer import tiny_tokenizer

CHANNELS = 3  # red, green, blue
SHAPE = UNetConfig(
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    channels=16,
    channel_mult=(1, 2),
    transformer_depth=(0, 1),
    middle_depth=1,
    res_blocks=1,
    head_dim=16,
    context_dim=96,
    vector_dim=64 + 6 * 256,
    groups=8,
)


class PixelSpace(VAE):
    """An autoencoder whose latents are the pixels: 1 px per cell, and nothing to train."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = VAEConfig(latent_channels=CHANNELS, channels=1, channel_mult=(1,), groups=1)

    def encode(self, images: Tensor, tile: int | None = None) -> Tensor:
        """The images themselves."""
        return images

    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """The latents themselves."""
        return latents


def small_model(diffusion: DiffusionConfig, scale_shift: ScaleShift, seed: int) -> Model:
    """A model with initial weights that are a function of the seed, and the tiny text towers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(SHAPE)
    encoder_l, encoder_g = tiny_encoders()
    text = TextConfig(towers="tiny")
    return Model(unet, PixelSpace(), scale_shift, tiny_tokenizer(), encoder_l, encoder_g, text, diffusion)
