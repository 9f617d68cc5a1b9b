"""What becomes of each of OneTrainer's fields that mean something by themselves."""

import math
import re
from typing import Any

from refimpl.run.settings.onetrainer_fields import OTHER_NETWORKS
from refimpl.run.settings.translated import (
    CACHED,
    SWITCH,
    Rule,
    Translation,
    chosen,
    later,
    leave,
    length_in_epochs,
    same,
    to,
)

SDXL = ("STABLE_DIFFUSION_XL_10_BASE", "STABLE_DIFFUSION_XL_10_BASE_INPAINTING")
TOWERS = {"text_encoder": "text.learning_rate_l", "text_encoder_2": "text.learning_rate_g"}

EXPORTED = "a run keeps float32 checkpoints; `refimpl export RUN FILE --dtype fp16` writes others"
FLOAT32 = "weights are held in float32 (N §4)"


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


def _ema(t: Translation, name: str, value: Any) -> None:
    t.set(name, "train.ema_decay", 0.0 if value == "OFF" else t.fields.get("ema_decay", 0.999))


def _prediction(t: Translation, name: str, value: Any) -> None:
    if value:
        t.set(name, "diffusion.parameterisation", "v" if name == "force_v_prediction" else "eps")


def translate_resolution(t: Translation, name: str, value: Any) -> None:
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


def _weight_dtype(t: Translation, name: str, value: Any) -> None:
    if value == "BFLOAT_16" and t.fields.get("train_dtype") == "BFLOAT_16":
        t.set(name, "train.weight_dtype", "bf16")
    elif value in ("FLOAT_32", "NONE"):
        t.same[name] = FLOAT32
    else:
        t.left[name] = f"{value!r}: {FLOAT32}, or in bf16 with train_dtype BFLOAT_16"


def _noising(setting: str, less: int) -> Rule:
    """A share of the schedule as a timestep."""
    return lambda t, name, value: t.set(name, setting, max(0, round(1000 * float(value)) - less))


def _backups(t: Translation, name: str, value: Any) -> None:
    if t.has("rolling_backup"):
        t.set(name, "train.keep_checkpoints", value)
        t.same["rolling_backup"] = "older checkpoints are deleted"
    else:
        t.same[name] = "rolling_backup is off"


OPTIMIZERS = {"ADAMW": "adamw", "ADAMW_8BIT": "adamw8bit", "ADAFACTOR": "adafactor", "PRODIGY": "prodigy"}
PRECISIONS = {"BFLOAT_16": "bf16", "FLOAT_32": "fp32", "TFLOAT_32": "tf32"}
RULES: dict[str, Rule] = {
    "__version": same("it numbers the layout of its file"),
    "training_method": _method,
    "model_type": same("it is SDXL", SDXL[:1], "there is no inpainting; the UNet takes 4 channels"),
    "base_model_name": to("train.init_from"),
    "vae.model_name": to("latents.weights"),
    "workspace_dir": to("train.out"),
    "output_model_destination": leave(EXPORTED),
    "output_model_format": leave(EXPORTED),
    "output_dtype": leave(EXPORTED),
    "epochs": length_in_epochs,
    "batch_size": to("train.batch_size"),
    "gradient_accumulation_steps": to("train.accumulate"),
    "learning_rate_scheduler": chosen(
        "optimizer.decay", {"CONSTANT": "constant", "COSINE": "cosine"}, "the rate is constant or falls by a cosine",
    ),
    "clip_grad_norm": to("optimizer.clip_norm"),
    "optimizer.optimizer": chosen("optimizer.kind", OPTIMIZERS, f"refimpl has {', '.join(OPTIMIZERS.values())}"),
    "optimizer.beta1": to("optimizer.beta1"),
    "optimizer.beta2": to("optimizer.beta2"),
    "optimizer.eps": to("optimizer.epsilon"),
    "optimizer.weight_decay": to("optimizer.weight_decay"),
    "ema": _ema,
    "ema_decay": same("taken where ema is on"),
    "train_dtype": chosen("train.precision", PRECISIONS, "float16 needs a scale for its gradients; use bf16 or tf32"),
    **dict.fromkeys(
        ("weight_dtype", "vae.weight_dtype", "text_encoder.weight_dtype",
         "text_encoder_2.weight_dtype", "lora_weight_dtype"), same(FLOAT32, ("FLOAT_32", "NONE"), FLOAT32),
    ),
    "unet.weight_dtype": _weight_dtype,
    "unet.gradient_checkpointing": chosen(
        "train.activation_checkpointing", {True: "full", "ON": "full", "CPU_OFFLOADED": "full", False: "none",
                                           "OFF": "none"}, SWITCH,
    ),
    "resolution": translate_resolution,
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
