"""Text towers in their two layouts: transformers' (CLIP-L) and OpenCLIP's (bigG in the single file).

OpenCLIP fuses the query, key and value projections of a layer into one tensor and stores its text projection
transposed. Both directions are views: nothing is copied.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.text.encoders import clip_bigg_config, clip_l_config

Shapes = dict[str, tuple[int, ...]]

PROJECTION = "text_projection.weight"
LAYERS = "text_model.encoder.layers"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# transformers → OpenCLIP, below one layer and outside of the layers
IN_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


@dataclass(frozen=True)
class ClipSizes:
    """The sizes of a text tower that the shapes of its tensors determine."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    hidden: int
    """width of the feed-forward layers"""
    projection: int | None
    """width of the pooled state; None for a tower without a projection"""


def _published(config, projected: bool) -> ClipSizes:
    return ClipSizes(
        config.vocab_size,
        config.max_position_embeddings,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.projection_dim if projected else None,
    )


CLIP_L = _published(clip_l_config(), projected=False)
CLIP_BIGG = _published(clip_bigg_config(), projected=True)


def tower_shapes(sizes: ClipSizes) -> Shapes:
    """Name → shape of every tensor of a tower, with transformers' names and the prefix `text_model.`."""
    width, hidden = sizes.width, sizes.hidden
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (sizes.vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (sizes.positions, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
    }
    for layer in range(sizes.layers):
        for name, rows, columns in (
            *((name, width, width) for name in (*QKV, "self_attn.out_proj")),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            shapes[f"{LAYERS}.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{LAYERS}.{layer}.{name}.bias"] = (rows,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{LAYERS}.{layer}.{name}.weight"] = (width,)
            shapes[f"{LAYERS}.{layer}.{name}.bias"] = (width,)
    if sizes.projection is not None:
        shapes[PROJECTION] = (sizes.projection, width)
    return shapes


def openclip_shapes(sizes: ClipSizes) -> Shapes:
    """Name → shape of every tensor of a tower in OpenCLIP's layout."""
    shapes: Shapes = {}
    for key, shape in tower_shapes(sizes).items():
        name, third = openclip_name(key)
        if key == PROJECTION:
            shape = shape[::-1]
        shapes[name] = shape if third is None else (3 * shape[0], *shape[1:])
    return shapes


def sizes_of(shapes: Mapping[str, tuple[int, ...]], openclip: bool) -> ClipSizes:
    """The sizes of a tower in either layout; the published ones where the tensor that determines them is missing."""
    default = CLIP_BIGG if openclip else CLIP_L
    layers, fc1 = ("transformer.resblocks", "mlp.c_fc") if openclip else (LAYERS, "mlp.fc1")
    tokens = "text_model.embeddings.token_embedding.weight"
    tokens = openclip_name(tokens)[0] if openclip else tokens
    numbers = {match[1] for match in map(re.compile(re.escape(layers) + r"\.(\d+)\.").match, shapes) if match}

    def side(key: str, rank: int, axis: int, otherwise: int) -> int:
        shape = shapes.get(key, ())
        return shape[axis] if len(shape) == rank and shape[axis] > 0 else otherwise

    projection = side("text_projection", 2, 1, default.projection or 0) if openclip else None
    return ClipSizes(
        vocabulary=side(tokens, 2, 0, default.vocabulary),
        positions=default.positions,  # 77 of every CLIP: a file with two swapped embeddings is not a smaller one
        width=side(tokens, 2, 1, default.width),
        layers=len(numbers),
        hidden=side(f"{layers}.0.{fc1}.weight", 2, 0, default.hidden),
        projection=projection,
    )


def openclip_name(key: str) -> tuple[str, int | None]:
    """OpenCLIP's name for a tensor, and which third of that tensor it is (None: all of it).

    Raises InputError for a name that no tower has.
    """
    if key == PROJECTION:
        return "text_projection", None
    if key in OUTSIDE:
        return OUTSIDE[key], None
    match = re.fullmatch(re.escape(LAYERS) + r"\.(\d+)\.(.+)\.(weight|bias)", key)
    if match:
        layer, name, kind = match.groups()
        block = f"transformer.resblocks.{layer}"
        if name in QKV:
            return f"{block}.attn.in_proj_{kind}", QKV.index(name)
        if name in IN_LAYER:
            return f"{block}.{IN_LAYER[name]}.{kind}", None
    raise InputError(f"{key} is not a tensor of a CLIP text tower")


def to_openclip(tower: Mapping[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """A tower in OpenCLIP's layout; the three parts of a fused tensor are returned as a tuple, to be concatenated.

    Raises InputError for a name that no tower has, or when one of the three is missing.
    """
    renamed: dict[str, Tensor | tuple[Tensor, ...]] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tower.items():
        name, third = openclip_name(key)
        if third is None:
            renamed[name] = tensor.t() if key == PROJECTION else tensor
        else:
            thirds.setdefault(name, {})[third] = tensor
    for name, parts in thirds.items():
        if len(parts) < 3:
            raise InputError(
                f"{name} needs the query, key and value projections, and the tower has {len(parts)} of them"
            )
        renamed[name] = tuple(parts[third] for third in range(3))
    return renamed


def from_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tower with transformers' names from OpenCLIP's layout; `state` must have every key of `openclip_shapes`."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    tower = {}
    for key in tower_shapes(sizes_of(shapes, openclip=True)):
        name, third = openclip_name(key)
        tensor = state[name]
        if key == PROJECTION:
            tensor = tensor.t()
        tower[key] = tensor if third is None else torch.chunk(tensor, 3)[third]
    return tower
