"""The published single file: its layout, every variant found in the wild, round trips, and what is rejected."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.checkpoint import EPS_BY_DEFAULT, Checkpoint, Prediction
from refimpl.interop.network.architecture import Architecture
from refimpl.interop.single_file import read_write
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.latents.vae import VAEConfig
from refimpl.model.unet import UNetConfig
from refimpl.storage import safetensors_file
from refimpl.text.encoders import clip_bigg_config, clip_l_config, tiny_configs
from tests.folders import largest_file
from tests.interop.checkpoints import PARTS, random_bits, same_bits, shapes_only, working
from tests.strategies import predictions, scale_shifts, unet_configs, vae_configs

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
V_ZTSNR = Prediction("v", True, "given")
UNET, VAE, CLIP_L, CLIP_G = (
    "model.diffusion_model.",
    "first_stage_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
)
POSITIONS = CLIP_L + "text_model.embeddings.position_ids"
OTHER = {POSITIONS: torch.arange(77)[None], CLIP_G + "logit_scale": torch.tensor(4.6052)}


def assert_same(one: Checkpoint, two: Checkpoint) -> None:
    for part in (*PARTS, "other"):
        assert same_bits(getattr(one, part), getattr(two, part)), part
    assert one.scale_shift == two.scale_shift
    assert replace(one.prediction, reason="") == replace(two.prediction, reason="")


# --- the layout ---


def test_the_base_model_has_the_published_tensors() -> None:
    """The number and names of the tensors of sd_xl_base_1.0, without its values."""
    full = Architecture(UNetConfig.sdxl(), VAEConfig.sdxl(), clip_l_config(), clip_bigg_config())
    tensors = read_write._by_file_key(shapes_only(full))
    starts = {
        prefix: sum(key.startswith(prefix) for key in tensors) for prefix in (UNET, VAE, CLIP_L, CLIP_G)
    }
    assert starts == {UNET: 1680, VAE: 248, CLIP_L: 196, CLIP_G: 389}
    assert len(tensors) == sum(starts.values())
    for key in (
        UNET + "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight",
        UNET + "label_emb.0.2.bias",
        VAE + "decoder.mid.attn_1.proj_out.weight",
        CLIP_L + "text_model.encoder.layers.11.self_attn.out_proj.bias",
        CLIP_G + "transformer.resblocks.31.attn.in_proj_weight",
        CLIP_G + "transformer.resblocks.0.mlp.c_fc.weight",
        CLIP_G + "positional_embedding",
        CLIP_G + "text_projection",
    ):
        assert key in tensors


def test_the_refiner_has_bigg_first() -> None:
    shapes = Architecture(UNetConfig.refiner(), VAEConfig.sdxl(), None, clip_bigg_config())
    refiner = shapes_only(shapes)
    tensors = read_write._by_file_key(refiner)
    assert single_file.is_refiner(refiner)
    assert "conditioner.embedders.0.model.transformer.resblocks.0.ln_1.weight" in tensors
    assert not any(key.startswith("conditioner.embedders.1") for key in tensors)
    assert read_write._metadata(refiner, Path("r"))["modelspec.architecture"].endswith("xl-v1-refiner")
    assert single_file.is_refiner(replace(refiner, text_g=None))
    base = shapes_only(Architecture(UNetConfig.sdxl(), None, clip_l_config(), clip_bigg_config()))
    assert not single_file.is_refiner(base)
    assert not single_file.is_refiner(replace(base, text_l=None))
    assert read_write._metadata(base, Path("b"))["modelspec.architecture"].endswith("xl-v1-base")


def test_a_refiner_comes_back(tmp_path: Path) -> None:
    unet = replace(UNetConfig.tiny(), context_dim=64)
    refiner = random_bits(Architecture(unet, VAEConfig.tiny(), None, tiny_configs()[1]), 0, FLOATS[1:2])
    single_file.save(refiner, tmp_path / "refiner.safetensors")
    assert_same(single_file.load(tmp_path / "refiner.safetensors"), refiner)


# --- round trips ---


@settings(max_examples=6)
@given(unet_configs(), vae_configs(), predictions(), st.booleans(), scale_shifts(), st.integers(0, 99))
def test_no_bit_changes(
    tmp_path: Path,
    unet: UNetConfig,
    vae: VAEConfig,
    prediction: Prediction,
    plain: bool,
    statistics: tuple[list[float], list[float]],
    seed: int,
) -> None:
    """Any shape, any bits, mixed dtypes: reading and writing a file gives the same file, byte for byte."""
    unet = replace(unet, transformer_depth=(*unet.transformer_depth[:-1], unet.middle_depth))
    scale_shift = SDXL_DEFAULT if plain else ScaleShift(*statistics)
    architecture = Architecture(unet, vae, *tiny_configs())
    checkpoint = random_bits(
        architecture, seed, FLOATS, OTHER, prediction=prediction, scale_shift=scale_shift
    )
    text_g = random_bits(architecture, seed, FLOATS[seed % 3 :][:1]).text_g  # fused maps have one dtype
    checkpoint = replace(checkpoint, text_g=text_g)
    first, second = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    single_file.save(checkpoint, first)
    loaded = single_file.load(first)
    for part in PARTS:
        assert same_bits(getattr(loaded, part), getattr(checkpoint, part)), part
    assert loaded.scale_shift == scale_shift
    assert loaded.prediction.kind == prediction.kind
    assert loaded.prediction.zero_terminal_snr == prediction.zero_terminal_snr
    assert loaded.metadata["modelspec.title"] == "model"
    single_file.save(loaded, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_dtype_is_for_all_weights_and_for_nothing_else(
    dtype: torch.dtype, whole: Path, tmp_path: Path
) -> None:
    source, path = single_file.load(whole), tmp_path / "typed.safetensors"
    single_file.save(source, path, dtype)
    typed = single_file.load(path)
    for part in PARTS:
        before, after = getattr(source, part), getattr(typed, part)
        assert all(after[key].dtype == dtype for key in before)
        assert all(torch.equal(after[key], before[key].to(dtype)) for key in before)
    assert same_bits(typed.other, source.other)
    single_file.save(source, path, keep_other=False)
    assert set(single_file.load(path).other) == {"v_pred", "ztsnr"}


def test_tensors_stay_in_the_file(whole: Path) -> None:
    """Nothing is copied on reading: all tensors lie within one memory map of the file."""
    checkpoint = single_file.load(whole)
    places = [value.data_ptr() for part in PARTS for value in getattr(checkpoint, part).values()]
    assert max(places) - min(places) < os.path.getsize(whole)


def test_the_own_metadata_are_written_once(whole: Path, tmp_path: Path) -> None:
    source = single_file.load(whole)
    metadata = {**source.metadata, "modelspec.hash_sha256": "stale", "refimpl.scale_shift": "stale", "a": "b"}
    path = tmp_path / "model.safetensors"
    single_file.save(replace(source, metadata=metadata, prediction=EPS_BY_DEFAULT), path)
    written = safetensors_file.read(path)[1]
    assert written["modelspec.prediction_type"] == "epsilon"
    assert written["a"] == "b"
    assert not {"modelspec.hash_sha256", "refimpl.scale_shift"} & set(written)
    assert single_file.load(path).other.keys() == OTHER.keys()  # the markers of v are gone


def test_maps_of_mixed_dtypes_are_joined_in_one_that_holds_them(whole: Path, tmp_path: Path) -> None:
    text_g = dict(single_file.load(whole).text_g or {})
    layer = "text_model.encoder.layers.0.self_attn"
    for name, dtype in (("q", torch.float16), ("k", torch.bfloat16), ("v", torch.float16)):
        text_g[f"{layer}.{name}_proj.weight"] = text_g[f"{layer}.{name}_proj.weight"].to(dtype)
    single_file.save(Checkpoint(text_g=text_g), tmp_path / "mixed.safetensors")
    read = single_file.load(tmp_path / "mixed.safetensors").text_g or {}
    assert all(torch.equal(read[key], value.float()) for key, value in text_g.items())
    assert all(value.dtype == torch.float32 for value in read.values())


# --- files found in the wild ---


def test_leftovers_of_training_are_kept_but_not_taken(changed, whole: Path) -> None:
    leftovers = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
        "optimizer_state": torch.ones(2),
        "denoiser.sigmas": torch.ones(1000),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "conditioner.embedders.0.transformer.text_projection.weight": torch.ones(2, 2),
        "conditioner.embedders.0.logit_scale": torch.tensor(1.0),
        "global_step": torch.tensor(5),
    }
    loaded = single_file.load(changed(lambda tensors: tensors.update(leftovers)))
    source = single_file.load(whole)
    assert same_bits(loaded.unet, source.unet)
    assert same_bits(loaded.other, {**source.other, **leftovers})
    without = changed(lambda tensors: [tensors.pop(key) for key in OTHER])
    assert same_bits(single_file.load(without).text_l, source.text_l)


def test_the_moving_average_is_taken_on_request(changed, whole: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(UNET)]:
            name = "model_ema.diffusion_model" + key.removeprefix(UNET).replace(".", "")
            tensors[name] = torch.full_like(tensors[key], 3)

    path = changed(add)
    assert same_bits(single_file.load(path).unet, single_file.load(whole).unet)
    average = single_file.load(path, use_ema=True)
    assert average.unet is not None
    assert all((value == 3).all() for value in average.unet.values())
    assert not any(key.startswith("model_ema") for key in average.other)
    with pytest.raises(InputError, match=r"holds no moving average of its UNet \(model_ema"):
        single_file.load(whole, use_ema=True)
    alone = changed(
        lambda tensors: (add(tensors), [tensors.pop(k) for k in list(tensors) if k.startswith(UNET)])
    )
    with pytest.raises(InputError, match="holds no UNet beside its moving average"):
        single_file.load(alone, use_ema=True)
    lacking = changed(lambda tensors: (add(tensors), tensors.pop("model_ema.diffusion_modelout2bias")))
    with pytest.raises(InputError, match=r"1 tensors are missing:\n  model_ema\.diffusion_modelout2bias\n"):
        single_file.load(lacking, use_ema=True)


def test_a_tower_without_its_prefix_is_read_and_written_with_it(changed, whole: Path, tmp_path: Path) -> None:
    """Named as in memory by transformers 5.6 and later; a tensor with both names is rejected."""
    path = changed(lambda t: {key.replace(CLIP_L + "text_model.", CLIP_L): value for key, value in t.items()})
    flat, expected = single_file.load(path), single_file.load(whole)
    assert same_bits(flat.text_l, expected.text_l)
    single_file.save(flat, tmp_path / "written.safetensors")
    assert (
        CLIP_L + "text_model.final_layer_norm.bias"
        in safetensors_file.read(tmp_path / "written.safetensors")[0]
    )
    twice = changed(lambda t: t.update({CLIP_L + "final_layer_norm.bias": torch.ones(32)}))
    with pytest.raises(
        InputError, match=r"unknown   conditioner\.embedders\.0\.transformer\.(text_model\.)?final"
    ):
        single_file.load(twice)


@pytest.mark.parametrize("prefix", [UNET, ""])
def test_a_unet_alone_is_read(prefix: str, changed, whole: Path) -> None:
    path = changed(lambda t: {prefix + key.removeprefix(UNET): t[key] for key in t if key.startswith(UNET)})
    loaded = single_file.load(path)
    assert same_bits(loaded.unet, single_file.load(whole).unet)
    assert (loaded.vae, loaded.text_l, loaded.text_g) == (None, None, None)


@pytest.mark.parametrize("prefix", [VAE, ""])
def test_an_autoencoder_alone_is_read(prefix: str, changed, whole: Path, tmp_path: Path) -> None:
    path = changed(lambda t: {prefix + key.removeprefix(VAE): t[key] for key in t if key.startswith(VAE)})
    loaded = single_file.load(path)
    assert same_bits(loaded.vae, single_file.load(whole).vae)
    assert loaded.unet is None
    single_file.save(replace(loaded, scale_shift=NOVELAI_ANIME), tmp_path / "vae.safetensors")
    tensors, metadata = safetensors_file.read(tmp_path / "vae.safetensors")
    assert all(key.startswith(VAE) for key in tensors)
    assert metadata.keys() == {"modelspec.title", "refimpl.scale_shift"}


@pytest.mark.parametrize("part", ["text_l", "text_g"])
def test_a_tower_alone_is_read(part: str, whole: Path, tmp_path: Path) -> None:
    tower = getattr(single_file.load(whole), part)
    single_file.save(Checkpoint(**{part: tower}), tmp_path / "tower.safetensors")
    assert same_bits(getattr(single_file.load(tmp_path / "tower.safetensors"), part), tower)


def test_a_prediction_given_by_hand_wins(changed, tmp_path: Path) -> None:
    path = changed(lambda tensors: tensors.pop("v_pred"))
    with pytest.raises(InputError, match="ztsnr without v_pred"):
        single_file.load(path)
    given_one = Prediction("v", False, "given")
    loaded = single_file.load(path, given_one)
    assert loaded.prediction == given_one
    single_file.save(loaded, tmp_path / "mended.safetensors")
    assert single_file.load(tmp_path / "mended.safetensors").prediction.kind == "v"


# --- what is kept and written ---


def test_what_comfyui_says_of_a_prediction_is_not_left_against_another(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    source = single_file.load(whole)
    tensors = {UNET + key: value for key, value in (source.unet or {}).items()}
    safetensors_file.write(path, tensors, {"modelspec.predict_key": "epsilon"})
    assert single_file.load(path).prediction.reason == "modelspec.predict_key epsilon"
    single_file.save(single_file.load(path, V_ZTSNR), path)
    assert replace(single_file.load(path).prediction, reason="given") == V_ZTSNR


def test_unknown_tensors_are_kept_on_request(changed) -> None:
    path = changed(lambda tensors: tensors.update(something=torch.ones(2)))
    with pytest.raises(InputError, match=r"unknown   something \[2\]"):
        single_file.load(path)
    assert single_file.load(path, keep_unknown=True).other["something"].tolist() == [1, 1]
    inside = changed(lambda tensors: tensors.update({UNET + "something": torch.ones(2)}))
    with pytest.raises(InputError, match=r"unknown   model\.diffusion_model\.something"):
        single_file.load(inside, keep_unknown=True)


def test_what_cannot_be_written_leaves_the_old_file(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    single_file.save(working(prediction=V_ZTSNR), path)
    before = path.read_bytes()
    with largest_file(100_000), pytest.raises(InputError, match=r"could not write .*: File too large"):
        single_file.save(single_file.load(whole), path)
    with pytest.raises(InputError, match="no UNet, autoencoder or text tower to write"):
        single_file.save(Checkpoint(other=OTHER), path)
    unet = {**(single_file.load(whole).unet or {}), "out.2.bias": torch.full((4,), 1e5)}
    with pytest.raises(InputError, match=r"out\.2\.bias has values beyond float16"):
        single_file.save(Checkpoint(unet=unet), path, torch.float16)
    for dtype in (torch.float64, torch.int8):
        with pytest.raises(
            InputError, match=rf"dtype {dtype} is unknown; weights are float16, bfloat16 or float32"
        ):
            single_file.save(single_file.load(whole), path, dtype)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
