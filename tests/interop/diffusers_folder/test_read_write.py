"""The diffusers folder: bitwise round trips, every layout found in the wild, and what is rejected."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from refimpl.errors import InputError
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import EPS_BY_DEFAULT, Checkpoint, Prediction
from refimpl.interop.network.architecture import Architecture
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.latents.vae import VAEConfig
from refimpl.model.unet import UNetConfig
from refimpl.storage import safetensors_file
from refimpl.text.config import TextConfig
from refimpl.text.encoders import clip_bigg_config, tiny_configs
from refimpl.text.tokenizer import tiny_tokenizer
from refimpl.text.towers import load_towers
from tests.folders import largest_file
from tests.interop.checkpoints import PARTS, TINY, private_bytes, random_bits, same_bits, working
from tests.strategies import predictions, scale_shifts, unet_configs, vae_configs

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
OTHER = {
    "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6052),
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "model_ema.decay": torch.tensor(0.9999),
    "v_pred": torch.empty(0),
}
V_ZTSNR = Prediction("v", True, "given")


def edit(path: Path, **changes: object) -> None:
    table = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in table.items() if value != "absent"}))


def assert_same(one: Checkpoint, two: Checkpoint) -> None:
    for part in PARTS:
        assert same_bits(getattr(one, part), getattr(two, part)), part
    assert same_bits(one.other, two.other)
    assert one.metadata == two.metadata
    assert one.scale_shift == two.scale_shift
    assert dataclasses.replace(one.prediction, reason="") == dataclasses.replace(two.prediction, reason="")


# --- round trips ---


@settings(max_examples=6)
@given(
    unet=unet_configs(),
    vae=vae_configs(),
    dtypes=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3, unique=True),
    prediction=predictions(),
    scale=st.integers(1, 5).flatmap(scale_shifts),
    seed=st.integers(0, 2**32 - 1),
    title=st.text(st.characters(exclude_categories=("Cs",)), max_size=9),
)
def test_no_bit_changes_through_single_file_and_diffusers(
    unet, vae, dtypes, prediction, scale, seed, title, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("trip")
    mean, std = (tuple((list(values) * 5)[: vae.latent_channels]) for values in scale)
    architecture = Architecture(unet, vae, *tiny_configs())
    start = random_bits(
        architecture,
        seed,
        dtypes,
        other={key: value for key, value in OTHER.items() if key != "v_pred"},
        prediction=prediction,
        scale_shift=ScaleShift(mean, std),
        metadata={"modelspec.title": title, "format": "pt"},
    )
    single_file.save(start, tmp_path / "a.safetensors")
    first = single_file.load(tmp_path / "a.safetensors")
    diffusers_folder.save(first, tmp_path / "folder")
    second = diffusers_folder.load(tmp_path / "folder")
    assert_same(first, second)
    single_file.save(second, tmp_path / "b.safetensors")
    (one, about_one), (two, about_two) = (safetensors_file.read(tmp_path / f"{x}.safetensors") for x in "ab")
    assert same_bits(one, two)
    assert about_one == about_two
    # and on to a second folder, whose files are those of the first
    diffusers_folder.save(single_file.load(tmp_path / "b.safetensors"), tmp_path / "again")
    for path in (tmp_path / "folder").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "folder")).read_bytes()


def test_a_folder_comes_back_as_it_was(folder: Path) -> None:
    expected = working(prediction=V_ZTSNR, other=OTHER)
    assert_same(diffusers_folder.load(folder), expected)
    assert "prediction_type v_prediction" in diffusers_folder.load(folder).prediction.reason


@pytest.mark.parametrize("scale", [SDXL_DEFAULT, NOVELAI_ANIME], ids=["factor", "mean and std"])
@pytest.mark.parametrize("part", PARTS)
def test_a_single_part_goes_through(part: str, scale: ScaleShift, tmp_path: Path) -> None:
    whole = random_bits(TINY, 1, FLOATS, scale_shift=scale)
    parts = {name: None for name in PARTS if name != part}
    alone = dataclasses.replace(whole, **parts)
    diffusers_folder.save(alone, tmp_path / "folder")
    found = diffusers_folder.load(tmp_path / "folder")
    assert same_bits(getattr(found, part), getattr(whole, part))
    assert all(getattr(found, name) is None for name in parts)
    assert found.scale_shift == scale


def test_what_is_of_no_part_can_be_left_out(tmp_path: Path) -> None:
    diffusers_folder.save(working(other=OTHER), tmp_path / "folder", keep_other=False)
    assert diffusers_folder.load(tmp_path / "folder").other == {}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_dtype_is_for_all_weights_and_for_nothing_else(dtype: torch.dtype, tmp_path: Path) -> None:
    start = working(other=OTHER)
    diffusers_folder.save(start, tmp_path / "folder", dtype=dtype)
    found = diffusers_folder.load(tmp_path / "folder")
    for part in PARTS:
        converted = {key: value.to(dtype) for key, value in getattr(start, part).items()}
        assert same_bits(getattr(found, part), converted)
    assert same_bits(found.other, OTHER)


def test_tensors_stay_in_the_file(folder: Path) -> None:
    """Reading allocates no memory for the weights: a tensor's bytes are those of the mapped file."""
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    before = private_bytes()
    found = diffusers_folder.load(folder)
    assert sum(part.nbytes for name in PARTS for part in getattr(found, name).values()) > 0.9 * size
    assert private_bytes() - before < 0.5 * size


