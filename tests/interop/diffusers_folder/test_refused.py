"""Diffusers folders that are refused, each with its reason."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from refimpl.errors import InputError
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.network.architecture import Architecture
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.model.unet import UNetConfig
from refimpl.storage import safetensors_file
from tests.interop.checkpoints import random_bits, working
from tests.interop.diffusers_folder.test_read_write import FLOATS, edit


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_part_that_the_index_names_must_be_there(name: str, copy: Path) -> None:
    shutil.rmtree(copy / name)
    with pytest.raises(InputError, match=rf"lacks {name}, which its model_index\.json names"):
        diffusers_folder.load(copy)


def test_the_scheduler_that_the_index_names_must_be_there_or_its_prediction_given(copy: Path) -> None:
    """Without it, a v-prediction model would pass for an eps model."""
    shutil.rmtree(copy / "scheduler")
    with pytest.raises(InputError, match=r"lacks scheduler/scheduler_config\.json, which its model_index"):
        diffusers_folder.load(copy)
    given = Prediction("v", True, "given")
    assert diffusers_folder.load(copy, given).prediction == given


@pytest.mark.parametrize(
    ("part", "stem"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_weights_and_settings_must_be_there(part: str, stem: str, copy: Path) -> None:
    (copy / part / f"{stem}.safetensors").rename(copy / part / f"{stem}.bin")
    with pytest.raises(InputError, match=rf"{stem}\.bin, a pickle.*save_file"):
        diffusers_folder.load(copy)
    (copy / part / f"{stem}.bin").unlink()
    with pytest.raises(InputError, match=rf"has no {stem}\.safetensors"):
        diffusers_folder.load(copy)
    (copy / part / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        diffusers_folder.load(copy)


TABLES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\xff", "[" * 10**5, '"x"'])
@pytest.mark.parametrize("file", TABLES)
def test_broken_tables_are_refused(file: str, text: str, copy: Path) -> None:
    (copy / file).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=file):
        diffusers_folder.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "not one of SDXL's"),
        ({"_class_name": None}, "not one of SDXL's"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny"),
        ({"unet": ["diffusers", "SD3Transformer2DModel"]}, "SD3Transformer2DModel"),
        ({"unet": 7}, "unet is 7"),
        ({"unet": {"a": 1}}, "unet is"),
        ({"unet": [["a"], ["b"]]}, "unet is"),
        ({key: [None, None] for key in ("unet", "vae", "text_encoder", "text_encoder_2")}, "names no UNet"),
    ],
)
def test_an_index_of_something_else_is_refused(changes: dict, message: str, copy: Path) -> None:
    edit(copy / "model_index.json", **changes)
    with pytest.raises(InputError, match=message):
        diffusers_folder.load(copy)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from((0, -1, 1, 2, 10**30)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(data=st.data())
def test_any_value_of_any_field_is_read_or_refused(
    data: st.DataObject, folder: Path, field_folder: Path
) -> None:
    """Randomly changed settings never cause any error other than an InputError."""
    file = data.draw(st.sampled_from(TABLES))
    table = json.loads((folder / file).read_text())
    name = data.draw(st.sampled_from(sorted(table)))
    entry = data.draw(JSON_VALUES)
    if isinstance(table[name], list) and table[name] and data.draw(st.booleans()):
        entry = [*table[name][:-1], entry]
    (field_folder / file).write_text(json.dumps({**table, name: entry}))
    complaint = f"none about {field_folder}"
    try:
        diffusers_folder.load(field_folder)
    except InputError as error:
        complaint = str(error)
    finally:
        shutil.copy(folder / file, field_folder / file)
    assert str(field_folder) in complaint


@pytest.fixture(scope="module")
def field_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, which every example leaves as it found it."""
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("fields") / "model"))


def test_every_tensor_that_differs_is_listed(copy: Path) -> None:
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_out.bias"]
    state["conv_ins.weight"] = state.pop("conv_in.weight")
    state["time_embedding.linear_1.bias"] = torch.zeros(7)
    save_file(state, path)
    with pytest.raises(InputError) as caught:
        diffusers_folder.load(copy)
    for text in ("4 of its tensors", "missing   conv_out.bias", "unknown   conv_ins.weight", "conv_in.weight",
                 "misshapen time_embedding.linear_1.bias", str(path)):  # fmt: skip
        assert text in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn], ids=str)
def test_weights_of_other_dtypes_are_refused(dtype: torch.dtype, copy: Path) -> None:
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(path).items()}, path)
    with pytest.raises(InputError, match=str(dtype)):
        diffusers_folder.load(copy)


def test_settings_of_a_million_blocks_cost_nothing(copy: Path) -> None:
    for change in ({"layers_per_block": 10**6}, {"transformer_layers_per_block": 10**6}):
        edit(copy / "unet/config.json", **change)
        with pytest.raises(InputError, match="do not belong together"):
            diffusers_folder.load(copy)


def test_a_broken_scale_in_the_extras_names_the_file(tmp_path: Path) -> None:
    checkpoint = dataclasses.replace(working(), vae=None, scale_shift=NOVELAI_ANIME)
    diffusers_folder.save(checkpoint, tmp_path / "folder")
    extras = tmp_path / "folder" / "refimpl_extras.safetensors"
    other, metadata = safetensors_file.read(extras)
    safetensors_file.write(extras, other, {**metadata, single_file.SCALE_SHIFT: "{"})
    with pytest.raises(InputError, match="refimpl_extras"):
        diffusers_folder.load(tmp_path / "folder")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        diffusers_folder.load(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        diffusers_folder.load(tmp_path / "file")
    with pytest.raises(InputError, match="not a diffusers folder"):
        diffusers_folder.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_mult": (2, 2, 3)}, "starts above 1"),
        ({"transformer_depth": (0, 1, 2)}, "one number for both"),
    ],
)
def test_shapes_that_diffusers_lacks_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    config = dataclasses.replace(UNetConfig.tiny(), **change)
    checkpoint = random_bits(Architecture(unet=config), 0, FLOATS)
    with pytest.raises(InputError, match=message):
        diffusers_folder.save(checkpoint, tmp_path / "new")
    assert not (tmp_path / "new").exists()
