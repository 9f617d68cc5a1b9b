"""Text towers: transformers' names and shapes, OpenCLIP's layout, and views between them."""

import math

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.interop.network.architecture import with_text_model
from refimpl.interop.network.clip_keys import (
    CLIP_BIGG,
    CLIP_L,
    ClipSizes,
    from_openclip,
    openclip_name,
    openclip_shapes,
    sizes_of,
    to_openclip,
    tower_shapes,
)
from refimpl.text.encoders import (
    CLIP_BIGG_PARAMETERS,
    CLIP_L_PARAMETERS,
    clip_bigg_config,
    clip_l_config,
    tiny_configs,
    tiny_encoders,
)


@pytest.mark.parametrize(
    ("sizes", "config", "kind", "parameters"),
    [
        (CLIP_L, clip_l_config(), CLIPTextModel, CLIP_L_PARAMETERS),
        (CLIP_BIGG, clip_bigg_config(), CLIPTextModelWithProjection, CLIP_BIGG_PARAMETERS),
    ],
)
def test_published_towers_have_transformers_tensors(
    sizes: ClipSizes, config: CLIPTextConfig, kind: type, parameters: int
) -> None:
    with torch.device("meta"):
        tower = kind(config)
    expected = {with_text_model(name): tuple(value.shape) for name, value in tower.named_parameters()}
    assert tower_shapes(sizes) == expected
    assert sum(map(math.prod, expected.values())) == parameters


def test_openclip_fuses_and_transposes() -> None:
    shapes = openclip_shapes(CLIP_BIGG)
    assert (
        len(shapes) == 4 + 1 + 32 * 12
    )  # a layer: two norms, in_proj, out_proj, c_fc, c_proj, each with a bias
    assert shapes["transformer.resblocks.31.attn.in_proj_weight"] == (3840, 1280)
    assert shapes["transformer.resblocks.0.attn.in_proj_bias"] == (3840,)
    assert shapes["positional_embedding"] == (77, 1280)
    assert sum(map(math.prod, shapes.values())) == CLIP_BIGG_PARAMETERS
    uneven = ClipSizes(vocabulary=7, positions=77, width=4, layers=2, hidden=6, projection=3)
    assert openclip_shapes(uneven)["text_projection"] == (4, 3)
    assert sizes_of(openclip_shapes(uneven), openclip=True) == uneven
    assert sizes_of(tower_shapes(uneven), openclip=False) == ClipSizes(7, 77, 4, 2, 6, None)


def test_layouts_are_views_of_each_other() -> None:
    _, bigg = tiny_encoders()
    tower = {with_text_model(name): value for name, value in bigg.state_dict().items()}
    fused = {
        name: value if isinstance(value, torch.Tensor) else torch.cat(value)
        for name, value in to_openclip(tower).items()
    }
    config = tiny_configs()[1]
    sizes = ClipSizes(config.vocab_size, 77, 64, layers=3, hidden=256, projection=64)
    assert {name: tuple(value.shape) for name, value in fused.items()} == openclip_shapes(sizes)
    back = from_openclip(fused)
    assert back.keys() == tower.keys()
    assert all(torch.equal(back[name], tower[name]) for name in tower)
    layer = "text_model.encoder.layers.1.self_attn"
    base = fused["transformer.resblocks.1.attn.in_proj_weight"].data_ptr()
    assert back[f"{layer}.q_proj.weight"].data_ptr() == base
    third = 64 * 64 * 4  # bytes
    assert back[f"{layer}.v_proj.weight"].data_ptr() == base + 2 * third
    assert torch.equal(fused["text_projection"], tower["text_projection.weight"].T)


def test_other_names_are_refused() -> None:
    for name in (
        "text_model.encoder.layers.0.mlp.fc3.weight",
        "text_model.encoder.layers.x.mlp.fc1.weight",
        "logit",
    ):
        with pytest.raises(InputError, match="not a tensor of a CLIP text tower"):
            openclip_name(name)


def test_a_lone_map_cannot_be_fused() -> None:
    key = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    with pytest.raises(
        InputError, match=r"in_proj_weight needs the query, key and value projections, and .* has 1"
    ):
        to_openclip({key: torch.ones(2, 2)})