# --- layouts in the wild ---


def test_a_variant_is_found_and_chosen(copy: Path) -> None:
    half = {
        key: value.half()
        for key, value in load_file(copy / "unet/diffusion_pytorch_model.safetensors").items()
    }
    save_file(half, copy / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert diffusers_folder.load(copy).unet["out.2.bias"].dtype == torch.float32
    with pytest.raises(InputError, match="variant 'fp16'"):
        diffusers_folder.load(copy, variant="fp16")  # the other parts have none
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert diffusers_folder.load(copy).unet["out.2.bias"].dtype == torch.float16
    for part, stem in (
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
    ):
        (copy / part / f"{stem}.safetensors").rename(copy / part / f"{stem}.fp16.safetensors")
    assert diffusers_folder.load(copy, variant="fp16").unet["out.2.bias"].dtype == torch.float16
    save_file(half, copy / "unet/diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(InputError, match=r"several variants.*bf16.*fp16"):
        diffusers_folder.load(copy)


@pytest.mark.parametrize(
    "index", ["safetensors.index.json", "safetensors.index.fp16.json", "fp16.safetensors.index.json"]
)
def test_shards_are_joined(index: str, copy: Path, folder: Path) -> None:
    shard(copy / "unet", "diffusion_pytorch_model", index)
    assert_same(diffusers_folder.load(copy), diffusers_folder.load(folder))


def shard(folder: Path, stem: str, index: str) -> dict:
    """Splits a component's file in three and returns the index written."""
    whole = load_file(folder / f"{stem}.safetensors")
    weight_map = {key: f"{stem}-0000{n % 3 + 1}-of-00003.safetensors" for n, key in enumerate(whole)}
    for name in set(weight_map.values()):
        save_file({key: whole[key].clone() for key in whole if weight_map[key] == name}, folder / name)
    (folder / f"{stem}.safetensors").unlink()
    table = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{index}").write_text(json.dumps(table))
    return table


@pytest.mark.parametrize(
    "escape", ["../unet.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "x.bin", "", 7, None]
)
def test_an_index_cannot_reach_out_of_its_folder(escape: object, copy: Path) -> None:
    table = shard(copy / "unet", "diffusion_pytorch_model", "safetensors.index.json")
    table["weight_map"][next(iter(table["weight_map"]))] = escape
    (copy / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="not a safetensors file in the same folder"):
        diffusers_folder.load(copy)


def test_an_index_that_lies_is_refused(copy: Path) -> None:
    table = shard(copy / "unet", "diffusion_pytorch_model", "safetensors.index.json")
    path = copy / "unet/diffusion_pytorch_model.safetensors.index.json"
    table["weight_map"]["invented.weight"] = table["weight_map"]["conv_in.weight"]
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"invented\.weight in diffusion_pytorch_model-0000"):
        diffusers_folder.load(copy)
    (copy / "unet" / table["weight_map"]["conv_in.weight"]).unlink()
    with pytest.raises(InputError, match=table["weight_map"]["conv_in.weight"]):
        diffusers_folder.load(copy)


def test_a_tower_without_the_prefix_is_read(copy: Path, folder: Path) -> None:
    """Named as transformers 5.6 and later name it in memory."""
    path = copy / "text_encoder/model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    save_file({**bare, "embeddings.position_ids": torch.arange(77)[None]}, path)
    found = diffusers_folder.load(copy)
    assert same_bits(found.text_l, diffusers_folder.load(folder).text_l)
    assert "conditioner.embedders.0.transformer.text_model.embeddings.position_ids" in found.other
    twice = {**bare, "text_model.final_layer_norm.bias": bare["final_layer_norm.bias"]}
    save_file({key: value.clone() for key, value in twice.items()}, path)
    with pytest.raises(InputError, match=r"two names: final_layer_norm\.bias"):
        diffusers_folder.load(copy)


def test_a_projection_of_clip_l_is_kept(copy: Path) -> None:
    path = copy / "text_encoder/model.safetensors"
    save_file({**load_file(path), "text_projection.weight": torch.eye(32)}, path)
    key = "conditioner.embedders.0.transformer.text_projection.weight"
    assert torch.equal(diffusers_folder.load(copy).other[key], torch.eye(32))


def test_a_folder_without_an_index_is_read(copy: Path, folder: Path) -> None:
    (copy / "model_index.json").unlink()
    shutil.rmtree(copy / "tokenizer")
    assert_same(diffusers_folder.load(copy), diffusers_folder.load(folder))


def test_the_folder_of_one_network_is_read(folder: Path) -> None:
    vae = diffusers_folder.load(folder / "vae")
    assert vae.unet is None
    assert same_bits(vae.vae, diffusers_folder.load(folder).vae)
    assert diffusers_folder.load(folder / "unet").vae is None


def test_links_into_a_cache_are_followed(copy: Path, folder: Path, tmp_path: Path) -> None:
    """As in a download cache: every file is a link to a blob elsewhere."""
    for number, path in enumerate([path for path in copy.rglob("*") if path.is_file()]):
        shutil.move(path, tmp_path / f"blob{number}")
        path.symlink_to(os.path.relpath(tmp_path / f"blob{number}", path.parent))
    assert_same(diffusers_folder.load(copy), diffusers_folder.load(folder))


@pytest.mark.parametrize("name", ["text_encoder", "vae", "scheduler", "tokenizer", "text_encoder_2"])
def test_an_absent_part_that_the_index_says_is_absent(name: str, copy: Path) -> None:
    shutil.rmtree(copy / name)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, name: [None, None]}))
    found = diffusers_folder.load(copy)
    assert found.unet is not None
    if name == "scheduler":
        assert found.prediction.kind == "eps"
        assert "no scheduler" in found.prediction.reason


