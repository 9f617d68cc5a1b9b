"""What `init` makes of diffusers folders: SDXL as published, of its full size or small, and other models' folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refimpl.commands.main import dispatch
from refimpl.errors import InputError
from refimpl.interop.diffusers_folder.configs import unet_table
from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.network.renaming import renamed_keys
from refimpl.interop.single_file.layout import unet_shapes
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.run.presets import load_config
from refimpl.run.settings.paths import path_problems
from refimpl.train.first.checkpoint import look_at_checkpoint
from tests.commands.endings import ending
from tests.train.first.holes import (
    EULER,
    MODEL_INDEX,
    Shapes,
    write_hole,
    write_sdxl_folder,
    write_shards,
    write_table,
)

WEIGHTS = "diffusion_pytorch_model"
V = {"prediction_type": "v_prediction"}
ZTSNR = V | {"rescale_betas_zero_snr": True}


def small_unet() -> Shapes:
    """The tiny UNet by diffusers' names."""
    shapes = dict(unet_shapes(UNetConfig.tiny()))
    names = renamed_keys(shapes, unet_modules(UNetConfig.tiny()), "UNet")
    return {names[name]: shape for name, shape in shapes.items()}


def small_folder(folder: Path, shards: int, dtype: str, **scheduler: Any) -> Path:
    """A folder of a tiny UNet alone, and its scheduler."""
    absent = {name: [None, None] for name in MODEL_INDEX if name.startswith(("text", "token", "vae"))}
    write_table(folder / "model_index.json", MODEL_INDEX | absent)
    write_table(folder / "scheduler" / "scheduler_config.json", EULER | scheduler)
    write_table(folder / "unet" / "config.json", unet_table(UNetConfig.tiny()))
    write_shards(folder / "unet", WEIGHTS, small_unet(), shards, dtype)
    return folder


@pytest.mark.parametrize(
    ("dtype", "stored", "scheduler", "predicts", "zero"),
    [
        ("F16", "float16", {}, "eps", False),
        ("BF16", "bfloat16", V, "v", False),
        ("F32", "float32", ZTSNR, "v", True),
    ],
)
def test_a_small_folder_in_shards(
    dtype: str, stored: str, scheduler: dict[str, Any], predicts: str, zero: bool, tmp_path: Path
) -> None:
    found = look_at_checkpoint(str(small_folder(tmp_path / "model", 3, dtype, **scheduler)))
    assert (found.kind, found.stored, found.unet) == ("diffusers folder", stored, UNetConfig.tiny())
    assert (found.parameterisation, found.zero_terminal_snr) == (predicts, zero)
    assert (found.vae, found.has_towers) == (None, False)


@pytest.mark.parametrize("damage", ["missing", "cut", "unlisted"])
def test_a_shard_that_is_not_whole(damage: str, tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "model", 3, "F16")
    shard = folder / "unet" / f"{WEIGHTS}-00002-of-00003.safetensors"
    index = folder / "unet" / f"{WEIGHTS}.safetensors.index.json"
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        table = json.loads(index.read_text())
        del table["weight_map"]["conv_in.weight"]
        write_table(index, table)
    with pytest.raises(InputError) as refused:
        look_at_checkpoint(str(folder))
    said = str(refused.value)
    assert (index if damage == "unlisted" else shard).name in said
    assert "opy or download" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shards", "dtype", "variant", "scheduler", "predicts", "zero"),
    [
        (0, "F16", "", {}, "eps", False),
        (3, "F32", "", V, "v", False),
        (0, "F16", "fp16", ZTSNR, "v", True),
    ],
)
def test_the_published_folder(
    shards: int, dtype: str, variant: str, scheduler: dict, predicts: str, zero: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`init` writes settings that load and whose paths are all there, for a card that is named."""
    monkeypatch.chdir(tmp_path)
    write_sdxl_folder(Path("sdxl"), shards, dtype, variant, **scheduler)
    assert sum(path.stat().st_blocks for path in Path("sdxl").rglob("*")) * 512 < 4e6  # of 7 or 14 GB
    found = look_at_checkpoint("sdxl")
    assert (found.kind, found.unet, found.vae) == ("diffusers folder", UNetConfig.sdxl(), VAEConfig.sdxl())
    assert (found.towers, found.has_towers, found.is_small) == ("sdxl", True, False)
    assert (found.parameterisation, found.zero_terminal_snr) == (predicts, zero)

    Path("images").mkdir()
    Image.new("RGB", (1024, 1024)).save("images/a.png")
    Path("images/a.txt").write_text("red")
    code, out, error = ending(
        dispatch, ["init", "images", "--yes", "--checkpoint", "sdxl", "--gpu", "24GB"], capsys
    )
    assert (code, error) == (0, "")
    stored = {"F16": "float16", "F32": "float32"}[dtype]
    assert f"starts from: sdxl (diffusers folder, {stored}, predicts {predicts}: " in out
    config = load_config("images.toml")
    assert (config.diffusion.parameterisation, config.diffusion.zero_terminal_snr) == (predicts, zero)
    assert (config.train.init_from, config.lora.rank, config.unet) == ("sdxl", 16, UNetConfig.sdxl())
    assert path_problems(config) == []


SD1 = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
    },
    "unet/config.json": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768},
}
FLUX = {
    "model_index.json": {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
    },
    "transformer/config.json": {"_class_name": "FluxTransformer2DModel", "in_channels": 64},
}


@pytest.mark.parametrize(
    ("files", "place", "said"),
    [
        (SD1, ".", "_class_name 'StableDiffusionPipeline' is not one of SDXL's pipelines"),
        (SD1, "unet", "addition_embed_type is None; in SDXL's network it is 'text_time'"),
        (FLUX, ".", "_class_name 'FluxPipeline' is not one of SDXL's pipelines"),
        (FLUX, "transformer", "_class_name 'FluxTransformer2DModel' is not SDXL's UNet2DConditionModel"),
    ],
)
def test_a_folder_of_another_model_is_one_line(
    files: dict[str, dict], place: str, said: str, tmp_path: Path
) -> None:
    for name, table in files.items():
        write_table(tmp_path / name, table)
    with pytest.raises(InputError) as refused:
        look_at_checkpoint(str(tmp_path / place))
    assert said in str(refused.value)
    assert str(refused.value).endswith(
        "; this project knows SDXL and its refiner: give a folder of one of them"
    )
    assert "\n" not in str(refused.value)


def test_a_folder_that_holds_files_names_them(tmp_path: Path) -> None:
    for name in ("b", "a", "d", "c"):
        write_hole(tmp_path / f"{name}.safetensors", {"x": (1,)})
    named = r"it holds a\.safetensors, b\.safetensors, c\.safetensors …: name the file itself"
    with pytest.raises(InputError, match=named):
        look_at_checkpoint(str(tmp_path))
