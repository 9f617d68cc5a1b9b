"""The oracle of the UNet: diffusers' UNet2DConditionModel of the same shape, and where its weights come from."""

import re
from dataclasses import dataclass, replace

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.sinusoid import sinusoidal_features

SIZE_FEATURES = 8  # sinusoid features per size in these tests; 256 in SDXL
SIZES = 6
RES_KEYS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTER_KEYS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def diffusers_unet(config: UNetConfig, size_features: int = SIZE_FEATURES) -> UNet2DConditionModel:
    """diffusers' network of the same shape. It has one depth for the last level and the middle: so must config."""
    depths = config.transformer_depth
    assert depths[-1] in (0, config.middle_depth)
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        down_block_types=tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        up_block_types=tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        layers_per_block=config.res_blocks,
        attention_head_dim=tuple(
            max(width // config.head_dim, 1) for width in config.widths
        ),  # heads, in fact
        cross_attention_dim=config.context_dim,
        transformer_layers_per_block=[*(depth or 1 for depth in depths[:-1]), config.middle_depth],
        use_linear_projection=True,
        norm_num_groups=config.groups,
        addition_embed_type="text_time",
        addition_time_embed_dim=size_features,
        projection_class_embeddings_input_dim=config.vector_dim,
    )


def diffusers_key(key: str, config: UNetConfig) -> str:
    """The name in diffusers of a tensor of the published single file."""
    for ours, theirs in OUTER_KEYS.items():
        if key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    found = re.match(r"middle_block\.(\d)\.(.*)", key)
    if found:
        slot, rest = int(found[1]), found[2]
        return (
            f"mid_block.attentions.0.{rest}" if slot == 1 else f"mid_block.resnets.{slot // 2}.{_res(rest)}"
        )
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", key)
    assert found, key
    number, slot, rest = int(found[2]), int(found[3]), found[4]
    if found[1] == "input":  # level: its residual blocks, then a downsampling
        level, block = divmod(number - 1, config.res_blocks + 1)
        place = f"down_blocks.{level}"
        if block == config.res_blocks:
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    else:
        level, block = divmod(number, config.res_blocks + 1)
        place = f"up_blocks.{level}"
        if rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
    return f"{place}.attentions.{block}.{rest}" if slot == 1 else f"{place}.resnets.{block}.{_res(rest)}"


def _res(rest: str) -> str:
    name, suffix = rest.rsplit(".", 1)
    return f"{RES_KEYS[name]}.{suffix}"


def to_diffusers(state: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Every tensor under its name in diffusers."""
    return {diffusers_key(key, config): tensor for key, tensor in state.items()}


@dataclass(frozen=True)
class Inputs:
    """One call, in our arguments and in diffusers'."""

    x: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor
    sizes: Tensor
    size_features: int = SIZE_FEATURES

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same, timesteps and sizes left alone."""
        return replace(self, x=self.x.to(dtype), context=self.context.to(dtype), pooled=self.pooled.to(dtype))

    def ours(self, unet: nn.Module) -> Tensor:
        """What our network makes of it."""
        sizes = sinusoidal_features(self.sizes, self.size_features).flatten(1).to(self.pooled.dtype)
        return unet(self.x, self.t, self.context, torch.cat([self.pooled, sizes], dim=1))

    def theirs(self, unet: UNet2DConditionModel) -> Tensor:
        """What diffusers' network makes of it."""
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
    """Unit normals; timesteps with both ends among them; sizes in pixels."""
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
    """The network with its zero-initialised tensors filled, so that every part of it has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    return unet
