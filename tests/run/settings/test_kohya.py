"""Settings of kohya's sd-scripts: what has an equivalent is carried over, and no field is dropped in silence."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.commands.start.refused import refuse_fields
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.settings.kohya import RULES, from_kohya
from refimpl.run.settings.kohya_data import DATA_RULES
from refimpl.run.settings.kohya_fields import MARKERS, TELLING, WITHOUT
from refimpl.run.settings.translated import Translation
from refimpl.run.settings.typed import setting_names
from refimpl.tables import from_table

LORA = """
[model]
pretrained_model_name_or_path = "model.safetensors"
v_parameterization = true
zero_terminal_snr = true
[network]
network_module = "networks.lora"
network_dim = 8
network_alpha = 4
network_args = ["conv_dim=4", "rank_dropout=0.1"]
network_train_unet_only = true
unet_lr = 2e-4
text_encoder_lr = 1e-5
[train]
learning_rate = 1e-4
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99", "foo=1"]
lr_scheduler = "cosine"
lr_warmup_steps = 0.1
max_train_steps = 500
train_batch_size = 2
mixed_precision = "bf16"
gradient_checkpointing = true
min_snr_gamma = 5
noise_offset = 0.05
max_timestep = 900
max_grad_norm = 0.5
seed = 7
output_dir = "out"
output_name = "mine"
log_with = "wandb"
log_tracker_name = "project"
train_data_dir = "images"
resolution = "1024,1024"
enable_bucket = true
min_bucket_reso = 512
caption_extension = ".txt"
caption_dropout_rate = 0.2
caption_tag_dropout_rate = 0.1
shuffle_caption = true
keep_tokens = 1
flip_aug = true
cache_latents = true
xformers = true
lowram = false
full_bf16 = true
"""
CARRIED = {
    "train.init_from": "model.safetensors", "diffusion.parameterisation": "v", "diffusion.zero_terminal_snr": True,
    "lora.rank": 8, "lora.alpha": 4.0, "lora.dropout": 0.1, "optimizer.learning_rate": 2e-4,
    "optimizer.weight_decay": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.99, "optimizer.decay": "cosine",
    "optimizer.kind": "adamw8bit", "train.weight_dtype": "bf16",
    "optimizer.warmup_steps": 50, "optimizer.clip_norm": 0.5, "train.steps": 500, "train.batch_size": 2,
    "train.precision": "bf16", "train.activation_checkpointing": "full", "diffusion.loss_weight": "paper",
    "diffusion.min_snr_gamma": 5.0, "diffusion.offset_noise": 0.05, "diffusion.last_timestep": 899, "train.seed": 7,
    "train.out": "out/mine", "train.wandb_project": "project", "data.folder": "images",
    "buckets.max_area": 1024 * 1024, "buckets.min_side": 512, "buckets.max_side": 1024, "buckets.step": 64,
    "train.caption_dropout": 0.2, "data.shuffle_tags": True, "data.keep_first_tags": 1,
    "data.horizontal_flip": True, "train.ema_decay": 0.0, "tag_weights.enabled": False,
    "latents.scale_shift": "checkpoint",
}  # fmt: skip


def translated(text: str, folder: str = ".") -> Translation:
    return from_kohya(tomllib.loads(text), folder)


def fates(translation: Translation) -> set[str]:
    """The fields of which something has become."""
    length = set() if translation.epochs is None else {translation.epochs[0]}
    taken = {*translation.carried(), *length, *translation.wrong}
    return taken | {*translation.same, *translation.left, *translation.off, *translation.unknown}


def test_markers_are_no_settings_of_ours() -> None:
    assert not MARKERS & {part for name in setting_names() for part in name.split(".")}
    assert TELLING < MARKERS


def test_fields_without_an_equivalent_have_no_rule() -> None:
    assert not WITHOUT & {*RULES, *DATA_RULES}


def test_a_lora_is_carried_over_whole() -> None:
    found = translated(LORA)
    dropout = found.settings.pop("data.tag_dropout")
    assert dropout == tuple(f"{name}:0.1" for name in ("general", "character", "artist", "copyright", "meta"))
    assert found.settings == CARRIED
    assert set(found.left) == {"network_args", "optimizer_args", "cache_latents"}
    assert "conv_dim=4" in found.left["network_args"]
    assert "foo=1" in found.left["optimizer_args"]
    assert "refimpl cache" in found.left["cache_latents"]
    assert found.off == ["lowram"]
    assert found.unknown == {}
    from_table(Config, found.table(), "test")


def test_what_it_does_by_default_is_taken_over() -> None:
    found = translated('pretrained_model_name_or_path = "m"\ntrain_data_dir = "i"')
    assert (found.settings["diffusion.parameterisation"], found.settings["diffusion.loss_weight"]) == (
        "eps",
        "none",
    )
    assert (found.settings["train.batch_size"], found.settings["train.steps"]) == (1, 1600)
    assert (found.settings["train.caption_dropout"], found.settings["train.ema_decay"]) == (0.0, 0.0)
    assert "lora.rank" not in found.settings
    lora = translated('network_module = "networks.lora"')
    assert (lora.settings["lora.rank"], lora.settings["lora.alpha"]) == (4, 1.0)


def test_epochs_wait_for_the_number_of_images() -> None:
    found = translated("max_train_epochs = 10\nmax_train_steps = 5\nlr_warmup_steps = 0.1")
    assert found.epochs == ("max_train_epochs", 10.0)
    assert "train.steps" not in found.settings
    assert found.same["max_train_steps"] == "max_train_epochs overrides it"
    assert "lr_warmup_steps" in found.left


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ('mixed_precision = "fp16"', "mixed_precision", "'fp16': refimpl computes in bf16"),
        ('optimizer_type = "Lion"', "optimizer_type", "'Lion'"),
        ('lr_scheduler = "polynomial"', "lr_scheduler", "'polynomial'"),
        ('network_module = "lycoris.kohya"\nnetwork_dim = 4', "network_dim", "it belongs to lycoris.kohya"),
        ("network_dim = 4", "network_dim", "no network_module is named"),
        ("learning_rate_te1 = 1e-5", "learning_rate_te1", "train_text_encoder"),
        ('resolution = "wide"', "resolution", "neither a side nor two"),
        ('resolution = "1024,512"', "resolution", "a single bucket of 1024×512"),
        ("random_crop = false", "random_crop", "drawn at random"),
        ("validation_split = 0.1", "validation_split", "data.heldout"),
        ("num_repeats = 10", "num_repeats", "an image is seen once"),
        ("optimizer_type = [1]", "optimizer_type", "[1]"),
    ],
)
def test_what_has_no_equivalent_is_left_with_the_reason(text: str, field: str, said: str) -> None:
    assert said in translated(text).left[field]


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ('train_batch_size = "many"', "train_batch_size", "'many' is not a whole number"),
        ("train_batch_size = 1.5", "train_batch_size", "1.5 is not a whole number"),
        ("train_batch_size = true", "train_batch_size", "True is not a whole number"),
        ("train_batch_size = inf", "train_batch_size", "inf is not a whole number"),
        ("noise_offset = [1]", "noise_offset", "[1] is not a number"),
        ('zero_terminal_snr = "yes"', "zero_terminal_snr", "'yes' is not true or false"),
        ('gradient_checkpointing = "yes"', "gradient_checkpointing", "'yes' is not true or false"),
        ("network_module = ['a']", "network_module", "is not a text"),
        ("mixed_precision = [16]", "mixed_precision", "[16] is not a text"),
        ("train_data_dir = 5", "train_data_dir", "5 is not a text"),
        ('max_timestep = "late"', "max_timestep", "'late' is of the wrong type"),
        ('max_train_epochs = "ten"', "max_train_epochs", "'ten' is of the wrong type"),
        ("max_train_epochs = -1", "max_train_epochs", "-1 is not a number above 0"),
        ("max_train_epochs = inf", "max_train_epochs", "inf is not a number above 0"),
        (f"noise_offset = 1{'0' * 400}", "noise_offset", "0… is not a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_unknown_ones(text: str, field: str, said: str) -> None:
    found = translated(f"{text}\nnosuch = 1")
    assert said in found.wrong[field]
    assert field not in {*found.left, *found.off, *found.same}
    with pytest.raises(InputError) as skipped:
        refuse_fields(found, "k.toml", skip_unknown=True)
    assert str(skipped.value).splitlines() == [
        "k.toml: values of the wrong type; correct them, or delete their lines",
        f"  {field}: {found.wrong[field]}",
    ]
    with pytest.raises(InputError, match=rf"(?s){field}: .*has no such fields.*\n  nosuch; the nearest is"):
        refuse_fields(found, "k.toml", skip_unknown=False)


def test_a_number_that_is_switched_off_is_off() -> None:
    found = translated("noise_offset = false\nlr_scheduler = false")
    assert {"noise_offset", "lr_scheduler"} <= set(found.off)
    assert not found.wrong


@pytest.mark.parametrize("text", ["datasets = 5", "[[datasets]]\nsubsets = 5", "datasets = [1]"])
def test_data_sets_that_are_no_tables_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must be a list of tables, as .* makes it, not"):
        translated(text)


def test_rates_of_the_towers() -> None:
    lora = translated('network_module = "networks.lora"\ntext_encoder_lr = [1e-5, 2e-5]').settings
    assert (lora["text.learning_rate_l"], lora["text.learning_rate_g"]) == (1e-5, 2e-5)
    assert lora["lora.text_targets"]
    whole = translated("train_text_encoder = true\nlearning_rate = 1e-6\nlearning_rate_te2 = 3e-6").settings
    assert (whole["text.learning_rate_l"], whole["text.learning_rate_g"]) == (1e-6, 3e-6)


def test_a_square_without_buckets_is_one_bucket() -> None:
    found = translated("resolution = 512\nmin_bucket_reso = 256")
    config = from_table(Config, {"buckets": found.table()["buckets"]}, "test")
    assert config.buckets.sizes() == [(512, 512)]
    assert "no effect" in found.same["min_bucket_reso"]


DATASETS = """
[general]
shuffle_caption = true
keep_tokens = 1
[[datasets]]
resolution = 768
batch_size = 3
enable_bucket = true
  [[datasets.subsets]]
  image_dir = "first"
  num_repeats = 10
  keep_tokens = 2
  [[datasets.subsets]]
  image_dir = "second"
