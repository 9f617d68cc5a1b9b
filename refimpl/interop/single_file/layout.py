"""Where the parts of SDXL are in one file, and whether each is complete (the layout of sd_xl_base_1.0.safetensors).

model.diffusion_model.…                    UNet, 1,680 tensors
first_stage_model.…                        autoencoder, 248
conditioner.embedders.0.transformer.…      CLIP-L, with transformers' names
conditioner.embedders.1.model.…            bigG, in OpenCLIP's layout (embedders.0 in the refiner's file)

A file with only a UNet or only an autoencoder may omit the prefix.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.network.clip_keys import openclip_shapes, sizes_of, tower_shapes
from refimpl.interop.network.shapes import UNETS, VAES, State, unet_config, vae_config
from refimpl.latents.config import VAEConfig
from refimpl.latents.vae import VAE
from refimpl.model.config import UNetConfig
from refimpl.model.unet import UNet
from refimpl.storage.key_report import differences, refuse, shapes_of
from refimpl.text.tower_names import PREFIX as TOWER_PREFIX

Shapes = dict[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_L_PREFIX = "conditioner.embedders.0.transformer."
CLIP_G_PREFIX = "conditioner.embedders.1.model."
REFINER_CLIP_G = "conditioner.embedders.0.model."

BARE_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
BARE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

# CLIP-L as transformers 5.6 and later name it in memory, and some tools then write it.
FLAT_CLIP_L = ("embeddings.", "encoder.", "final_layer_norm.")

# Tensors that belong to no part and are kept as they are: markers, buffers, the moving average, training leftovers.
KEPT = re.compile(
    r"v_pred|ztsnr|edm_vpred\..+|edm_mean|edm_std"
    r"|model_ema\..+"
    r"|optimizer.*|global_step|epoch|iteration|scheduler.*"
    r"|(.+\.)?position_ids|(.+\.)?logit_scale|(.+\.)?attn_mask"
    r"|conditioner\.embedders\.0\.transformer\.text_projection\.weight"
    r"|conditioner\.embedders\.([2-9]|\d\d+)\..+"
    r"|denoiser\..+|betas|alphas_cumprod.*|sqrt_.+|log_one_minus_.+|posterior_.+|lvlb_weights|logvar"
    r"|first_stage_model\.(loss|model_ema)\..+|loss\..+"
)

# What else a file whose keys start like this can be.
FOREIGN = {
    "lora_": "a LoRA; merge it into a checkpoint with `refimpl merge-lora`",
    "base_model.model.": "a LoRA in PEFT's layout; merge it into a checkpoint with `refimpl merge-lora`",
    "down_blocks.": "a UNet in diffusers' layout; give the folder it belongs to",
    "cond_stage_model.": "Stable Diffusion 1 or 2; this project knows SDXL and its refiner",
    "double_blocks.": "Flux; this project knows SDXL and its refiner",
    "joint_blocks.": "Stable Diffusion 3; this project knows SDXL and its refiner",
}


@dataclass
class Found:
    """The parts of a file, by key without the part's prefix; an empty part is not in the file."""

    unet: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)
    text_l: dict[str, Tensor] = field(default_factory=dict)
    text_g: dict[str, Tensor] = field(default_factory=dict)
    """in OpenCLIP's layout"""
    other: dict[str, Tensor] = field(default_factory=dict)
    unknown: dict[str, Tensor] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)
    """part → its prefix in this file"""


def sort_tensors(tensors: Mapping[str, Tensor]) -> Found:
    """Sort a file's tensors into parts by their prefixes; nothing is checked yet."""
    found = Found(prefixes=_prefixes(tensors))
    for key, tensor in tensors.items():
        if KEPT.fullmatch(key):
            found.other[key] = tensor
            continue
        for part, prefix in found.prefixes.items():
            bare = {"unet": BARE_UNET, "vae": BARE_VAE}.get(part, ()) if not prefix else (prefix,)
            name = key[len(prefix) :]
            full = TOWER_PREFIX + name
            if part == "text_l" and name.startswith(FLAT_CLIP_L) and prefix + full not in tensors:
                name = full
            if key.startswith(bare):
                getattr(found, part)[name] = tensor
                break
        else:
            found.unknown[key] = tensor
    return found


