"""config.json of the UNet, the autoencoder and the text towers in a diffusers folder (S Tab. 1)."""

import math
from typing import Any

from transformers import CLIPTextConfig

from refimpl.errors import InputError
from refimpl.interop.diffusers_folder.fields import (
    Table,
    check_fixed,
    named,
    number,
    numbers,
    spread,
    strings,
)
from refimpl.latents.config import VAEConfig
from refimpl.latents.scale_shift import SDXL_DEFAULT, SDXL_FACTOR, ScaleShift
from refimpl.model.config import UNetConfig
from refimpl.text.config import SIZE_FEATURES

WRITER_VERSION = "0.35.0"
"""the diffusers version whose fields these are; diffusers reads the configs of its older and newer versions"""

UNET_NEEDED = {"addition_embed_type": "text_time", "use_linear_projection": True}
"""fields in which diffusers' defaults are not SDXL"""
UNET_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
"""fields that would change what the network computes; if absent, diffusers uses these values"""
VAE_FIXED = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
SAMPLE_SIZE = 128  # latent cells: diffusers' pipelines draw 1024 px unless told otherwise
ACTIVATIONS = ("gelu", "quick_gelu")


def unet_table(config: UNetConfig) -> dict[str, Any]:
    """config.json of diffusers' UNet2DConditionModel.

    Raises InputError for a shape that diffusers does not have.
    """
    depths = config.transformer_depth
    if config.channel_mult[0] != 1:
        raise InputError(
            f"UNet: channel_mult {config.channel_mult} starts above 1; diffusers has as many sinusoid features as "
            "channels in its first level. Keep the single file"
        )
    if depths[-1] not in (0, config.middle_depth):
        raise InputError(
            f"UNet: {depths[-1]} transformer blocks in the last level and {config.middle_depth} in the middle; "
            "diffusers has one number for both. Keep the single file"
        )
    kinds = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    heads = [max(width // config.head_dim, 1) for width in config.widths]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": WRITER_VERSION,
        **UNET_FIXED,
        **UNET_NEEDED,
        "addition_time_embed_dim": SIZE_FEATURES,
        "attention_head_dim": heads,  # so named in diffusers; it is their number
        "block_out_channels": list(config.widths),
        "cross_attention_dim": config.context_dim,
        "down_block_types": kinds,
        "in_channels": config.in_channels,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.groups,
        "num_attention_heads": None,
        "out_channels": config.out_channels,
        "projection_class_embeddings_input_dim": config.vector_dim,
        "sample_size": SAMPLE_SIZE,
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), config.middle_depth],
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "upcast_attention": None,
    }


def unet_from_table(table: Table, source: str) -> UNetConfig:
    """The configuration of a UNet from its config.json.

    source  the file, for messages
    Raises InputError naming a field that does not describe SDXL's kind of network.
    """
    check_fixed(table, UNET_FIXED, UNET_NEEDED, "UNet2DConditionModel", source)
    widths = numbers(table, "block_out_channels", source)
    kinds = strings(table, "down_block_types", len(widths), source)
    ups = strings(table, "up_block_types", len(widths), source)
    wanted = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    if ups != wanted or not {*kinds} <= {"DownBlock2D", "CrossAttnDownBlock2D"}:
        raise InputError(
            f"{source}: down_block_types {kinds} with up_block_types {ups} are not SDXL's: each level must be "
            "DownBlock2D or CrossAttnDownBlock2D, and the up blocks must be the down blocks reversed"
        )
    layers = spread(table, "transformer_layers_per_block", 1, len(widths), source)
    name = "num_attention_heads" if table.get("num_attention_heads") else "attention_head_dim"
    heads = spread(table, name, 8, len(widths), source)
    attentive = [kind.startswith("CrossAttn") for kind in kinds]
    with_heads = [(width, n) for width, n, has in zip(widths, heads, attentive, strict=True) if has]
    with_heads.append((widths[-1], heads[-1]))  # the middle
    head_dims = {width / n for width, n in with_heads}
    if len(head_dims) > 1 or any(width % n for width, n in with_heads):
        raise InputError(
            f"{source}: {name} {heads} with widths {widths} give heads of different widths; SDXL's are all equal"
        )
    rest = [width for width in widths if width % widths[0]]
    if rest:
        raise InputError(f"{source}: block_out_channels {widths} are not multiples of the first; SDXL's are")
    depths = [n if has else 0 for n, has in zip(layers, attentive, strict=True)]
    return named(
        source,
        UNetConfig,
        in_channels=number(table, "in_channels", source),
        out_channels=number(table, "out_channels", source),
        channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        transformer_depth=tuple(depths),
        middle_depth=layers[-1],
        res_blocks=number(table, "layers_per_block", source, 2),
        head_dim=int(head_dims.pop()),
        context_dim=number(table, "cross_attention_dim", source),
        vector_dim=number(table, "projection_class_embeddings_input_dim", source),
        groups=number(table, "norm_num_groups", source, 32),
    )


