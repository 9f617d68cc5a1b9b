"""What a run trains: the UNet, its image embedding or adapters, and the text towers (S §2.5, §2.6; N §2.1).

everything     all of the UNet
image_prompt   the UNet's `label_emb` alone, the layer that embeds the pooled state (S §2.6): the four tensors
               label_emb.0.0.weight, .bias and label_emb.0.2.weight, .bias
lora           low-rank adapters alone, of the UNet and of the towers that have a rate
text           towers with a rate of their own, beside any of these but image_prompt
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.interop.run.trained_parts import add_adapters, named_parameters, network_state
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet
from refimpl.run.config import Config
from refimpl.text.tower_names import freeze_unused

if TYPE_CHECKING:
    from refimpl.train.sharding.kinds import Sharding

Averages = dict[str, dict[str, Tensor]]
"""Moving averages: part → name → float32 tensor, as far as this rank keeps them (refimpl.train.sharding.kinds)."""


@dataclass(frozen=True)
class Part:
    """A network that is trained, in whole or in part."""

    name: str
    """The part's name in a checkpoint's files, as in refimpl.interop.run.trained_parts."""
    module: nn.Module
    peak: float
    """The part's own peak learning rate; 0 for the stage's."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {n: p for n, p in named_parameters(self.module).items() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps of it."""
        return network_state(self.module)


def make_trainable(model: Model, config: Config) -> list[Part]:
    """Freezes the model, then unfreezes or adapts what the settings train.

    returns  the parts in the order of refimpl.interop.run.trained_parts
    Raises InputError when a LoRA target matches nothing.
    """
    peaks = {"unet": 0.0, "text_l": config.text.learning_rate_l, "text_g": config.text.learning_rate_g}
    parts = []
    for name, network in model.parts().items():
        network.requires_grad_(False)
        is_unet = name == "unet"
        if not (is_unet or peaks[name]) or (is_unet and config.lora.rank and not config.lora.targets):
            continue
        if config.lora.rank:
            add_adapters(name, network, config.lora, config.train.seed)
        elif config.image_prompt.folder and isinstance(network, UNet):
            network.label_emb.requires_grad_(True)
        else:
            network.requires_grad_(True)
        if not is_unet:
            freeze_unused(network)  # pyright: ignore[reportArgumentType]
        part = Part(name, network, peaks[name])
        if not part.parameters():
            raise InputError(
                f"nothing of {name} is left to train; name other lora.targets or lora.text_targets"
            )
        parts.append(part)
    return parts


def check_targets(config: Config) -> None:
    """Raises InputError, naming the nearest modules, when a LoRA target or rank fits nothing; takes no memory."""
    if not config.lora.rank:
        return
    config_l, config_g = config.text.architectures()
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {"unet": UNet(config.unet)} if config.lora.targets else {}
        if config.text.learning_rate_l and config_l is not None:
            networks["text_l"] = CLIPTextModel(config_l)
        if config.text.learning_rate_g:
            networks["text_g"] = CLIPTextModelWithProjection(config_g)
    for name, network in networks.items():
        add_adapters(name, network, config.lora)


@contextlib.contextmanager
def averaged(parts: Sequence[Part], averages: Averages, sharding: "Sharding") -> Iterator[None]:
    """Within the context, the moving averages replace the trained weights and the networks are in eval mode.

    Every rank that measures enters and leaves it. Weights and averages are exchanged in place, tensor by tensor, and
    exchanged again afterwards: FSDP2 gathers what lies in the weights' own memory, and takes no notice of a parameter
    that points elsewhere.
    """
    training = [part.module.training for part in parts]
    sharding.exchange(parts, averages)
    try:
        for part in parts:
            part.module.eval()
        yield
    finally:
        sharding.exchange(parts, averages)
        for part, was_training in zip(parts, training, strict=True):
            part.module.train(was_training)
