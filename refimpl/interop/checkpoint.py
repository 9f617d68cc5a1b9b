"""What a checkpoint of any tool holds, under the names of the published single file (N §2, App. B).

Every format's `load` returns a `Checkpoint` and its `save` takes one, so that any two formats convert into each
other. Tensors keep the dtype they are stored in, and are memory-mapped where the format allows it: holding a
Checkpoint costs next to no memory, and a tensor is read when it is used.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from refimpl.checks import check_choice
from refimpl.errors import InputError
from refimpl.latents.scale_shift import SDXL_DEFAULT, ScaleShift

KINDS = ("eps", "v", "x0")


@dataclass(frozen=True)
class Prediction:
    """What the UNet predicts, on which end of the schedule, and how that is known.

    Raises InputError for an unknown kind, eps on a schedule that ends in pure noise, or sigmas out of order.
    """

    kind: str
    """eps, v or x0: the names of refimpl.diffusion.config's parameterisation"""
    zero_terminal_snr: bool
    """trained on the schedule that ends in pure noise (N §2.2)"""
    reason: str
    """how it was decided, human-readable: "marker v_pred", "no marker: eps", "given" """
    sigma_min: float | None = None
    """of `edm_vpred.sigma_min`: the network is conditioned on ¼·ln σ_edm between these two, not on t"""
    sigma_max: float | None = None
    """of `edm_vpred.sigma_max`"""

    def __post_init__(self) -> None:
        check_choice("prediction", self.kind, KINDS)
        if self.zero_terminal_snr and self.kind == "eps":
            raise InputError(
                f"prediction eps on a schedule that ends in pure noise ({self.reason}): at SNR 0 eps says nothing "
                "of the image; give v (--v-pred), or take zero-terminal-SNR away"
            )
        for name, sigma in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if sigma is not None and not (sigma > 0 and math.isfinite(sigma)):
                raise InputError(f"prediction: {name} {sigma} must be positive and finite ({self.reason})")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise InputError(
                f"prediction: sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max} ({self.reason})"
            )


EPS_BY_DEFAULT = Prediction("eps", False, "no marker: eps, as SDXL was published")


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model, by the keys each format maps to; a part that a file does not hold is None."""

    unet: Mapping[str, Tensor] | None = None
    """keys of refimpl.model.unet.UNet: those below `model.diffusion_model.` in the single file"""
    vae: Mapping[str, Tensor] | None = None
    """keys of refimpl.latents.vae.VAE: those below `first_stage_model.` in the single file"""
    text_l: Mapping[str, Tensor] | None = None
    """CLIP-L by transformers' CLIPTextModel names, always with the prefix `text_model.`"""
    text_g: Mapping[str, Tensor] | None = None
    """bigG by CLIPTextModelWithProjection's names: `text_model.…` and `text_projection.weight`"""
    prediction: Prediction = EPS_BY_DEFAULT
    """what the UNet predicts"""
    scale_shift: ScaleShift = SDXL_DEFAULT
    """of the latents; 0.13025 where the file says nothing"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """of the safetensors header: `modelspec.*` and whatever else"""
    other: Mapping[str, Tensor] = field(default_factory=dict)
    """kept only for an unchanged round trip, by single-file key: logit_scale, position_ids, leftovers"""
