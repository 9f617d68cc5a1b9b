"""The weights of each part of a diffusers folder: read with the single file's names, written with diffusers'."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig

from refimpl.errors import InputError
from refimpl.interop.diffusers_folder.configs import heads_and_activation, unet_from_table, vae_from_table
from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.diffusers_folder.vae_keys import (
    current_name,
    vae_from_diffusers,
    vae_to_diffusers,
)
from refimpl.interop.diffusers_folder.weights import read_json, read_weights
from refimpl.interop.network.architecture import with_text_model
from refimpl.interop.network.clip_keys import PROJECTION, sizes_of, tower_shapes
from refimpl.interop.network.renaming import inverted, renamed_keys
from refimpl.interop.network.shapes import clip_config
from refimpl.interop.single_file.layout import CLIP_L_PREFIX, unet_shapes
from refimpl.latents.config import VAEConfig
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.model.config import UNetConfig
from refimpl.storage import safetensors_file
from refimpl.storage.key_report import differences, refuse, shapes_of

CONFIG = "config.json"
NETWORK_STEM = "diffusion_pytorch_model"
TOWER_STEM = "model"
POSITION_IDS = "text_model.embeddings.position_ids"
"""the buffer 0 … 76, which older files contain and no model reads"""

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


def read_unet(folder: Path, variant: str | None) -> tuple[State, UNetConfig]:
    """The UNet with the single file's keys, memory-mapped, and its configuration.

    Raises InputError when a file is missing or broken, or listing every tensor that does not match config.json.
    """
    config = unet_from_table(read_json(folder / CONFIG), str(folder / CONFIG))
    state, source = read_weights(folder, NETWORK_STEM, variant)
    blocks = sum(config.res_blocks * (1 + depth) for depth in config.transformer_depth) + config.middle_depth
    _check_blocks(blocks, state, source)
    modules = unet_modules(config)
    shapes = dict(unet_shapes(config))
    names = renamed_keys(shapes, modules, source)
    _check_whole({names[key]: shape for key, shape in shapes.items()}, state, source)
    names = renamed_keys(state, inverted(modules), source)
    return {names[key]: tensor for key, tensor in state.items()}, config


def read_vae(folder: Path, variant: str | None) -> tuple[State, VAEConfig, ScaleShift]:
    """The autoencoder with the single file's keys, its configuration and scale-and-shift; errors as `read_unet`."""
    config, scale_shift = vae_from_table(read_json(folder / CONFIG), str(folder / CONFIG))
    found, source = read_weights(folder, NETWORK_STEM, variant)
    state = _renamed(found, {key: current_name(key) for key in found}, source)
    _check_blocks(len(config.widths) * config.res_blocks, state, source)
    with torch.device("meta"):
        expected = vae_to_diffusers(VAE(config).state_dict(), config, source)
    _check_whole({key: tuple(value.shape) for key, value in expected.items()}, state, source)
    return vae_from_diffusers(state, config, source), config, scale_shift


def read_tower(folder: Path, variant: str | None, projected: bool) -> tuple[State, CLIPTextConfig, State]:
    """A text tower with transformers' names and the prefix `text_model.`, which files of transformers ≥ 5.6 may lack.

    projected  whether it is bigG, which ends in a projection
    returns    its tensors, its configuration, and what is kept for a lossless round trip, by single-file key
    Errors are as in `read_unet`.
    """
    heads, activation = heads_and_activation(read_json(folder / CONFIG), str(folder / CONFIG))
    found, source = read_weights(folder, TOWER_STEM, variant)
    state = _renamed(found, {key: with_text_model(key) for key in found}, source)
    extra = {key: state.pop(key) for key in (POSITION_IDS,) if key in state}
    if not projected and PROJECTION in state:
        extra[PROJECTION] = state.pop(PROJECTION)
    sizes = sizes_of({key: tuple(tensor.shape) for key, tensor in state.items()}, openclip=False)
    if projected:
        known = state[PROJECTION].shape if PROJECTION in state else ()
        sizes = replace(sizes, projection=known[0] if len(known) == 2 else sizes.width)
    _check_whole(tower_shapes(sizes), state, source)
    kept = {} if projected else {CLIP_L_PREFIX + key: tensor for key, tensor in extra.items()}
    return state, clip_config(state, source, heads, activation), kept


def write_network(
    folder: Path,
    table: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    stem: str,
    source: str,
) -> None:
    """Write config.json and one safetensors file, tensor by tensor; with `dtype` None, each tensor keeps its own.

    folder  that of a component, in one that is yet to be renamed        source  what to call it in messages
    """
    folder.mkdir()
    write_json(folder / CONFIG, table)
    dtypes = {} if dtype is None else dict.fromkeys(state, dtype)
    # transformers refuses a file that does not say "pt"
    with (folder / f"{stem}.safetensors").open("wb") as file:
        safetensors_file.write_to(file, source, state, {"format": "pt"}, dtypes)


def unet_for_diffusers(state: Mapping[str, Tensor], config: UNetConfig) -> State:
    """The UNet's tensors with diffusers' names."""
    names = renamed_keys(state, unet_modules(config), "UNet")
    return {names[key]: tensor for key, tensor in state.items()}


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON object as diffusers does: keys sorted, indented by 2."""
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _renamed(state: State, names: Mapping[str, str], source: str) -> State:
    renamed = {names[key]: tensor for key, tensor in state.items()}
    if len(renamed) < len(state):
        twice = [key for key in state if names[key] != key and names[key] in state]
        raise InputError(
            f"{source} holds a tensor under two names: {', '.join(twice)}; remove one of the two"
        )
    return renamed


def _check_blocks(blocks: int, state: State, source: str) -> None:
    """Reject a config.json with more blocks than there are tensors; comparing with a million would take for ever."""
    if blocks > len(state):
        raise InputError(
            f"{source} holds {len(state)} tensors, but the {CONFIG} beside it describes {blocks} blocks; they do not "
            "belong together"
        )


def _check_whole(expected: Shapes, state: State, source: str) -> None:
    problems = differences(expected, shapes_of(state))
    refuse(problems, f"{source} does not fit the {CONFIG} beside it", "Copy or download this part again.")
    for key, tensor in state.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise InputError(
                f"{source}: {key} is stored as {tensor.dtype}; weights are read from float16, bfloat16 and float32: "
                "use the files these were made from"
            )
