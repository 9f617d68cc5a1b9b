"""The oracle of the UNet: diffusers' UNet2DConditionModel of the same shape, and where its weights come from."""

from dataclasses import dataclass, replace

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from refimpl.interop.diffusers_folder.configs import unet_table
from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.network.renaming import renamed_keys
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.sinusoid import sinusoidal_features

SIZE_FEATURES = 8  # sinusoid features per size in these tests; 256 in SDXL
SIZES = 6


def diffusers_unet(config: UNetConfig, size_features: int = SIZE_FEATURES) -> UNet2DConditionModel:
    """diffusers' network of the same shape. It uses one depth for the last level and the middle, as config must."""
    table = {**unet_table(config), "addition_time_embed_dim": size_features}
    return UNet2DConditionModel.from_config(table)


def to_diffusers(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Every tensor under its diffusers name."""
    names = renamed_keys(state, unet_modules(config), "test")
    return {names[key]: tensor for key, tensor in state.items()}


@dataclass(frozen=True)
class Inputs:
    """One call, with our arguments and with diffusers'."""

    x: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor
    sizes: Tensor
    size_features: int = SIZE_FEATURES

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same call with timesteps and sizes unchanged."""
        return replace(self, x=self.x.to(dtype), context=self.context.to(dtype), pooled=self.pooled.to(dtype))

    def ours(self, unet: nn.Module) -> Tensor:
        """Our network's output for it."""
        sizes = sinusoidal_features(self.sizes, self.size_features).flatten(1).to(self.pooled.dtype)
        return unet(self.x, self.t, self.context, torch.cat([self.pooled, sizes], dim=1))

    def theirs(self, unet: UNet2DConditionModel) -> Tensor:
        """diffusers' network's output for it."""
        added = {"text_embeds": self.pooled, "time_ids": self.sizes}
        return unet(self.x, self.t, self.context, added_cond_kwargs=added).sample


def inputs(
    config: UNetConfig,
    height: int,
    width: int,
    batch: int = 2,
    tokens: int = 7,
    size_features: int = SIZE_FEATURES,
) -> Inputs:
    """Unit normals; timesteps including both ends; sizes in pixels."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    return Inputs(
        x=torch.randn(batch, config.in_channels, height, width, generator=generator),
        t=torch.linspace(999, 0, batch).round().long(),
        context=torch.randn(batch, tokens, config.context_dim, generator=generator),
        pooled=torch.randn(batch, config.vector_dim - SIZES * size_features, generator=generator),
        sizes=torch.randint(0, 2048, (batch, SIZES), generator=generator),
        size_features=size_features,
    )


def trained_looking(unet: UNet, seed: int = 0) -> UNet:
    """The network with its zero-initialised tensors filled in, so that every part of it has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    return unet