def _prefixes(keys: Iterable[str]) -> dict[str, str]:
    starts = {key[: len(prefix)] for key in keys for prefix in (UNET, VAE_PREFIX, CLIP_G_PREFIX)}
    return {
        "unet": UNET if UNET in starts else "",
        "vae": VAE_PREFIX if VAE_PREFIX in starts else "",
        "text_l": CLIP_L_PREFIX,
        "text_g": CLIP_G_PREFIX if CLIP_G_PREFIX in starts else REFINER_CLIP_G,
    }


def check_whole(found: Found, source: str, keep_unknown: bool) -> None:
    """Raises InputError listing every missing, unknown and misshapen tensor of all parts that the file has.

    keep_unknown  tensors of no part are put to `found.other` instead
    """
    if not (found.unet or found.vae or found.text_l or found.text_g):
        raise InputError(f"{source} holds no part of SDXL{_guess(found.unknown)}")
    if other := _other_model(found):
        raise InputError(f"{source} is not SDXL; it looks like {other}")
    expected: Shapes = {}
    actual: Shapes = {}
    for part, shapes in expected_shapes(found, source).items():
        prefix, tensors = found.prefixes[part], getattr(found, part)
        expected |= {prefix + key: shape for key, shape in shapes.items()}
        actual |= {prefix + key: tuple(value.shape) for key, value in tensors.items()}
    if keep_unknown:
        found.other |= found.unknown
        found.unknown = {}
    actual |= {key: tuple(value.shape) for key, value in found.unknown.items()}
    hint = "\n--keep-unknown keeps tensors that belong to no part as they are." if found.unknown else ""
    refuse(
        differences(expected, actual),
        f"{source} is not SDXL as published, or not whole",
        f"Copy or download it again, or name the file it was made from.{hint}",
    )
    for part in ("unet", "vae", "text_l", "text_g"):
        for key, tensor in getattr(found, part).items():
            if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
                raise InputError(
                    f"{source}: {found.prefixes[part]}{key} is stored as {tensor.dtype}; weights are read from "
                    "float16, bfloat16 and float32: use the file this one was made from"
                )


def expected_shapes(found: Found, source: str) -> dict[str, Shapes]:
    """Part → name → shape of the tensors that a part of its size must have, by key without the prefix."""
    shapes: dict[str, Shapes] = {}
    if found.unet:
        shapes["unet"] = dict(unet_shapes(_unet_or_nearest(found.unet, source)))
    if found.vae:
        shapes["vae"] = dict(vae_shapes(_vae_or_nearest(found.vae, source)))
    if found.text_l:
        shapes["text_l"] = tower_shapes(sizes_of(shapes_of(found.text_l), openclip=False))
    if found.text_g:
        shapes["text_g"] = openclip_shapes(sizes_of(shapes_of(found.text_g), openclip=True))
    return shapes


@lru_cache(maxsize=8)
def unet_shapes(config: UNetConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of every tensor of a UNet, without allocating one."""
    with torch.device("meta"):
        return tuple(shapes_of(UNet(config).state_dict()).items())


@lru_cache(maxsize=8)
def vae_shapes(config: VAEConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of every tensor of an autoencoder, without allocating one."""
    with torch.device("meta"):
        return tuple(shapes_of(VAE(config).state_dict()).items())


def _unet_or_nearest(state: State, source: str) -> UNetConfig:
    """The configuration inferred from the tensors, or the preset that most of them fit, so the rest can be named.

    Heads and groups do not matter here: no tensor's shape depends on them.
    """
    try:
        return unet_config(state, source, head_dim=1, groups=1)
    except InputError:
        return max(UNETS, key=lambda config: _fitting(state, unet_shapes(config)))


def _vae_or_nearest(state: State, source: str) -> VAEConfig:
    try:
        return vae_config(state, source, groups=1)
    except InputError:
        return max(VAES, key=lambda config: _fitting(state, vae_shapes(config)))


def _fitting(state: State, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    return sum(key in state and tuple(state[key].shape) == shape for key, shape in shapes)


def _other_model(found: Found) -> str:
    """What a file is whose UNet is not SDXL's; a list of its tensors, all of which differ, would help nobody."""
    if not found.unet or any(key.startswith("label_emb.") for key in found.unet):
        return ""
    names = [*found.unet, *found.unknown]
    return next(
        (what for start, what in FOREIGN.items() if any(name.startswith(start) for name in names)), ""
    )


def _guess(unknown: Iterable[str]) -> str:
    names = list(unknown)
    for start, what in FOREIGN.items():
        if any(name.startswith((start, f"model.diffusion_model.{start}")) for name in names):
            return f"; it looks like {what}"
    return f"; its tensors are {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ""
