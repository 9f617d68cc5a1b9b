"""All networks from prompt to image, with their noise schedule and parameterisation, as one model (S §2, Tab. 1)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.model.unet import UNet
from refimpl.text.conditioning import null_condition
from refimpl.text.config import TextConfig
from refimpl.text.tokenizer import Tokenizer

PARTS = ("unet", "text_l", "text_g")
"""Names of the networks that can be trained, as used in files and settings."""


@dataclass(frozen=True)
class Model:
    """Everything between a prompt and an image, and what the numbers in it mean."""

    unet: UNet
    vae: VAE
    scale_shift: ScaleShift
    tokenizer: Tokenizer
    encoder_l: CLIPTextModel | None
    encoder_g: CLIPTextModelWithProjection
    text: TextConfig
    diffusion: DiffusionConfig
    image_tower: CLIPVisionModelWithProjection | None = None

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """alpha and sigma of every timestep."""
        return self.diffusion.schedule()

    @property
    def parameterisation(self) -> str:
        """What the UNet's output means."""
        return self.diffusion.parameterisation

    def to(self, device: torch.device) -> "Model":
        """Moves every network to the device; returns self."""
        for network in (self.unet, self.vae, self.encoder_l, self.encoder_g, self.image_tower):
            if network is not None:
                torch.nn.Module.to(network, device)
        return self

    def parts(self) -> dict[str, torch.nn.Module]:
        """The networks that can be trained, keyed by the names in PARTS."""
        networks = zip(PARTS, (self.unet, self.encoder_l, self.encoder_g), strict=True)
        return {name: network for name, network in networks if network is not None}

    def null_condition(self) -> tuple[Tensor, Tensor]:
        """The unconditional context [1, 77, D] and pooled state [1, P], as used in training."""
        return null_condition(self.text.null, self.tokenizer, self.encoder_l, self.encoder_g)
