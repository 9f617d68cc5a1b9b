"""The configuration of a network inferred from its tensors (S Tab. 1, §2.5).

The tensors' shapes determine everything except how channels are split into heads and groups, and the text towers'
activation: these are arguments, which default to the published choices.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from torch import Tensor
from transformers import CLIPTextConfig

from refimpl.errors import InputError
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.text.encoders import clip_bigg_config, clip_l_config, tiny_configs

LARGEST_SIDE = 2**20  # of a weight: a file's header may claim any, and sizes must not overflow
UNETS = (UNetConfig.sdxl(), UNetConfig.refiner(), UNetConfig.tiny())
VAES = (VAEConfig.sdxl(), VAEConfig.tiny())

State = Mapping[str, Tensor]
Config = TypeVar("Config", UNetConfig, VAEConfig)


def unet_config(
    state: State, source: str, head_dim: int | None = None, groups: int | None = None
) -> UNetConfig:
    """The configuration of a UNet with the single file's keys; head_dim and groups default to the published ones.

    Raises InputError when the tensors are not those of such a network.
    """
    channels = _side(state, "time_embed.0.weight", 1, source)
    levels: list[list[tuple[int, int]]] = [[]]  # (multiplier, depth) of each residual block
    for number in range(1, len(state)):
        stage = f"input_blocks.{number}"
        if f"{stage}.0.op.weight" in state:
            levels.append([])
        elif f"{stage}.0.in_layers.2.weight" in state:
            multiplier, rest = divmod(_side(state, f"{stage}.0.in_layers.2.weight", 0, source), channels)
            if rest:
                raise InputError(
                    f"{source}: the width of {stage} is not a multiple of the first level's {channels} channels"
                )
            levels[-1].append((multiplier, _count(state, f"{stage}.1.transformer_blocks")))
        else:
            break
    if not all(levels):
        raise InputError(f"{source}: a level of the UNet has no residual block; it is not SDXL's network")
    context = [key for key in state if key.endswith(".attn2.to_k.weight")]
    if not context:
        raise InputError(f"{source}: the UNet has no cross-attention (attn2.to_k); it is not SDXL's network")
    told = {
        "in_channels": _side(state, "input_blocks.0.0.weight", 1, source),
        "out_channels": _side(state, "out.2.weight", 0, source),
        "channels": channels,
        "channel_mult": tuple(level[0][0] for level in levels),
        "transformer_depth": tuple(level[0][1] for level in levels),
        "middle_depth": _count(state, "middle_block.1.transformer_blocks"),
        "res_blocks": len(levels[0]),
        "context_dim": _side(state, context[0], 1, source),
        "vector_dim": _side(state, "label_emb.0.0.weight", 1, source),
    }
    published = unet_choices(_built(UNetConfig, source, told, head_dim=1, groups=1))
    return _built(UNetConfig, source, told, head_dim=head_dim or published[0], groups=groups or published[1])


def vae_config(state: State, source: str, groups: int | None = None) -> VAEConfig:
    """The configuration of an autoencoder with the single file's keys; errors are as in `unet_config`."""
    keys = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(_count(state, "encoder.down"))]
    widths = [_side(state, key, 0, source) for key in keys]
    if not widths:
        raise InputError(f"{source}: the autoencoder has no encoder.down; it is not SDXL's, or incomplete")
    channels = math.gcd(*widths)
    told = {
        "image_channels": _side(state, "encoder.conv_in.weight", 1, source),
        "latent_channels": _side(state, "post_quant_conv.weight", 0, source),
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "res_blocks": _count(state, "encoder.down.0.block"),
    }
    published = vae_groups(_built(VAEConfig, source, told, groups=1))
    return _built(VAEConfig, source, told, groups=groups or published)


def clip_config(
    state: State, source: str, heads: int | None = None, activation: str | None = None
) -> CLIPTextConfig:
    """The configuration of a text tower with transformers' names; with a projection, it is of bigG's kind.

    Raises InputError when the tensors are not those of such a tower.
    """
    projected = "text_projection.weight" in state
    tokens, positions = (f"text_model.embeddings.{name}_embedding.weight" for name in ("token", "position"))
    vocabulary, width = (_side(state, tokens, axis, source) for axis in (0, 1))
    published = clip_choices(width, projected)
    heads = heads or published[0]
    if width % heads:
        raise InputError(f"{source}: {heads} attention heads do not divide the text tower's {width} channels")
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_side(state, "text_model.encoder.layers.0.mlp.fc1.weight", 0, source),
        projection_dim=_side(state, "text_projection.weight", 0, source) if projected else width,
        num_hidden_layers=_count(state, "text_model.encoder.layers"),
        num_attention_heads=heads,
        max_position_embeddings=_side(state, positions, 0, source),
        hidden_act=activation or published[1],
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0 if projected else vocabulary - 1,
    )


def unet_choices(config: UNetConfig) -> tuple[int, int]:
    """(head_dim, groups) of the preset with these tensor shapes, else of SDXL."""
    free = ("head_dim", "groups", "in_channels", "out_channels")
    same = [preset for preset in UNETS if _without(preset, free) == _without(config, free)]
    preset = (same or [UNetConfig()])[0]
    return preset.head_dim, preset.groups


def vae_groups(config: VAEConfig) -> int:
    """Number of groups of the preset with these tensor shapes, else of SDXL."""
    free = ("groups", "image_channels", "latent_channels")
    same = [preset for preset in VAES if _without(preset, free) == _without(config, free)]
    return (same or [VAEConfig()])[0].groups


def clip_choices(width: int, projected: bool) -> tuple[int, str]:
    """(heads, activation) of the published or tiny tower of this width, else 64 channels per head."""
    presets = ((clip_l_config(), clip_bigg_config()), tiny_configs())
    same = [towers[projected] for towers in presets if towers[projected].hidden_size == width]
    if same:
        return same[0].num_attention_heads, same[0].hidden_act
    return max(width // 64, 1), presets[0][projected].hidden_act


def _without(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in names}


def _built(kind: type[Config], source: str, told: dict[str, Any], **untold: Any) -> Config:
    try:
        return kind(**told, **untold)
    except InputError as error:
        raise InputError(
            f"{source}: {error}. Either this is not SDXL's kind of network, or it is split into unusual heads or "
            "groups, which the tensors do not show: a diffusers folder gives them in its config.json, and a file "
            "written by this program in its metadata"
        ) from error


def _side(state: State, key: str, axis: int, source: str) -> int:
    if key not in state:
        raise InputError(f"{source}: {key} is missing; this is not a part of SDXL, or it is incomplete")
    shape = state[key].shape
    if len(shape) <= axis or not 1 <= shape[axis] <= LARGEST_SIDE:
        raise InputError(f"{source}: {key} has the shape {list(shape)}, which no part of SDXL has")
    return shape[axis]


def _count(state: State, prefix: str) -> int:
    """Number of distinct indices that follow a prefix in the keys."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for found in map(pattern.match, state) if found})
