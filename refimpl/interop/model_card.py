"""README.md of a model on a Hugging Face hub: what it predicts, on which schedule, and how it was trained (N §2).

The block between the two --- lines is metadata in YAML (huggingface.co/docs/hub/model-cards).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refimpl.diffusion.config import DiffusionConfig
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.diffusers_folder.scheduler import SDXL_BETAS, scheduler_table
from refimpl.tables import from_table

# Settings that name a place on the trainer's own machine: of these only the last part is told.
PLACES = ("folder", "heldout", "cache", "weights", "tokenizer", "out", "init_from", "scale_shift")
LIBRARY = "diffusers"


@dataclass(frozen=True)
class Facts:
    """What a card tells of a run besides its settings."""

    repo: str
    """user/name on the hub"""
    settings: Mapping[str, Any]
    """the run's configuration as a table"""
    step: int
    """optimizer steps that the weights were trained for"""
    pipeline: str
    """diffusers' class that opens it; for a LoRA, the class it is loaded into"""
    lora: str = ""
    """name of the LoRA's file; empty for a whole model"""
    weights: str = "ema"
    """ema or unet, as trained"""
    version: str = ""
    """of this package"""
    licence: str = ""
    """identifier of the weights' licence, as the hub spells it; empty to leave it open"""


def model_card(facts: Facts) -> str:
    """The card as Markdown. Raises InputError when the settings hold no diffusion process that this version knows."""
    diffusion = from_table(DiffusionConfig, facts.settings.get("diffusion", {}), "the run's [diffusion]")
    prediction = Prediction(
        diffusion.parameterisation, diffusion.zero_terminal_snr, "the run's configuration"
    )
    name = facts.repo.rpartition("/")[2]
    what = "A LoRA for SDXL" if facts.lora else "An SDXL model"
    rows = [f"| {key} | {value} |" for key, value in _schedule(facts, diffusion, prediction).items()]
    parts = [
        _front_matter(facts, prediction),
        f"# {name}",
        f"{what}, trained for {facts.step:,} steps with refimpl {facts.version}. It predicts "
        f"{prediction.kind}{_ending(prediction)}.",
        "## In diffusers",
        *_lines_for_diffusers(facts, prediction),
        "## Schedule and prediction",
        "\n".join(["| | |", "| --- | --- |", *rows]),
        "## Settings",
        "Folders and files are named without the place where they lay.",
        f"```json\n{json.dumps(without_places(facts.settings), indent=1, sort_keys=True)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _ending(prediction: Prediction) -> str:
    return (
        ", on a schedule that ends in pure noise (zero terminal SNR)" if prediction.zero_terminal_snr else ""
    )


def _front_matter(facts: Facts, prediction: Prediction) -> str:
    tags = [
        "stable-diffusion-xl",
        "text-to-image",
        {"v": "v-prediction"}.get(prediction.kind, prediction.kind),
    ]
    tags += ["zero-terminal-snr"] if prediction.zero_terminal_snr else []
    tags += ["lora"] if facts.lora else []
    lines = [f"library_name: {LIBRARY}", "pipeline_tag: text-to-image"]
    lines += [f"license: {json.dumps(facts.licence)}"] if facts.licence else []
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _lines_for_diffusers(facts: Facts, prediction: Prediction) -> list[str]:
    """What loads the model, and what sets a scheduler that was made for another one to it."""
    scheduler = scheduler_table(prediction)
    names = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    given = ", ".join(f"{name}={scheduler[name]!r}" for name in names if name in scheduler)
    if not facts.lora:
        load = (
            f"from diffusers import {facts.pipeline}\npipe = {facts.pipeline}.from_pretrained({facts.repo!r})"
        )
        about = "The folder holds the scheduler's settings; a scheduler of your own must be given the same:"
    else:
        load = f"pipe.load_lora_weights({facts.repo!r}, weight_name={facts.lora!r})"
        about = "A LoRA brings no scheduler: the one of the model that it is loaded into must be set to"
    swap = (
        f"from diffusers import {scheduler['_class_name']} as Scheduler\n"
        f"pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, {given})"
    )
    return [f"```python\n{load}\n```", about, f"```python\n{swap}\n```"]


def _schedule(facts: Facts, diffusion: DiffusionConfig, prediction: Prediction) -> dict[str, str]:
    """What a user of the weights must know about the diffusion process, by name."""
    first, last = diffusion.first_timestep, diffusion.last_timestep
    betas = f"scaled linear, {SDXL_BETAS['beta_start']} to {SDXL_BETAS['beta_end']} over 1000 steps"
    end = float(diffusion.schedule().sigma_edm[last])
    sigma = "∞" if math.isinf(end) else f"{end:.4g}"
    return {
        "prediction type": f"`{scheduler_table(prediction)['prediction_type']}`",
        "betas": betas + (", rescaled to zero terminal SNR" if diffusion.zero_terminal_snr else ""),
        "timesteps trained": f"{first} to {last}, where σ_edm is {sigma}",
        "loss weight": f"`{diffusion.loss_weight}`, γ = {diffusion.min_snr_gamma:g}",
        "offset noise": f"{diffusion.offset_noise:g}",
        "weights": {"ema": "moving average", "unet": "as trained"}[facts.weights],
        "optimizer steps": f"{facts.step}",
    }


def without_places(settings: Any, name: str = "") -> Any:
    """Settings with only the last part of every path, so that a card says nothing about the trainer's machine."""
    if isinstance(settings, Mapping):
        return {key: without_places(value, key) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_places(value, name) for value in settings]
    if name in PLACES and isinstance(settings, str) and settings:
        return os.path.basename(os.path.normpath(settings.replace("\\", "/")))
    return settings
