"""A configuration of OneTrainer (its JSON) as settings of refimpl.

The fields are those of its files (github.com/Nerogar/OneTrainer, training_presets/ and what "export" writes), in
the present layout and in the flat one of earlier versions.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from refimpl.errors import InputError
from refimpl.model.lora.config import TEXT_TARGETS
from refimpl.run.settings.onetrainer_concepts import read_concepts, translate_concepts
from refimpl.run.settings.onetrainer_fields import KNOWN, OTHER_NETWORKS
from refimpl.run.settings.translated import (
    Rule,
    Translation,
    chosen,
    flattened,
    later,
    leave,
    same,
    settle,
    to,
    translate,
)

ONETRAINER = "OneTrainer"
SDXL = ("STABLE_DIFFUSION_XL_10_BASE", "STABLE_DIFFUSION_XL_10_BASE_INPAINTING")
TOWERS = {"text_encoder": "text.learning_rate_l", "text_encoder_2": "text.learning_rate_g"}
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

SWITCH = "neither on nor off"
CACHED = "encode once with `refimpl cache`, then name the folder with data.cache"
EXPORTED = "a run keeps float32 checkpoints; `refimpl export RUN FILE --dtype fp16` writes others"
FLOAT32 = "weights are held in float32 (N §4)"


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
    if t.fields.get("unet.train", True) is False:
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
    if isinstance(warmup, int | float):
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
        _resolution(t, f"{ONETRAINER}'s default of resolution", 512)
    t.assume("optimizer.learning_rate", 3e-6, "learning_rate")
    if t.fields.get("training_method") == "LORA":
        t.assume("lora.rank", 16, "lora_rank")
        t.assume("lora.alpha", 1.0, "lora_alpha")


def _method(t: Translation, name: str, value: Any) -> None:
    ways = {"FINE_TUNE": "the whole UNet is trained", "LORA": "lora.rank trains adapters"}
    if value in ways:
        t.same[name] = ways[value]
    else:
        t.left[name] = (
            f"{value}: refimpl trains the networks or a LoRA; `refimpl train-decoder` finetunes a decoder"
        )


def _lora(setting: str) -> Rule:
    """Carries over a field of LoRA where one is trained."""

    def rule(t: Translation, name: str, value: Any) -> None:
        if t.fields.get("training_method") == "LORA":
            t.set(name, setting, value)
        else:
            t.same[name] = "no LoRA is trained"

    return rule


def _epochs(t: Translation, name: str, value: Any) -> None:
    t.epochs = (name, float(value))


def _ema(t: Translation, name: str, value: Any) -> None:
    t.set(name, "train.ema_decay", 0.0 if value == "OFF" else t.fields.get("ema_decay", 0.999))


def _prediction(t: Translation, name: str, value: Any) -> None:
    if value:
        t.set(name, "diffusion.parameterisation", "v" if name == "force_v_prediction" else "eps")


def _resolution(t: Translation, name: str, value: Any) -> None:
    """A side or width×height: the area of the buckets. Several of them are several resolutions at once."""
    several = str(value).split(",")
    sides = [int(side) for side in re.findall(r"\d+", several[0])]
    area = sides[0] * sides[-1]
    side = math.isqrt(area)
    t.set(name, "buckets.max_area", area)
    if t.fields.get("aspect_ratio_bucketing", True):
        t.assume(
            "buckets.max_side", 2 * side // 64 * 64, "its buckets, of sides up to twice that of a square"
        )
        t.assume("buckets.min_side", side // 2 // 64 * 64, "its buckets, of sides from half that of a square")
    elif sides[0] == sides[-1]:
        for setting in ("min_side", "max_side"):
            t.set(name, f"buckets.{setting}", side)
    if len(several) > 1:
        t.left[f"{name}: {', '.join(several[1:])}"] = (
            "a run has one resolution at a time; [[stages]] has several"
        )


def _loss_weight(t: Translation, name: str, value: Any) -> None:
    if value == "MIN_SNR_GAMMA":
        t.set(name, "diffusion.loss_weight", "paper")  # min(SNR, γ) / (SNR + 1) of a v-loss, as it has it
        t.set("loss_weight_strength", "diffusion.min_snr_gamma", t.fields.get("loss_weight_strength", 5.0))
    elif value == "CONSTANT":
        t.set(name, "diffusion.loss_weight", "none")
    else:
        t.left[name] = f"{value}: refimpl has MinSNR and constant weights"
    if "loss_weight_strength" in t.fields and value != "MIN_SNR_GAMMA":
        t.same["loss_weight_strength"] = f"{value} does not use it"


def _noising(setting: str, less: int) -> Rule:
    """A share of the schedule as a timestep."""
    return lambda t, name, value: t.set(name, setting, max(0, round(1000 * float(value)) - less))


def _backups(t: Translation, name: str, value: Any) -> None:
    if t.has("rolling_backup"):
        t.set(name, "train.keep_checkpoints", value)
        t.same["rolling_backup"] = "older checkpoints are deleted"
    else:
        t.same[name] = "rolling_backup is off"


PRECISIONS = {"BFLOAT_16": "bf16", "FLOAT_32": "fp32", "TFLOAT_32": "tf32"}
RULES: dict[str, Rule] = {
    "training_method": _method,
    "model_type": same("it is SDXL", SDXL[:1], "there is no inpainting; the UNet takes 4 channels"),
    "base_model_name": to("train.init_from"),
    "vae.model_name": to("latents.weights"),
    "workspace_dir": to("train.out"),
    "output_model_destination": leave(EXPORTED),
    "output_model_format": leave(EXPORTED),
    "output_dtype": leave(EXPORTED),
    "epochs": _epochs,
    "batch_size": to("train.batch_size"),
    "gradient_accumulation_steps": to("train.accumulate"),
    "learning_rate_scheduler": chosen(
        "optimizer.decay", {"CONSTANT": "constant", "COSINE": "cosine"}, "the rate is constant or falls by a cosine",
    ),
    "clip_grad_norm": to("optimizer.clip_norm"),
    "optimizer.optimizer": same("it is AdamW here too", ("ADAMW",), "refimpl takes AdamW; set optimizer yourself"),
    "optimizer.beta1": to("optimizer.beta1"),
    "optimizer.beta2": to("optimizer.beta2"),
    "optimizer.eps": to("optimizer.epsilon"),
    "optimizer.weight_decay": to("optimizer.weight_decay"),
    "ema": _ema,
    "ema_decay": same("taken where ema is on"),
    "train_dtype": chosen("train.precision", PRECISIONS, "float16 needs a scale for its gradients; use bf16 or tf32"),
    **dict.fromkeys(
        ("weight_dtype", "unet.weight_dtype", "vae.weight_dtype", "text_encoder.weight_dtype",
         "text_encoder_2.weight_dtype", "lora_weight_dtype"), same(FLOAT32, ("FLOAT_32", "NONE"), FLOAT32),
    ),
    "unet.gradient_checkpointing": chosen(
        "train.activation_checkpointing", {True: "full", "ON": "full", "CPU_OFFLOADED": "full", False: "none",
                                           "OFF": "none"}, SWITCH,
    ),
    "resolution": _resolution,
    "aspect_ratio_bucketing": same("images are sorted into buckets (N §4.1.2), or into the one of resolution"),
    "offset_noise_weight": to("diffusion.offset_noise"),
    "rescale_noise_scheduler_to_zero_terminal_snr": to("diffusion.zero_terminal_snr"),
    "force_v_prediction": _prediction,
    "force_epsilon_prediction": _prediction,
    "loss_weight_fn": _loss_weight,
    "mse_strength": same("the loss is the squared error", (1, 1.0), "the loss is the squared error (N §2.1)"),
    "min_noising_strength": _noising("diffusion.first_timestep", 0),
    "max_noising_strength": _noising("diffusion.last_timestep", 1),
    "timestep_distribution": same("timesteps are uniform", ("UNIFORM",), "timesteps are drawn uniformly (N §2)"),
    "lora_rank": _lora("lora.rank"),
    "lora_alpha": _lora("lora.alpha"),
    "peft_type": same("adapters are plain LoRA", ("LORA",), "refimpl trains plain LoRA alone"),
    "compile": chosen("train.compile", {True: "blocks", False: "none"}, SWITCH),
    "attention_mechanism": same("train.attention auto takes the fastest kernel"),
    "train_device": chosen("train.device", {"cuda": "auto", "cpu": "cpu"}, "refimpl trains on cuda or cpu"),
    "caching_threads": to("data.workers"),
    "latent_caching": leave(CACHED),
    "image_caching": leave(CACHED),
    "text_caching": leave(CACHED),
    "tensorboard": to("train.tensorboard"),
    "rolling_backup_count": _backups,
    "sample_definition_file_name": leave("write the prompts into sample.prompts"),
    **dict.fromkeys(
        ("learning_rate", "unet.learning_rate", "unet.train", "learning_rate_warmup_steps", "rolling_backup",
         "loss_weight_strength", "concept_file_name", *(f"{tower}.train" for tower in TOWERS),
         *(f"{tower}.learning_rate" for tower in TOWERS)), later,
    ),
    **dict.fromkeys(OTHER_NETWORKS, same("SDXL has no such network")),
    "optimizer_defaults": same("its memory of other optimizers"),
    "cloud": leave("refimpl runs where it is called; docs/scale.md has recipes"),
    "secrets": leave("refimpl keeps no secrets in settings"),
    **dict.fromkeys(("embedding", "additional_embeddings", "embeddings"), leave("refimpl trains no embeddings")),
    "quantization": leave("weights are not quantised"),
    "samples": leave("write the prompts into sample.prompts"),
    "text_encoder.include": same("both towers encode"),
    "text_encoder_2.include": same("both towers encode"),
    "unet.include": same("it is trained"),
    "vae.include": same("it encodes the images"),
    "prefetch_next_batch": same("the next batch is loaded while this one is trained on"),
}  # fmt: skip
