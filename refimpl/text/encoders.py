"""SDXL's two text encoders, CLIP ViT-L and OpenCLIP ViT-bigG, from transformers (S §2.1, Tab. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.text.config import BIGG_CHANNELS, CLIP_L_CHANNELS, TINY_G_CHANNELS, TINY_L_CHANNELS
from refimpl.text.tiny_vocabulary import tiny_vocabulary
from refimpl.text.tokenizer import ROW_TOKENS

Encoder = TypeVar("Encoder", CLIPTextModel, CLIPTextModelWithProjection)

CLIP_L_PARAMETERS = 123_060_480
CLIP_BIGG_PARAMETERS = 694_659_840

SHARED_SCALE = 0.1
"""Std, in random tiny encoders, of the embeddings that all prompts share; that of a word's embedding is 1."""


def clip_l_config() -> CLIPTextConfig:
    """CLIP ViT-L/14's text tower: 768 channels, 12 layers."""
    return _config(49408, CLIP_L_CHANNELS, layers=12, heads=12, activation="quick_gelu", pad_id=49407)


def clip_bigg_config() -> CLIPTextConfig:
    """OpenCLIP ViT-bigG/14's text tower: 1280 channels, 32 layers, projection to 1280."""
    return _config(49408, BIGG_CHANNELS, layers=32, heads=20, activation="gelu", pad_id=0)


def tiny_configs() -> tuple[CLIPTextConfig, CLIPTextConfig]:
    """The same two architectures with 32 and 64 channels over `tiny_vocabulary`: context 96, pooled 64."""
    size = len(tiny_vocabulary()[0])
    config_l = _config(size, TINY_L_CHANNELS, layers=2, heads=2, activation="quick_gelu", pad_id=size - 1)
    config_g = _config(size, TINY_G_CHANNELS, layers=3, heads=4, activation="gelu", pad_id=0)
    return config_l, config_g


def _config(
    vocabulary: int, channels: int, layers: int, heads: int, activation: str, pad_id: int
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=channels,
        intermediate_size=4 * channels,
        projection_dim=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=ROW_TOKENS,
        hidden_act=activation,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=pad_id,
    )


def tiny_encoders(seed: int = 0) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Random tiny encoders, determined by the seed alone, frozen and in eval mode.

    They stay random in training, so their states must distinguish words without training. Every linear map
    preserves unit scale (std 1 / √fan-in), whereas CLIP's own initialisation (0.02) leaves contexts near zero; and
    BOS, EOS and the positions, which all prompts share, are small relative to the words.
    The global random generator is neither read nor advanced.
    """
    config_l, config_g = tiny_configs()
    with torch.random.fork_rng(devices=[]):  # transformers fills new models from the global generator
        encoder_l, encoder_g = CLIPTextModel(config_l), CLIPTextModelWithProjection(config_g)
    generator = torch.Generator().manual_seed(seed)
    for encoder in (encoder_l, encoder_g):
        _fill(encoder, generator)
        freeze(encoder)
    return encoder_l, encoder_g


@torch.no_grad()
def _fill(encoder: torch.nn.Module, generator: torch.Generator) -> None:
    # In order of the names, without the prefix that some transformers versions add: equal draws in all versions.
    parameters = {name.removeprefix("text_model."): p for name, p in encoder.named_parameters()}
    for name, parameter in sorted(parameters.items()):
        if name.endswith("token_embedding.weight"):
            parameter.normal_(0, 1, generator=generator)
            parameter[-2:] *= SHARED_SCALE  # BOS and EOS
        elif name.endswith("position_embedding.weight"):
            parameter.normal_(0, SHARED_SCALE, generator=generator)
        elif parameter.dim() == 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            parameter.fill_(1)
        else:
            parameter.zero_()


def load_encoders(
    folder_l: Path | str, folder_g: Path | str, dtype: torch.dtype = torch.float32
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """CLIP-L and bigG from local folders (`text_encoder`, `text_encoder_2` of a diffusers SDXL folder).

    dtype  the weights' dtype      returns  (CLIP-L, bigG), frozen and in eval mode. Nothing is downloaded.
    Raises InputError when a folder cannot be read or lacks some of the weights.
    """
    encoder_l = load_encoder(CLIPTextModel, Path(folder_l), dtype)
    return encoder_l, load_encoder(CLIPTextModelWithProjection, Path(folder_g), dtype)


def load_encoder(kind: type[Encoder], folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    """One encoder from its folder, frozen and in eval mode. Raises InputError as `load_encoders` does."""
    if not (folder / "config.json").is_file():
        raise InputError(f"text encoder folder {folder}: config.json not found")
    try:
        loaded: Any = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=dtype,
            variant=_variant(folder),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"text encoder folder {folder}: cannot be read ({error})") from error
    encoder, report = loaded
    if report["missing_keys"]:
        raise InputError(f"text encoder folder {folder}: missing tensors {sorted(report['missing_keys'])}")
    freeze(encoder)
    return encoder


def _variant(folder: Path) -> str | None:
    """Name of a folder's only variant (fp16 for model.fp16.safetensors); None if it has the plain file."""
    if any((folder / f"model.safetensors{suffix}").is_file() for suffix in ("", ".index.json")):
        return None
    names = (path.name.split(".") for path in folder.glob("model.*.safetensors"))
    variants = [name[1] for name in names if len(name) == 3]
    return variants[0] if len(variants) == 1 else None


def freeze(encoder: torch.nn.Module) -> None:
    """Put the encoder in eval mode and disable its gradients."""
    encoder.eval().requires_grad_(False)


def penultimate_state(encoder: CLIPTextModel | CLIPTextModelWithProjection, ids: Tensor) -> Tensor:
    """Hidden state after the penultimate layer, without the final layer norm (S §2.1, N §4.2).

    ids  [N, 77] int64      returns  [N, 77, D] in the encoder's dtype
    """
    return encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]


def penultimate_and_pooled(
    encoder: CLIPTextModelWithProjection, ids: Tensor, eos_id: int, places: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """bigG's penultimate state, and its pooled state: the projected, normalised last state at the first EOS.

    ids     [N, 77] int64      returns  ([N, 77, D], [N, P]) in the encoder's dtype
    places  [N] position of the first EOS in each row; found here, which waits for the device, when left out
    The position is never left to transformers: if a config says eos_token_id 2, as the published ones do, it takes
    that of the largest id instead, which is the wrong one in a vocabulary with added tokens.
    Raises InputError when a row has no EOS.
    """
    output = encoder(input_ids=ids, output_hidden_states=True)
    places = first_eos(ids, eos_id).tolist() if places is None else places
    rows = output.last_hidden_state.unbind(0)
    ends = torch.stack([row[place] for row, place in zip(rows, places, strict=True)])
    pooled = encoder.text_projection(ends)
    return output.hidden_states[-2], pooled


def first_eos(ids: Tensor, eos_id: int) -> Tensor:
    """Position of the first EOS in each row. ids [N, L] → [N]. Raises InputError when a row has none."""
    is_eos = ids == eos_id
    without = (~is_eos.any(dim=1)).nonzero().flatten().tolist()
    if without:
        raise InputError(
            f"first_eos: rows {without} have no EOS (id {eos_id}); tokenise them with Tokenizer.rows_g"
        )
    return is_eos.int().argmax(dim=1)
