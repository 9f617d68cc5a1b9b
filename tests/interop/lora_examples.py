"""Small networks with adapters that have an effect, and the key names with which other trainers store them."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from refimpl.interop.lora.files import LoRAFile
from refimpl.interop.network.architecture import Architecture
from refimpl.model.lora.adapters import adapted_layers, add_lora, lora_state
from refimpl.model.lora.config import ATTENTION_TARGETS, TEXT_TARGETS
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.encoders import tiny_configs, tiny_encoders
from tests.model.diffusers_unet import SIZE_FEATURES, SIZES, to_diffusers, trained_looking

Filled = TypeVar("Filled", bound=nn.Module)
CONFIG = replace(UNetConfig.tiny(), vector_dim=64 + SIZES * SIZE_FEATURES)
ARCHITECTURE = Architecture(CONFIG, None, *tiny_configs())
CONVOLUTIONS = ("*.in_layers.2", "*.out_layers.3", "*.op", "*.conv", "*.skip_connection", "input_blocks.0.0")
OUTER = ("time_embed.*", "label_emb.*", "*.emb_layers.1", "out.2")
EVERYTHING = (*ATTENTION_TARGETS, *CONVOLUTIONS, *OUTER)


def fill(network: Filled, seed: int = 0) -> Filled:
    """Draw the up matrices, which start at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(network).values():
            layer.lora_up.weight.normal_(0, 0.3, generator=generator)
    return network


def unet(seed: int = 0) -> UNet:
    """The tiny UNet with every tensor filled; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trained_looking(UNet(CONFIG)).eval()


def networks(
    rank: int = 2, alpha: float = 3.0, targets: tuple[str, ...] = EVERYTHING
) -> dict[str, nn.Module]:
    """Part → network with adapters."""
    encoder_l, encoder_g = tiny_encoders()
    parts = {"unet": unet(), "text_l": encoder_l, "text_g": encoder_g}
    for number, (part, network) in enumerate(parts.items()):
        add_lora(network, targets if part == "unet" else TEXT_TARGETS, rank, alpha, seed=number)
        fill(network, number)
    return parts


def lora_file(parts: Mapping[str, nn.Module], **metadata: str) -> LoRAFile:
    """The contents of a file of these networks' adapters."""
    return LoRAFile(**{part: lora_state(network) for part, network in parts.items()}, metadata=metadata)


@functools.cache
def example() -> LoRAFile:
    """Adapters of every kind of module of the tiny UNet and towers; must not be changed."""
    return lora_file(networks())


def diffusers_spelled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's adapters by diffusers' module names, found by the tests' own map of tensors."""
    renamed = {}
    for key, value in state.items():
        module, slot = key.replace(".lora_", "|lora_").replace(".alpha", "|alpha").split("|")
        name = next(iter(to_diffusers({f"{module}.weight": value}, CONFIG))).removesuffix(".weight")
        renamed[f"{name}.{slot}"] = value
    return renamed


def kohya(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """kohya's keys: the module's name with underscores for dots."""
    spelled = {}
    for key, value in state.items():
        module, slot = key.replace(".lora_", "|lora_").replace(".alpha", "|alpha").split("|")
        spelled[f"{prefix}_{module.replace('.', '_')}.{slot}"] = value
    return spelled


def peft(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's keys, without alphas, which PEFT keeps in a separate file."""
    letters = {"lora_down": "lora_A", "lora_up": "lora_B"}
    spelled = {}
    for key, value in state.items():
        for ours, theirs in letters.items():
            if ours in key:
                spelled[prefix + key.replace(ours, theirs)] = value
    return spelled
