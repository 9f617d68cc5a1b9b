"""A configuration of OneTrainer (its JSON) as settings of refimpl.

The fields are those of its files (github.com/Nerogar/OneTrainer, training_presets/ and what "export" writes), in
the present layout and in the flat one of earlier versions.
"""

import math
from collections.abc import Mapping
from typing import Any

from refimpl.errors import InputError
from refimpl.model.lora.config import TEXT_TARGETS
from refimpl.run.settings.onetrainer_concepts import read_concepts, translate_concepts
from refimpl.run.settings.onetrainer_fields import KNOWN, OTHER_NETWORKS
from refimpl.run.settings.onetrainer_rules import RULES, SDXL, TOWERS, translate_resolution
from refimpl.run.settings.translated import Translation, flattened, settle, translate

ONETRAINER = "OneTrainer"
# Fields of its earlier layout, by their place in the present one.
EARLIER = {
    "train_unet": "unet.train", "unet_learning_rate": "unet.learning_rate", "vae_model_name": "vae.model_name",
    "train_text_encoder": "text_encoder.train", "text_encoder_learning_rate": "text_encoder.learning_rate",
    "train_text_encoder_2": "text_encoder_2.train", "text_encoder_2_learning_rate": "text_encoder_2.learning_rate",
    "optimizer": "optimizer.optimizer", "optimizer_weight_decay": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay", "gradient_checkpointing": "unet.gradient_checkpointing",
    "dataloader_threads": "caching_threads", "unet_weight_dtype": "unet.weight_dtype",
    "vae_weight_dtype": "vae.weight_dtype", "text_encoder_weight_dtype": "text_encoder.weight_dtype",
}  # fmt: skip

# Tables that are judged by their names.
WHOLE = (
    *OTHER_NETWORKS, "optimizer_defaults", "cloud", "secrets", "embedding", "additional_embeddings", "embeddings",
    "quantization", "samples",
)  # fmt: skip


def from_onetrainer(table: Mapping[str, Any], folder: str) -> Translation:
    """Translates a configuration, with the concepts that it holds or names.

    folder  the folder of the configuration, from which `concept_file_name` may be relative
    Raises InputError for a model that is not SDXL.
    """
    model = table.get("model_type", SDXL[0])
    if model not in SDXL:
        raise InputError(f"model_type {model} is not SDXL, which is all that refimpl trains")
    whole = {name: table[name] for name in WHOLE if name in table}
    fields = {
        EARLIER.get(name, name): value
        for name, value in flattened(table).items()
        if name.split(".")[0] not in whole
    }
    fields |= whole
    concepts = read_concepts(fields, folder)
    translation = Translation(ONETRAINER, fields)
    for number, concept in enumerate(concepts):
        fields |= {f"concepts[{number}].{name}": value for name, value in flattened(concept).items()}
    translate(translation, RULES, KNOWN)
    translate_concepts(translation, concepts)
    _rates(translation)
    _lengths(translation)
    _defaults(translation)
    settle(translation)
    return translation


def _rates(t: Translation) -> None:
    """Rates of what is trained; those of a part come before the common one."""
    is_lora = t.fields.get("training_method") == "LORA"
    if t.has("unet.learning_rate"):
        t.set("unet.learning_rate", "optimizer.learning_rate", t.fields["unet.learning_rate"])
        if t.has("learning_rate"):
            t.same["learning_rate"] = "unet.learning_rate overrides it"
    elif t.has("learning_rate"):
        t.set("learning_rate", "optimizer.learning_rate", t.fields["learning_rate"])
    if t.has("unet.train"):
        t.same["unet.train"] = "it is"
    elif "unet.train" in t.fields:
        t.left["unet.train"] = (
            "the UNet is always trained; set lora.targets = [] to train the towers' adapters alone"
        )
    for tower, setting in TOWERS.items():
        rate = t.fields.get(f"{tower}.learning_rate") or t.fields.get("learning_rate")
        if t.has(f"{tower}.train") and rate:
            name = f"{tower}.learning_rate" if t.has(f"{tower}.learning_rate") else f"{tower}.train"
            t.set(name, setting, rate)
            t.same.setdefault(f"{tower}.train", f"{setting} trains it")
            if is_lora:
                t.set(name, "lora.text_targets", TEXT_TARGETS)
        elif t.has(f"{tower}.learning_rate"):
            t.same[f"{tower}.learning_rate"] = "the tower is not trained"
        if f"{tower}.train" not in t.fields:
            t.left[f"{tower}.train"] = f"absent, where it trains the tower; {setting} would train it here"


def _lengths(t: Translation) -> None:
    """Intervals count in steps where their unit is STEP."""
    for name, setting in (
        ("save_every", "train.checkpoint_every"),
        ("sample_after", "train.sample_every"),
        ("validate_after", "train.validate_every"),
        ("backup_after", "train.checkpoint_every"),
    ):
        unit = t.fields.get(f"{name}_unit")
        if unit == "STEP" and t.has(name) and setting not in t.settings:
            t.set(name, setting, t.fields[name])
            t.same[f"{name}_unit"] = f"{setting} counts steps"
        elif unit == "NEVER" or (name in t.fields and not t.has(name)):
            t.off += [place for place in (name, f"{name}_unit") if place in t.fields]
        elif name in t.fields:
            t.left[name] = f"{unit or 'its unit'} is no number of steps; set {setting}"
            t.same[f"{name}_unit"] = f"belongs to {name}"
    warmup, steps = t.fields.get("learning_rate_warmup_steps"), t.fields.get("epochs")
    if isinstance(warmup, int | float) and math.isfinite(warmup):
        if warmup > 1 or warmup == 0:
            t.set("learning_rate_warmup_steps", "optimizer.warmup_steps", math.floor(warmup))
        else:
            t.left["learning_rate_warmup_steps"] = (
                f"a share of all steps, of {steps} epochs; set optimizer.warmup_steps"
            )


def _defaults(t: Translation) -> None:
    """What OneTrainer takes where its configuration says nothing, as far as refimpl would take something else."""
    t.assume("diffusion.parameterisation", "eps", "force_v_prediction")
    t.assume("diffusion.zero_terminal_snr", False, "rescale_noise_scheduler_to_zero_terminal_snr")
    t.assume("diffusion.loss_weight", "none", "loss_weight_fn")
    t.assume("train.caption_dropout", 0.0, "dropout_probability of its text encoders")
    t.assume("train.ema_decay", 0.0, "ema, which is off")
    t.assume("tag_weights.enabled", False, "its loss, which tags do not weight")
    t.assume("latents.scale_shift", "checkpoint", "its latents")
    t.assume("train.batch_size", 1, "batch_size")
    t.assume("optimizer.warmup_steps", 200, "learning_rate_warmup_steps")
    if t.epochs is None:
        t.epochs = (f"{ONETRAINER}'s default of epochs", 100.0)
    if "resolution" not in t.fields:
        translate_resolution(t, f"{ONETRAINER}'s default of resolution", 512)
    t.assume("optimizer.learning_rate", 3e-6, "learning_rate")
    if t.fields.get("training_method") == "LORA":
        t.assume("lora.rank", 16, "lora_rank")
        t.assume("lora.alpha", 1.0, "lora_alpha")
