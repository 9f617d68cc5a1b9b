"""The autoencoder's module names in the single file and in diffusers, and the shapes of its attention (S §2.4).

The single file numbers the decoder's levels like the encoder's, by resolution; diffusers numbers them in the order in
which they run. In the attention, the single file has 1×1 convolutions where diffusers has linear layers, with the
same values in the same order.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from refimpl.interop.network.renaming import inverted, renamed_keys
from refimpl.latents.config import VAEConfig

ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
EARLY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""diffusers' names from before 2023, which published folders still have"""
LINEAR = r"(en|de)coder\.mid_block\.attentions\.0\.(to_[qkv]|to_out\.0)\.weight"


def vae_modules(config: VAEConfig) -> dict[str, str]:
    """Single-file module name → diffusers module name, one to one, for the levels and blocks of `config`."""
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels = len(config.channel_mult)
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for number in (0, 1):
            modules |= _res_block(f"{half}.mid.block_{number + 1}", f"{half}.mid_block.resnets.{number}")
        for ours, theirs in ATTENTION.items():
            modules[f"{half}.mid.attn_1.{ours}"] = f"{half}.mid_block.attentions.0.{theirs}"
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for block in range(config.res_blocks):
            modules |= _res_block(f"encoder.down.{level}.block.{block}", f"{down}.resnets.{block}")
        for block in range(config.res_blocks + 1):
            modules |= _res_block(f"decoder.up.{level}.block.{block}", f"{up}.resnets.{block}")
        if level < levels - 1:
            modules[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        if level > 0:
            modules[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
    return modules


def vae_to_diffusers(state: Mapping[str, Tensor], config: VAEConfig, source: str) -> dict[str, Tensor]:
    """Every tensor with its name and shape in diffusers; no value is copied or changed.

    Raises InputError for keys that this architecture does not have.
    """
    names = renamed_keys(state, vae_modules(config), source)
    return {
        names[key]: tensor.flatten(1) if re.fullmatch(LINEAR, names[key]) and tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }


def vae_from_diffusers(state: Mapping[str, Tensor], config: VAEConfig, source: str) -> dict[str, Tensor]:
    """The inverse of `vae_to_diffusers`."""
    names = renamed_keys(state, inverted(vae_modules(config)), source)
    return {
        names[key]: tensor[:, :, None, None] if _is_linear(names[key]) and tensor.ndim == 2 else tensor
        for key, tensor in state.items()
    }


def current_name(key: str) -> str:
    """diffusers' current name of an autoencoder tensor whose name may be from before 2023."""
    found = re.fullmatch(r"((?:en|de)coder\.mid_block\.attentions\.0\.)(\w+)(\.\w+)", key)
    return f"{found[1]}{EARLY_ATTENTION.get(found[2], found[2])}{found[3]}" if found else key


def _is_linear(ours: str) -> bool:
    return re.fullmatch(r"(en|de)coder\.mid\.attn_1\.(q|k|v|proj_out)\.weight", ours) is not None


def _res_block(ours: str, theirs: str) -> dict[str, str]:
    same = {f"{ours}.{name}": f"{theirs}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
    return {**same, f"{ours}.nin_shortcut": f"{theirs}.conv_shortcut"}
