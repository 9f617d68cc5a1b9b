"""The architecture of a checkpoint's networks, inferred from its tensors (S Tab. 1, §2.5).

The tensors' shapes determine everything except how channels are split into heads and groups, and the text towers'
activation. Those are the published ones, unless the checkpoint's metadata records others.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from transformers import CLIPTextConfig

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.shapes import (
    clip_choices,
    clip_config,
    unet_choices,
    unet_config,
    vae_config,
    vae_groups,
)
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.tables import from_table, parsed_json

METADATA_KEY = "refimpl.architecture"


@dataclass(frozen=True)
class Notes:
    """What the tensors' shapes do not determine; None where it is the published choice for such shapes."""

    unet_head_dim: int | None = None
    unet_groups: int | None = None
    vae_groups: int | None = None
    text_l_heads: int | None = None
    text_l_activation: str | None = None
    text_g_heads: int | None = None
    text_g_activation: str | None = None


@dataclass(frozen=True)
class Architecture:
    """The configuration of each part; None where the checkpoint has no such part."""

    unet: UNetConfig | None = None
    vae: VAEConfig | None = None
    text_l: CLIPTextConfig | None = None
    text_g: CLIPTextConfig | None = None


def architecture_of(checkpoint: Checkpoint, source: str) -> Architecture:
    """The configurations of all parts that a checkpoint has.

    source  the file or folder, for messages
    Raises InputError naming the tensor or the number because of which a part is not a network of SDXL's kind.
    """
    notes = _read(checkpoint.metadata, source)
    unet, vae, text_l, text_g = checkpoint.unet, checkpoint.vae, checkpoint.text_l, checkpoint.text_g
    return Architecture(
        unet=None if unet is None else unet_config(unet, source, notes.unet_head_dim, notes.unet_groups),
        vae=None if vae is None else vae_config(vae, source, notes.vae_groups),
        text_l=None
        if text_l is None
        else clip_config(text_l, source, notes.text_l_heads, notes.text_l_activation),
        text_g=None
        if text_g is None
        else clip_config(text_g, source, notes.text_g_heads, notes.text_g_activation),
    )


def noted(metadata: Mapping[str, str], architecture: Architecture) -> dict[str, str]:
    """The metadata plus what `architecture_of` needs to recover exactly this architecture; nothing if not needed."""
    notes = Notes()
    unet, vae = architecture.unet, architecture.vae
    if unet is not None and unet_choices(unet) != (unet.head_dim, unet.groups):
        notes = replace(notes, unet_head_dim=unet.head_dim, unet_groups=unet.groups)
    if vae is not None and vae_groups(vae) != vae.groups:
        notes = replace(notes, vae_groups=vae.groups)
    for part, config in (("text_l", architecture.text_l), ("text_g", architecture.text_g)):
        if config is not None:
            heads, activation = config.num_attention_heads, config.hidden_act
            if clip_choices(config.hidden_size, part == "text_g") != (heads, activation):
                notes = replace(notes, **{f"{part}_heads": heads, f"{part}_activation": activation})
    rest = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    table = {name: value for name, value in asdict(notes).items() if value is not None}
    return {**rest, METADATA_KEY: json.dumps(table)} if table else rest


def with_text_model(key: str) -> str:
    """The name of a text tower's tensor, with the prefix that transformers ≥ 5.6 drops in memory added if missing."""
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def _read(metadata: Mapping[str, str], source: str) -> Notes:
    where = f"{source}: metadata {METADATA_KEY}"
    try:
        table = parsed_json(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from error
    notes = from_table(Notes, table, where)
    for name, value in asdict(notes).items():
        if isinstance(value, int) and value < 1:
            raise InputError(f"{where}: {name} {value} must be at least 1")
    return notes
