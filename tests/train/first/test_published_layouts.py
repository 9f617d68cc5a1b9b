"""What `init` makes of checkpoints in SDXL's published layout and size: whole headers, and holes for the weights.

A file's weights are a hole that the file system stores no block for, since nothing here reads them.
"""

import json
import struct
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

Shapes = dict[str, tuple[int, ...]]
FIRST = f"{UNET}input_blocks.0.0.weight"


def write_hole(path: Path, shapes: Shapes) -> None:
    """A safetensors file of float16 tensors, all zero, which takes the disk of its header alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (end, end + size)}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


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
    assert (found.vae, found.has_towers) == (None, False)


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
