"""Where PEFT and diffusers keep a LoRA's alpha: adapter_config.json beside the file, or the file's metadata.

The update of a module is scaled by alpha / rank, or by alpha / √rank where `use_rslora` says so (Kalajdzievski 2023).
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from refimpl.errors import InputError
from refimpl.tables import parsed_json

CONFIG = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # diffusers': the same settings, each named after its network
LARGEST = torch.finfo(torch.float32).max / 2**16  # of an alpha; √rank may multiply it
NETWORKS = ("unet.", "text_encoder.", "text_encoder_2.")


def read_alphas(path: Path, metadata: Mapping[str, str]) -> Callable[[str, int], float]:
    """A function (name of a module in the file, its rank) → alpha, for a scale of alpha / rank.

    path      the LoRA's file; settings are taken from its metadata, else from adapter_config.json beside it
    Without settings, alpha is the rank. Raises InputError when the settings cannot be read or describe another kind
    of adapter.
    """
    beside = path.with_name(CONFIG)
    if METADATA_KEY in metadata:
        settings = _settings(metadata[METADATA_KEY], f"{path}: metadata {METADATA_KEY}")
    elif beside.is_file():
        try:
            settings = _settings(beside.read_text(encoding="utf-8"), str(beside))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{beside} cannot be read: {error}") from error
    else:
        return lambda _, rank: float(rank)

    def alpha(name: str, rank: int) -> float:
        network = next((prefix for prefix in NETWORKS if name.startswith(prefix)), "")
        own = settings.get(network) or settings.get("", {})
        pattern = own.get("alpha_pattern") or {}
        value = next(
            (pattern[key] for key in pattern if name == key or name.endswith("." + key)),
            own.get("lora_alpha", float(rank)),
        )
        return value * math.sqrt(rank) if own.get("use_rslora") else value

    return alpha


def _settings(text: str, where: str) -> dict[str, dict[str, Any]]:
    """Network prefix (empty for settings that name no network) → checked settings."""
    try:
        table = parsed_json(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a JSON object of settings, not {table!r:.80}")
    settings: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        network = next((prefix for prefix in NETWORKS if key.startswith(prefix)), "")
        settings.setdefault(network, {})[key.removeprefix(network)] = value
    for own in settings.values():
        _check(own, where)
    return settings


def _check(own: Mapping[str, Any], where: str) -> None:
    if own.get("peft_type", "LORA") != "LORA" or own.get("use_dora"):
        kind = "DoRA" if own.get("use_dora") else own["peft_type"]
        raise InputError(f"{where} describes {kind!r:.80}; only plain LoRA is read")
    pattern = own.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise InputError(f"{where}: alpha_pattern must be a JSON object, not {pattern!r:.80}")
    for name in pattern:
        if not all(letter.isalnum() or letter in "._-" for letter in name):
            raise InputError(
                f"{where}: alpha_pattern {name!r:.80} is a regular expression; only module names are supported"
            )
    for name, value in {"lora_alpha": own.get("lora_alpha", 1), **pattern}.items():
        if type(value) not in (int, float) or not abs(value) <= LARGEST:
            raise InputError(f"{where}: alpha {value!r:.80} of {name} is not a finite float32 number")