# --- our own readers ---


def test_our_towers_load_from_it(folder: Path) -> None:
    tokenizer, encoder_l, encoder_g = load_towers(folder)
    assert tokenizer.ids("a red circle!") == tiny_tokenizer().ids("a red circle!")
    for tower, state in ((encoder_l, working().text_l), (encoder_g, working().text_g)):
        found = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in tower.state_dict().items()}
        found = {k.replace("text_model.text_projection", "text_projection"): v for k, v in found.items()}
        assert same_bits(found, state)


@pytest.mark.parametrize(
    "files",
    [
        ("vocab.json", "merges.txt"),
        ("tokenizer.json",),
        ("vocab.json", "merges.txt", "tokenizer_config.json"),
    ],
    ids=lambda files: "+".join(files),
)
def test_our_towers_load_with_fewer_tokenizer_files(files: tuple[str, ...], copy: Path) -> None:
    for path in (copy / "tokenizer").iterdir():
        if path.name not in files:
            path.unlink()
    tokenizer = TextConfig(folder=str(copy)).load()[0]
    assert tokenizer.ids("a red circle") == tiny_tokenizer().ids("a red circle")
    rows = tokenizer.rows_l(tokenizer.chunks("a"))[0].tolist()
    assert rows == tiny_tokenizer().rows_l(tiny_tokenizer().chunks("a"))[0].tolist()


