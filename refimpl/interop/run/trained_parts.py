"""The networks of a run that can be trained, and what a checkpoint holds of each.

For the UNet a checkpoint has unet.safetensors (as trained), ema.safetensors (moving average) and
optimizer.safetensors; for each text tower that is trained, it has the same: for text_l, the files text_l, ema_text_l
and optimizer_text_l. For a network with LoRA adapters, these hold only the adapters.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.model.lora.adapters import adapted_layers, add_lora, load_lora_state, lora_state
from refimpl.model.lora.config import LoRAConfig
from refimpl.storage.key_report import check_state, shapes_of
from refimpl.storage.local_tensors import local, local_like
from refimpl.text.tower_names import tower_parameters


def file_name(part: str, kind: str) -> str:
    """Name of a checkpoint's file without its suffix. kind  "weights", "ema" or "optimizer" """
    if kind == "weights":
        return part
    return kind if part == "unet" else f"{kind}_{part}"


def named_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its name in files."""
    if isinstance(network, CLIPTextModel | CLIPTextModelWithProjection):
        return tower_parameters(network)
    return dict(network.named_parameters())


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a network: its adapters if it has any, else all parameters."""
    if adapted_layers(network):
        return lora_state(network)
    return {name: parameter.detach() for name, parameter in named_parameters(network).items()}


@torch.no_grad()
def load_network_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a `network_state` into a network. Raises InputError listing every tensor that differs."""
    if adapted_layers(network):
        check_state(shapes_of(lora_state(network)), state, source)
        load_lora_state(network, state, source)
        return
    parameters = named_parameters(network)
    check_state(shapes_of(parameters), state, source)
    for name, parameter in parameters.items():
        local(parameter).copy_(local_like(parameter, state[name]))


def fill_network(network: nn.Module, fill: Callable[[Mapping[str, Tensor]], None], source: str) -> None:
    """Has a network's `network_state` filled in place; the numbers beside its adapters are then taken from it."""
    state = network_state(network)
    fill(state)
    if adapted_layers(network):
        load_lora_state(network, state, source)


def add_adapters(part: str, network: nn.Module, lora: LoRAConfig, seed: int = 0) -> None:
    """Add LoRA adapters to a part's layers according to the settings. Only the UNet's adapters use dropout."""
    if part == "unet":
        add_lora(network, lora.targets, lora.rank, lora.alpha, lora.dropout, seed)
    else:
        add_lora(network, lora.text_targets, lora.rank, lora.alpha, 0.0, seed)
