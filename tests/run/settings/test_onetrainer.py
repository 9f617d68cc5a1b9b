"""Settings of OneTrainer: what has an equivalent is carried over, and no field is dropped in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.commands.start.refused import refuse_fields
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.settings.onetrainer import EARLIER, from_onetrainer
from refimpl.run.settings.onetrainer_fields import KNOWN, MARKERS, TELLING
from refimpl.run.settings.onetrainer_rules import RULES
from refimpl.run.settings.typed import setting_names
from refimpl.tables import from_table
from tests.run.settings.test_kohya import VALUES, fates

LORA: dict[str, Any] = {
    "__version": 9, "training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "model.safetensors", "workspace_dir": "runs/mine", "batch_size": 4,
    "gradient_accumulation_steps": 2, "epochs": 20, "learning_rate": 3e-4, "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 100.0, "lora_rank": 8, "lora_alpha": 4.0, "resolution": "1024",
    "train_dtype": "BFLOAT_16", "ema": "GPU", "ema_decay": 0.99, "force_v_prediction": True,
    "rescale_noise_scheduler_to_zero_terminal_snr": True, "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0, "offset_noise_weight": 0.05, "clip_grad_norm": 0.5, "max_noising_strength": 0.9,
    "unet": {"weight_dtype": "FLOAT_16", "train": True, "gradient_checkpointing": True, "learning_rate": 2e-4},
    "text_encoder": {"train": False, "learning_rate": 1e-5},
    "text_encoder_2": {"train": True, "learning_rate": 1e-5},
    "prior": {"model_name": ""}, "secrets": {"huggingface_token": "hidden"},
    "optimizer": {"optimizer": "ADAFACTOR", "beta1": 0.8, "weight_decay": 0.02, "eps": 1e-7, "fused": True},
    "optimizer_defaults": {"ADAMW": {"beta1": 0.9}},
    "save_every": 500, "save_every_unit": "STEP", "sample_after": 10, "sample_after_unit": "MINUTE",
    "rolling_backup": True, "rolling_backup_count": 3, "masked_training": False, "latent_caching": True,
    "concepts": [
        {"path": "images", "name": "a", "image": {"enable_random_flip": True, "enable_random_hue": True},
         "text": {"enable_tag_shuffling": True, "keep_tags_count": 2}},
        {"path": "more"}, {"path": "held", "validation_concept": True}, {"path": "off", "enabled": False},
    ],
}  # fmt: skip
CARRIED = {
    "train.init_from": "model.safetensors", "train.out": "runs/mine", "train.batch_size": 4, "train.accumulate": 2,
    "optimizer.learning_rate": 2e-4, "optimizer.decay": "cosine", "optimizer.warmup_steps": 100, "lora.rank": 8,
    "lora.alpha": 4.0, "buckets.max_area": 1024 * 1024, "train.precision": "bf16", "train.ema_decay": 0.99,
    "diffusion.parameterisation": "v", "diffusion.zero_terminal_snr": True, "diffusion.loss_weight": "paper",
    "diffusion.min_snr_gamma": 5.0, "diffusion.offset_noise": 0.05, "optimizer.clip_norm": 0.5,
    "diffusion.last_timestep": 899, "train.activation_checkpointing": "full", "text.learning_rate_g": 1e-5,
    "optimizer.beta1": 0.8, "optimizer.kind": "adafactor",
    "optimizer.weight_decay": 0.02, "optimizer.epsilon": 1e-7, "train.checkpoint_every": 500,
    "train.keep_checkpoints": 3, "data.folder": "images", "data.heldout": "held", "data.horizontal_flip": True,
    "data.shuffle_tags": True, "data.keep_first_tags": 2,
}  # fmt: skip


def test_markers_are_no_settings_of_ours() -> None:
    assert not MARKERS & {part for name in setting_names() for part in name.split(".")}
    assert TELLING < MARKERS


def test_a_lora_is_carried_over_whole() -> None:
    found = from_onetrainer(LORA, ".")
    assert found.settings.items() >= CARRIED.items()
    assert found.settings["lora.text_targets"]
    assert found.epochs == ("epochs", 20.0)
    assert set(found.left) == {
        "unet.weight_dtype", "optimizer.fused", "sample_after", "latent_caching", "concepts[1].path", "secrets",
        "concepts[0].image.enable_random_hue",
    }  # fmt: skip
    assert "hidden" not in str(found.left)
    assert {"masked_training", "concepts[3].path", "text_encoder.train"} <= set(found.off)
    assert found.unknown == {}
    assert fates(found) == set(found.fields)
    from_table(Config, found.table(), "test")


def test_the_earlier_flat_layout_is_read_too() -> None:
    flat = {
        "model_type": "STABLE_DIFFUSION_XL_10_BASE", "training_method": "FINE_TUNE", "optimizer": "ADAMW",
        "weight_decay": 0.02, "train_text_encoder": False, "text_encoder_learning_rate": 3e-6,
        "unet_learning_rate": 3e-6, "train_unet": True, "learning_rate": 1e-6, "gradient_checkpointing": True,
    }  # fmt: skip
    found = from_onetrainer(flat, ".")
    assert found.settings["optimizer.learning_rate"] == 3e-6
    assert found.settings["optimizer.weight_decay"] == 0.02
    assert found.settings["train.activation_checkpointing"] == "full"
    assert found.unknown == {}
    assert set(found.fields) <= {*flat, *EARLIER.values()}


def test_what_it_does_by_default_is_taken_over() -> None:
    found = from_onetrainer({"training_method": "FINE_TUNE"}, ".")
    assert found.settings["buckets.max_area"] == 512 * 512
    assert found.settings["optimizer.warmup_steps"] == 200
    assert found.epochs == ("OneTrainer's default of epochs", 100.0)
    assert "trains the tower" in found.left["text_encoder.train"]
    assert "lora.rank" not in found.settings


def test_concepts_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "concepts.json").write_text(json.dumps([{"path": "images"}]))
    found = from_onetrainer({"concept_file_name": "concepts.json"}, str(tmp_path))
    assert found.settings["data.folder"] == "images"
    assert (
        "not here to be read"
        in from_onetrainer({"concept_file_name": "no.json"}, ".").left["concept_file_name"]
    )
    (tmp_path / "concepts.json").write_text("[")
    with pytest.raises(InputError, match=r"concepts\.json is not valid JSON"):
        from_onetrainer({"concept_file_name": "concepts.json"}, str(tmp_path))


def test_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="model_type FLUX_DEV_1 is not SDXL"):
        from_onetrainer({"model_type": "FLUX_DEV_1"}, ".")


@pytest.mark.parametrize(
    ("table", "field", "said"),
    [
        ({"training_method": "EMBEDDING"}, "training_method", "EMBEDDING"),
        ({"train_dtype": "FLOAT_16"}, "train_dtype", "float16 needs a scale"),
        ({"loss_weight_fn": "P2"}, "loss_weight_fn", "P2"),
        ({"resolution": "512,768"}, "resolution: 768", "one resolution at a time"),
        ({"learning_rate_warmup_steps": 0.1}, "learning_rate_warmup_steps", "a share of all steps"),
        ({"unet": {"train": False}}, "unet.train", "always trained"),
        ({"optimizer": {"optimizer": "LION"}}, "optimizer.optimizer", "'LION'"),
    ],
)
def test_what_has_no_equivalent_is_left_with_the_reason(table: dict[str, Any], field: str, said: str) -> None:
    assert said in from_onetrainer(table, ".").left[field]


@pytest.mark.parametrize(
    ("table", "field", "said"),
    [
        ({"batch_size": "many"}, "batch_size", "'many' is not a whole number"),
        ({"train_dtype": 16}, "train_dtype", "16 is not a text"),
        ({"max_noising_strength": "much"}, "max_noising_strength", "'much' is of the wrong type"),
        ({"resolution": ["a"]}, "resolution", "is of the wrong type"),
        ({"epochs": 0.0}, "epochs", "0.0 is not a number above 0"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(table: dict[str, Any], field: str, said: str) -> None:
    found = from_onetrainer(table, ".")
    assert said in found.wrong[field]
    with pytest.raises(InputError, match=f"(?s)values of the wrong type.*{field}: "):
        refuse_fields(found, "o.json", skip_unknown=True)


NAMES = st.sampled_from(
    sorted({*RULES, *KNOWN, "nosuchfield"} - {"model_type", "concept_file_name", "concepts"})
)


@settings(max_examples=40)
@given(st.dictionaries(NAMES, VALUES, max_size=12))
def test_no_field_is_dropped_in_silence(fields: dict[str, Any]) -> None:
    found = from_onetrainer(fields, ".")
    assert fates(found) >= set(found.fields)