def vae_table(config: VAEConfig, scale_shift: ScaleShift) -> dict[str, Any]:
    """config.json of diffusers' AutoencoderKL, including the scaling of its latents.

    force_upcast is true, as published: the published weights overflow in float16.
    """
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": WRITER_VERSION,
        **VAE_FIXED,
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.groups,
        "out_channels": config.image_channels,
        "sample_size": SAMPLE_SIZE * config.factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **_scale_fields(scale_shift),
    }


def _scale_fields(scale_shift: ScaleShift) -> dict[str, Any]:
    """A single factor, which every tool reads, if that is exact; else mean and std per channel (N App. B)."""
    factor = SDXL_FACTOR if scale_shift == SDXL_DEFAULT else 1 / scale_shift.std[0]
    if math.isfinite(factor):
        plain = ScaleShift.from_factor(factor, scale_shift.channels)
        if plain.to_json() == scale_shift.to_json():  # as text: −0 is equal to 0, and another number
            return {"scaling_factor": factor, "latents_mean": None, "latents_std": None}
    return scale_shift.to_diffusers()


def vae_from_table(table: Table, source: str) -> tuple[VAEConfig, ScaleShift]:
    """The configuration and the scale-and-shift of an autoencoder from its config.json.

    Raises InputError naming a field that does not describe SDXL's kind of network.
    """
    check_fixed(table, VAE_FIXED, {}, "AutoencoderKL", source)
    widths = numbers(table, "block_out_channels", source)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        kinds = strings(table, field, len(widths), source)
        if {*kinds} != {kind}:
            raise InputError(f"{source}: {field} {kinds} are not SDXL's, which are {kind} throughout")
    unit = math.gcd(*widths)
    config = named(
        source,
        VAEConfig,
        image_channels=number(table, "in_channels", source, 3),
        latent_channels=number(table, "latent_channels", source, 4),
        channels=unit,
        channel_mult=tuple(width // unit for width in widths),
        res_blocks=number(table, "layers_per_block", source, 1),
        groups=number(table, "norm_num_groups", source, 32),
    )
    scales = {"scaling_factor": 0.18215, **table}  # diffusers' default, that of Stable Diffusion 1
    scale_shift = named(source, ScaleShift.from_diffusers, config=scales, channels=config.latent_channels)
    if scale_shift.channels != config.latent_channels:
        raise InputError(
            f"{source}: latents_mean and latents_std of {scale_shift.channels} channels do not fit latents of "
            f"{config.latent_channels}"
        )
    return config, scale_shift


def text_table(config: CLIPTextConfig, projected: bool) -> dict[str, Any]:
    """config.json of a text tower."""
    names = (
        "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_factor",
        "initializer_range", "intermediate_size", "layer_norm_eps", "max_position_embeddings", "model_type",
        "num_attention_heads", "num_hidden_layers", "pad_token_id", "projection_dim", "vocab_size",
    )  # fmt: skip
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return {"architectures": [kind], **{name: getattr(config, name) for name in names}}


def heads_and_activation(table: Table, source: str) -> tuple[int, str]:
    """The number of heads and the activation from a text tower's config.json, which its tensors do not show."""
    kind = table.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise InputError(f"{source}: model_type {kind!r:.80} is not a CLIP text tower")
    activation = table.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise InputError(f"{source}: hidden_act {activation!r:.80} is not {' or '.join(ACTIVATIONS)}")
    return number(table, "num_attention_heads", source, 8), activation