def test_our_towers_load_from_a_variant(copy: Path) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        (copy / name / "model.safetensors").rename(copy / name / "model.fp16.safetensors")
    expected = working().text_g or {}
    found = load_towers(copy)[2].state_dict()
    assert torch.equal(found["text_projection.weight"], expected["text_projection.weight"])


def test_a_tokenizer_is_found_beside_the_weights(folder: Path, copy: Path, tmp_path: Path) -> None:
    checkpoint = working()
    for number, place in enumerate((folder, folder / "tokenizer", copy)):
        if place == copy:
            shutil.rmtree(copy / "tokenizer")
        diffusers_folder.save(checkpoint, tmp_path / str(number), tokenizer=place)
        written = (tmp_path / str(number) / "tokenizer_2" / "vocab.json").read_bytes()
        assert written == (folder / "tokenizer_2" / "vocab.json").read_bytes()
    with pytest.raises(InputError, match="has no tokenizer"):
        diffusers_folder.save(checkpoint, tmp_path / "none", tokenizer=folder / "unet")
    assert not (tmp_path / "none").exists()


# --- writing ---


def test_nothing_is_overwritten_and_nothing_half_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="exists already"):
        diffusers_folder.save(working(), tmp_path / "taken")
    with pytest.raises(InputError, match="no UNet, autoencoder or text tower"):
        diffusers_folder.save(Checkpoint(), tmp_path / "new")
    huge = {key: value.clone() for key, value in (working().unet or {}).items()}
    huge["out.2.bias"][0] = 1e5
    with pytest.raises(InputError, match="float16"):
        diffusers_folder.save(
            dataclasses.replace(working(), unet=huge), tmp_path / "new", dtype=torch.float16
        )
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(100_000), pytest.raises(InputError, match=r"could not write .*: File too large"):
        diffusers_folder.save(working(), tmp_path / "new", tokenizer=tiny_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_given_by_hand_wins(folder: Path, copy: Path) -> None:
    edit(copy / "scheduler/scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(InputError, match="pure noise"):
        diffusers_folder.load(copy)
    assert diffusers_folder.load(copy, prediction=EPS_BY_DEFAULT).prediction is EPS_BY_DEFAULT


def test_the_refiner_is_a_pipeline_of_its_own(tmp_path: Path) -> None:
    """The refiner's architecture at tiny size: bigG alone."""
    config = dataclasses.replace(UNetConfig.tiny(), context_dim=64, vector_dim=64 + 5 * 256)
    checkpoint = random_bits(Architecture(config, VAEConfig.tiny(), None, tiny_configs()[1]), 0, FLOATS)
    assert clip_bigg_config().hidden_size != 64
    diffusers_folder.save(checkpoint, tmp_path / "folder", tokenizer=tiny_tokenizer())
    index = json.loads((tmp_path / "folder/model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert same_bits(diffusers_folder.load(tmp_path / "folder").text_g, checkpoint.text_g)
