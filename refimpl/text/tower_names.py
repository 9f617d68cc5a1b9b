"""A text tower's parameters under names that no version of transformers changes, and those that train.

transformers 5.6 dropped the outer `text_model` of CLIPTextModel; files keep the names with it.
"""

from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

PREFIX = "text_model."


def tower_parameters(encoder: CLIPTextModel | CLIPTextModelWithProjection) -> dict[str, nn.Parameter]:
    """Every parameter: `text_model.…`, and `text_projection.weight` of bigG."""
    return {
        name if name.startswith((PREFIX, "text_projection.")) else PREFIX + name: parameter
        for name, parameter in encoder.named_parameters()
    }


def freeze_unused(encoder: CLIPTextModel | CLIPTextModelWithProjection) -> None:
    """Freezes what no condition sees: CLIP-L's last layer and final norm, as its penultimate states are used.

    bigG's pooled state passes through all its layers. A parameter without a gradient would stall DDP and have
    nothing for AdamW to average.
    """
    if isinstance(encoder, CLIPTextModelWithProjection):
        return
    last = f"{PREFIX}encoder.layers.{encoder.config.num_hidden_layers - 1}."
    for name, parameter in tower_parameters(encoder).items():
        if name.startswith((last, f"{PREFIX}final_layer_norm.")):
            parameter.requires_grad_(False)