"""


def test_a_dataset_configuration_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text(DATASETS)
    for found in (translated(DATASETS), translated('dataset_config = "data.toml"', str(tmp_path))):
        assert found.settings["data.folder"] == "first"
        assert (found.settings["train.batch_size"], found.settings["buckets.max_area"]) == (3, 768 * 768)
        assert (found.settings["data.shuffle_tags"], found.settings["data.keep_first_tags"]) == (True, 2)
        assert "refimpl data index A B" in found.left["datasets[0].subsets[1].image_dir"]
        assert "num_repeats" in found.left
        assert fates(found) == set(found.fields)
    gone = translated('dataset_config = "nowhere.toml"', str(tmp_path))
    assert "not here to be read" in gone.left["dataset_config"]
    (tmp_path / "bad.toml").write_text("[[")
    with pytest.raises(InputError, match=r"bad\.toml is not valid TOML"):
        translated('dataset_config = "bad.toml"', str(tmp_path))


def test_a_field_that_another_overrides_is_told_with_its_value(tmp_path: Path) -> None:
    """The last one counts, as in sd-scripts; those before are listed by their tables."""
    found = translated("learning_rate = 3e-3\n[a]\nlearning_rate = 1e-3\nseed = 1\n[b]\nlearning_rate = 5e-5")
    assert found.settings["optimizer.learning_rate"] == 5e-5
    assert set(found.fields) == {
        "learning_rate", "a.learning_rate", "top level.learning_rate", "seed"
    }  # fmt: skip
    assert found.same["top level.learning_rate"] == "0.003: a.learning_rate overrides it"
    assert found.same["a.learning_rate"] == "0.001: b.learning_rate overrides it"

    text = (
        "[general]\nresolution = 512\n[[datasets]]\nresolution = 768\n[[datasets.subsets]]\nimage_dir = 'i'\n"
    )
    (tmp_path / "data.toml").write_text(text + "resolution = 1024\n[more]\nresolution = 64\n")
    found = translated('[general]\nresolution = 256\ndataset_config = "data.toml"', str(tmp_path))
    assert found.settings["buckets.max_area"] == 1024 * 1024
    told = {name: why for name, why in found.same.items() if "overrides" in why}
    assert told == {
        "general.resolution": "256: dataset_config.general.resolution overrides it",
        "dataset_config.general.resolution": "512: datasets[0].resolution overrides it",
        "datasets[0].resolution": "768: datasets[0].subsets[0].resolution overrides it",
    }
    assert "dataset_config.more" in found.unknown
    assert fates(found) == set(found.fields)


def test_a_field_that_is_off_and_overridden_is_listed_once(tmp_path: Path) -> None:
    text = "[[datasets]]\nflip_aug = false\n[[datasets.subsets]]\nimage_dir = 'i'\nflip_aug = true\n"
    (tmp_path / "data.toml").write_text(text)
    found = translated('dataset_config = "data.toml"', str(tmp_path))
    assert found.same["datasets[0].flip_aug"] == "False: datasets[0].subsets[0].flip_aug overrides it"
    assert "datasets[0].flip_aug" not in found.off
    assert fates(found) == set(found.fields)


def test_fields_of_a_further_data_set_are_listed_once_each() -> None:
    more = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nresolution = 640\nimage_dir = 'third'\n"
    found = translated(DATASETS + more)
    names = {name for name in found.fields if name.startswith("datasets[1]")}
    assert names == {
        "datasets[1].resolution", "datasets[1].subsets[0].resolution", "datasets[1].subsets[0].image_dir"
    }  # fmt: skip
    assert names <= set(found.left)
    assert fates(found) == set(found.fields)


def test_unknown_fields_are_told_with_their_section() -> None:
    text = "top = 1\n[a]\nnosuch = 1\nlr_warmup_steps = 2\n[weird.sub]\nx = 3\n[b]\nnosuch = 2\n"
    found = translated(text + "[general]\nno = 1\n[[datasets]]\nno = 2")
    assert set(found.unknown) == {"top", "a.nosuch", "weird.sub", "b.nosuch", "general.no", "datasets[0].no"}
    assert found.settings["optimizer.warmup_steps"] == 2


def test_a_data_sets_batch_comes_before_the_common_one() -> None:
    found = translated("train_batch_size = 8\n" + DATASETS)
    assert found.settings["train.batch_size"] == 3
    assert found.same["train_batch_size"] == "batch_size overrides it"


def test_dreambooth_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "10_cat").mkdir()
    found = from_kohya({"train_data_dir": str(tmp_path)}, ".")
    assert found.settings["data.folder"] == str(tmp_path)
    assert any("10_cat" in name for name in found.left)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3000), st.floats(allow_nan=False),
    st.sampled_from(["", "1e-4", "x", "512,768"]),
    st.lists(st.sampled_from(["a=1", "betas=0.9,0.99", "rank_dropout=x"]), max_size=2),
)  # fmt: skip
NAMES = st.sampled_from(sorted({*RULES, *DATA_RULES, *WITHOUT, "nosuchfield"} - {"dataset_config"}))


@settings(max_examples=40)
@given(st.dictionaries(NAMES, VALUES, max_size=12))
def test_no_field_is_dropped_in_silence(fields: dict[str, Any]) -> None:
    found = from_kohya(fields, ".")
    assert fates(found) == set(fields)
