"""A text tower's parameters under names that are the same in every version of transformers, and which are unused.

transformers 5.6 dropped the outer `text_model` of CLIPTextModel; files keep the names that include it.
"""

from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

PREFIX = "text_model."


def tower_parameters(encoder: CLIPTextModel | CLIPTextModelWithProjection) -> dict[str, nn.Parameter]:
    """Every parameter by name: `text_model.…`, and bigG's `text_projection.weight`."""
    return {
        name if name.startswith((PREFIX, "text_projection.")) else PREFIX + name: parameter
        for name, parameter in encoder.named_parameters()
    }


def freeze_unused(encoder: CLIPTextModel | CLIPTextModelWithProjection) -> None:
    """Freezes parameters that do not affect the conditioning: CLIP-L's last layer and final norm.

    CLIP-L's penultimate states are used, whereas bigG's pooled state passes through all its layers. A parameter that
    never gets a gradient would stall DDP and give AdamW nothing to average.
    """
    if isinstance(encoder, CLIPTextModelWithProjection):
        return
    last = f"{PREFIX}encoder.layers.{encoder.config.num_hidden_layers - 1}."
    for name, parameter in tower_parameters(encoder).items():
        if name.startswith((last, f"{PREFIX}final_layer_norm.")):
            parameter.requires_grad_(False)
