"""What a configuration of kohya's sd-scripts trains: a LoRA or the networks, and the rates of each."""

from typing import Any

from refimpl.model.lora.config import TEXT_TARGETS
from refimpl.run.settings.translated import Translation

LORA_MODULE = "networks.lora"
DEFAULT_DIM, DEFAULT_ALPHA = 4, 1.0  # of networks.lora
TEXT_RATES = {"learning_rate_te1": "text.learning_rate_l", "learning_rate_te2": "text.learning_rate_g"}
NETWORK_FIELDS = (
    "network_module", "network_dim", "network_alpha", "network_args", "network_train_unet_only", "unet_lr",
    "text_encoder_lr", "train_text_encoder", *TEXT_RATES,
)  # fmt: skip
NO_MODULE = "no network_module is named"


def translate_networks(t: Translation) -> None:
    """Carries over rank, alpha and the rates; what they mean depends on one another."""
    module = t.fields.get("network_module")
    if module == LORA_MODULE:
        _lora(t)
        _lora_text_rates(t)
        return
    if module and not isinstance(module, str):
        t.wrong["network_module"] = "is not a text"
    elif module:
        t.left["network_module"] = f"{module}: refimpl trains plain LoRA alone ({LORA_MODULE})"
    for name in ("network_dim", "network_alpha", "network_args", "unet_lr", "text_encoder_lr"):
        if t.has(name):
            t.left[name] = f"it belongs to {module}" if module else NO_MODULE
    _tower_rates(t)


def _lora(t: Translation) -> None:
    t.same["network_module"] = "lora.rank trains adapters"
    if t.has("network_dim"):
        t.set("network_dim", "lora.rank", t.fields["network_dim"])
    if t.has("network_alpha"):
        t.set("network_alpha", "lora.alpha", t.fields["network_alpha"])
    t.assume("lora.rank", DEFAULT_DIM, "network_dim")
    t.assume("lora.alpha", DEFAULT_ALPHA, "network_alpha")
    if t.has("unet_lr"):
        t.set("unet_lr", "optimizer.learning_rate", t.fields["unet_lr"])
    arguments = t.fields.get("network_args") or []
    unused = []
    for entry in arguments if isinstance(arguments, list) else [arguments]:
        key, _, text = str(entry).partition("=")
        if key == "rank_dropout":
            t.set("network_args", "lora.dropout", text)
        else:
            unused.append(str(entry))
    if unused:
        t.left["network_args"] = f"of it, {', '.join(unused)}: LoRA here has no such arguments"


def _lora_text_rates(t: Translation) -> None:
    if t.has("network_train_unet_only"):
        t.same["network_train_unet_only"] = "the text towers stay frozen unless a rate is given"
        if t.has("text_encoder_lr"):
            t.same["text_encoder_lr"] = "network_train_unet_only overrides it"
    elif t.has("text_encoder_lr"):
        rates: Any = t.fields["text_encoder_lr"]
        rates = rates if isinstance(rates, list) else [rates]
        for setting, rate in zip(TEXT_RATES.values(), (rates[0], rates[-1]), strict=True):
            t.set("text_encoder_lr", setting, rate)
        t.set("text_encoder_lr", "lora.text_targets", TEXT_TARGETS)
    for name in (*TEXT_RATES, "train_text_encoder"):
        if t.has(name):
            t.left[name] = "a LoRA's towers have text_encoder_lr"


def _tower_rates(t: Translation) -> None:
    is_trained = t.has("train_text_encoder")
    for name, setting in TEXT_RATES.items():
        if is_trained and t.has(name):
            t.set(name, setting, t.fields[name])
        elif is_trained and name not in t.fields and t.has("learning_rate"):
            t.set("train_text_encoder", setting, t.fields["learning_rate"])
        elif t.has(name):
            t.left[name] = "the text towers are not trained (train_text_encoder)"
    if is_trained:
        t.same["train_text_encoder"] = "text.learning_rate_l and _g train the towers"
    if t.has("network_train_unet_only"):
        t.left["network_train_unet_only"] = NO_MODULE
