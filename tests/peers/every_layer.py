"""LoRAs of SDXL's whole size, of random numbers: of every layer, or of those that kohya's trainer adapts."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.interop.lora import files
from refimpl.interop.lora.files import LoRAFile
from refimpl.model.config import UNetConfig
from refimpl.model.lora.adapters import ALPHA, DOWN, UP, adaptable_layers, match_targets
from refimpl.model.lora.config import ATTENTION_TARGETS, TEXT_TARGETS
from refimpl.model.unet import UNet
from refimpl.text.encoders import clip_bigg_config, clip_l_config

RANK = 2


def write_lora(path: Path, is_whole: bool) -> dict[str, int]:
    """Writes a LoRA of rank 2 of every Linear and Conv2d, or of the default targets; part → number of modules."""
    with torch.device("meta"):
        networks = {
            "unet": UNet(UNetConfig.sdxl()),
            "text_l": CLIPTextModel(clip_l_config()),
            "text_g": CLIPTextModelWithProjection(clip_bigg_config()),
        }
    generator = torch.Generator().manual_seed(0)
    states, counts = {}, {}
    for part, network in networks.items():
        layers = adaptable_layers(network)
        targets: Iterable[str] = ATTENTION_TARGETS if part == "unet" else TEXT_TARGETS
        names = list(layers) if is_whole else match_targets(layers, targets)
        counts[part], states[part] = len(names), {}
        for name in names:
            shape = tuple(layers[name].weight.shape)
            states[part] |= {
                f"{name}.{DOWN}": torch.randn(RANK, *shape[1:], generator=generator),
                f"{name}.{UP}": torch.randn(shape[0], RANK, *(1 for _ in shape[2:]), generator=generator),
                f"{name}.{ALPHA}": torch.tensor(1.0),
            }
    files.save(LoRAFile(**states), path, torch.float16)
    return counts
