"""What `init` makes of checkpoints in SDXL's published layout and size: whole headers, and holes for the weights.

A file's weights are a hole that the file system stores no block for, since nothing here reads them.
"""

from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.interop.network.clip_keys import CLIP_BIGG, CLIP_L, openclip_shapes, tower_shapes
from refimpl.interop.single_file.layout import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    UNET,
    VAE_PREFIX,
    unet_shapes,
    vae_shapes,
)
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.train.first.checkpoint import Start, look_at_checkpoint
from tests.train.first.holes import Shapes, write_hole

FIRST = f"{UNET}input_blocks.0.0.weight"


def unet_of(config: UNetConfig, in_channels: int = 4) -> Shapes:
    """All tensors of a UNet, by their names in a single file."""
    unet = {UNET + name: shape for name, shape in unet_shapes(config)}
    out, _, *kernel = unet[FIRST]
    return unet | {FIRST: (out, in_channels, *kernel)}


def published(**markers: tuple[int, ...]) -> Shapes:
    """All tensors of sd_xl_base_1.0.safetensors by name, and markers."""
    parts = (
        (VAE_PREFIX, dict(vae_shapes(VAEConfig.sdxl()))),
        (CLIP_L_PREFIX, dict(tower_shapes(CLIP_L))),
        (CLIP_G_PREFIX, dict(openclip_shapes(CLIP_BIGG))),
    )
    others = {prefix + name: shape for prefix, part in parts for name, shape in part.items()}
    return unet_of(UNetConfig.sdxl()) | others | markers


def looked_at(path: Path, shapes: Shapes) -> Start:
    write_hole(path, shapes)
    return look_at_checkpoint(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("markers", "predicts", "zero"),
    [({}, "eps", False), ({"v_pred": (0,)}, "v", False), ({"v_pred": (0,), "ztsnr": (0,)}, "v", True)],
)
def test_a_single_file(
    markers: dict[str, tuple[int, ...]], predicts: str, zero: bool, tmp_path: Path
) -> None:
    found = looked_at(tmp_path / "sdxl.safetensors", published(**markers))
    assert (found.kind, found.unet, found.vae) == ("single file", UNetConfig.sdxl(), VAEConfig.sdxl())
    assert (found.towers, found.has_towers, found.is_small) == ("sdxl", True, False)
    assert (found.parameterisation, found.zero_terminal_snr) == (predicts, zero)


@pytest.mark.slow
def test_a_single_file_without_towers(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "unet.safetensors", unet_of(UNetConfig.sdxl()))
    assert (found.vae, found.has_towers, found.stored) == (None, False, "float16")


OTHERS = {
    "Stable Diffusion 1 or 2": {
        FIRST: (320, 4, 3, 3),
        f"{UNET}time_embed.0.weight": (1280, 320),
        f"{VAE_PREFIX}encoder.conv_in.weight": (128, 3, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
    },
    "Stable Diffusion 3": {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)},
    "Flux": {f"{UNET}double_blocks.0.img_attn.qkv.weight": (9216, 3072), f"{UNET}img_in.weight": (3072, 64)},
}


@pytest.mark.parametrize("model", list(OTHERS))
def test_a_whole_file_of_another_model_is_named_in_one_line(model: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"is not SDXL; it looks like {model}; this project knows"
    ) as refused:
        looked_at(tmp_path / "other.safetensors", OTHERS[model])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(UNetConfig.sdxl(), marks=pytest.mark.slow, id="sdxl"),
        pytest.param(UNetConfig.tiny(), id="tiny"),
    ],
)
def test_inpainting_is_refused_for_its_nine_channels(config: UNetConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes 9 channels, and latents have 4; .* inpainting"):
        looked_at(tmp_path / "inpainting.safetensors", unet_of(config, in_channels=9))
