"""A configuration of kohya's sd-scripts (`--config_file`, `--dataset_config`) as settings of refimpl.

The fields are those that its command line prints as help (github.com/kohya-ss/sd-scripts, sdxl_train.py and
sdxl_train_network.py) and those of docs/config_README-en.md.
"""

import re
from collections.abc import Mapping
from typing import Any

from refimpl.run.optimizer_config import KINDS
from refimpl.run.settings.kohya_data import DATA_RULES, Merged, add_data, leave_other_sets
from refimpl.run.settings.kohya_fields import WITHOUT
from refimpl.run.settings.kohya_networks import NETWORK_FIELDS, translate_networks
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
    settle,
    to,
    translate,
)

KOHYA = "sd-scripts"

EXPORTED = "checkpoints are float32 safetensors; `refimpl export RUN FILE --dtype fp16` writes others"
CHOSEN = "train.attention auto takes the fastest kernel"
HUB = "refimpl push uploads a run"


def from_kohya(table: Mapping[str, Any], folder: str) -> Translation:
    """Translates a configuration, with the dataset configuration that it names or is.

    folder  the folder of the configuration, from which `dataset_config` may be relative
    Raises InputError for a dataset configuration that is not TOML.
    """
    found = Merged(frozenset((*RULES, *DATA_RULES, *WITHOUT, "general", "datasets")))
    for name, value in table.items():  # as sd-scripts reads it, sections have no meaning
        is_section = isinstance(value, Mapping) and not (name == "general" and "datasets" in table)
        found.add(value if is_section else {name: value}, name if is_section else "")
    add_data(found, folder)
    translation = Translation(KOHYA, found.fields)
    translate(translation, RULES | DATA_RULES, WITHOUT)
    translate_networks(translation)
    leave_other_sets(translation)
    found.tell_overridden(translation)
    _defaults(translation)
    settle(translation)
    return translation


def _length(t: Translation, name: str, value: Any) -> None:
    if t.has("max_train_epochs"):
        t.same[name] = "max_train_epochs overrides it"
    else:
        t.set(name, "train.steps", value)


def _rate(t: Translation, name: str, value: Any) -> None:
    if t.has("network_module") and t.has("unet_lr"):
        t.same[name] = "unet_lr overrides it"
    else:
        t.set(name, "optimizer.learning_rate", value)


def _warmup(t: Translation, name: str, value: Any) -> None:
    if isinstance(value, float) and value < 1:
        steps = t.fields.get("max_train_steps")
        if t.has("max_train_epochs") or not isinstance(steps, int):
            t.left[name] = "a share of the steps, whose number it does not give; set optimizer.warmup_steps"
            return
        value = round(value * steps)
    t.set(name, "optimizer.warmup_steps", value)


def _optimizer(t: Translation, name: str, value: Any) -> None:
    if str(value).lower() in KINDS:  # as sd-scripts compares them
        t.set(name, "optimizer.kind", str(value).lower())
    else:
        t.left[name] = f"{value!r}: refimpl has {', '.join(KINDS)} (optimizer.kind)"


def _adamw8bit(t: Translation, name: str, value: Any) -> None:
    if value is True:
        t.set(name, "optimizer.kind", "adamw8bit")


def _optimizer_arguments(t: Translation, name: str, value: Any) -> None:
    """`["weight_decay=0.1", "betas=0.9,0.99"]`: those that AdamW has here, and the others in one reason."""
    unused = []
    for entry in value if isinstance(value, list) else [value]:
        key, _, text = str(entry).partition("=")
        numbers = re.findall(r"[-+.\deE]+", text)
        names = {"weight_decay": ("weight_decay",), "eps": ("epsilon",), "betas": ("beta1", "beta2")}.get(
            key, ()
        )
        if not names or len(numbers) != len(names):
            unused.append(str(entry))
        for own, number in zip(names, numbers, strict=False):
            t.set(name, f"optimizer.{own}", number)
    if unused:
        t.left[name] = f"of it, {', '.join(unused)}: AdamW here has no such arguments"


def _min_snr(t: Translation, name: str, value: Any) -> None:
    t.set(name, "diffusion.loss_weight", "paper")  # min(SNR, γ) / (SNR + 1) of a v-loss, as sd-scripts has it
    t.set(name, "diffusion.min_snr_gamma", value)


def _loggers(t: Translation, name: str, value: Any) -> None:
    if value in ("tensorboard", "all"):
        t.set(name, "train.tensorboard", True)
    if value in ("wandb", "all"):
        t.set(name, "train.wandb_project", t.fields.get("log_tracker_name") or "network_train")
    if value not in ("tensorboard", "wandb", "all"):
        t.left[name] = f"{value!r} is unknown; metrics.jsonl is always written"


def _defaults(t: Translation) -> None:
    """What sd-scripts takes where its configuration says nothing, as far as refimpl would take something else."""
    t.assume("diffusion.parameterisation", "eps", "v_parameterization")
    t.assume("diffusion.zero_terminal_snr", False, "zero_terminal_snr")
    t.assume("diffusion.loss_weight", "none", "min_snr_gamma")
    t.assume("train.caption_dropout", 0.0, "caption_dropout_rate")
    t.assume("train.ema_decay", 0.0, "its weights, of which it keeps no average")
    t.assume("tag_weights.enabled", False, "its loss, which tags do not weight")
    t.assume("train.batch_size", 1, "train_batch_size")
    t.assume("optimizer.learning_rate", 2e-6, "learning_rate")
    t.assume("latents.scale_shift", "checkpoint", "its latents")
    if t.epochs is None:
        t.assume("train.steps", 1600, "max_train_steps")


def _out(t: Translation, name: str, value: Any) -> None:
    t.set(name, "train.out", "/".join(filter(None, (str(value).rstrip("/"), t.fields.get("output_name")))))


def _out_name(t: Translation, name: str, value: Any) -> None:
    if t.has("output_dir"):
        t.same[name] = "train.out ends in it"
    else:
        t.set(name, "train.out", f"runs/{value}")


def _last_timestep(t: Translation, name: str, value: Any) -> None:
    t.set(name, "diffusion.last_timestep", int(value) - 1)  # there it is the first that is not trained


def _logger_name(t: Translation, name: str, value: Any) -> None:
    t.same[name] = "train.wandb_project has it, where log_with is wandb or all"


RULES: dict[str, Rule] = {
    "pretrained_model_name_or_path": to("train.init_from"),
    "vae": to("latents.weights"),
    "output_dir": _out,
    "seed": to("train.seed"),
    "max_train_steps": _length,
    "max_train_epochs": length_in_epochs,
    "train_batch_size": to("train.batch_size"),
    "gradient_accumulation_steps": to("train.accumulate"),
    "gradient_checkpointing": chosen("train.activation_checkpointing", {True: "full", False: "none"}, SWITCH),
    "mixed_precision": chosen(
        "train.precision", {"bf16": "bf16", "no": "fp32"},
        "refimpl computes in bf16, tf32 or fp32; float16 needs a scale for its gradients",
    ),
    "learning_rate": _rate,
    "lr_warmup_steps": _warmup,
    "lr_scheduler": chosen(
        "optimizer.decay", {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"},
        "the rate stays constant or falls by a cosine; optimizer.decay says which",
    ),
    "optimizer_type": _optimizer,
    "use_8bit_adam": _adamw8bit,
    "full_bf16": chosen("train.weight_dtype", {True: "bf16", False: "fp32"}, SWITCH),
    "fused_backward_pass": leave("train.step_in_backward does so; it rules out clipping and accumulation"),
    "optimizer_args": _optimizer_arguments,
    "max_grad_norm": to("optimizer.clip_norm"),
    "v_parameterization": chosen("diffusion.parameterisation", {True: "v", False: "eps"}, SWITCH),
    "zero_terminal_snr": to("diffusion.zero_terminal_snr"),
    "min_snr_gamma": _min_snr,
    "noise_offset": to("diffusion.offset_noise"),
    "min_timestep": to("diffusion.first_timestep"),
    "max_timestep": _last_timestep,
    "loss_type": same("the loss is the squared error", ("l2",), "the loss is the squared error (N §2.1)"),
    "save_every_n_steps": to("train.checkpoint_every"),
    "sample_every_n_steps": to("train.sample_every"),
    "validate_every_n_steps": to("train.validate_every"),
    "log_with": _loggers,
    "torch_compile": chosen("train.compile", {True: "blocks", False: "none"}, SWITCH),
    "max_data_loader_n_workers": to("data.workers"),
    "save_precision": leave(EXPORTED),
    "save_model_as": leave(EXPORTED),
    "cache_latents": leave(CACHED),
    "cache_latents_to_disk": leave(CACHED),
    "cache_text_encoder_outputs": leave(CACHED),
    "cache_text_encoder_outputs_to_disk": leave(CACHED),
    "xformers": same(CHOSEN),
    "sdpa": same(CHOSEN),
    "mem_eff_attn": same(CHOSEN),
    "diffusers_xformers": same(CHOSEN),
    "persistent_data_loader_workers": same("loader processes live as long as the run"),
    "max_token_length": same("captions of any length are encoded, in rows of 77 tokens (N §4.2)"),
    "no_half_vae": same("the autoencoder computes in float32"),
    "network_train_text_encoder_only": leave("set lora.targets = [] and lora.text_targets yourself"),
    "network_weights": leave("a LoRA file can't be trained on; --resume continues a run"),
    "sample_prompts": leave("write the prompts into sample.prompts"),
    "validation_split": leave("name held-out images with data.heldout"),
    "resume": leave("its state has another layout; train.init_from starts from weights"),
    "huggingface_repo_id": leave(HUB),
    "log_tracker_name": _logger_name,
    **dict.fromkeys(NETWORK_FIELDS, later),
    "output_name": _out_name,
    "reg_data_dir": leave("there is no prior preservation; leave such images out, or add them to data.folder"),
}  # fmt: skip
