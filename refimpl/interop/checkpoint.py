"""The contents of a checkpoint from any tool, with the names of the published single file (N §2, App. B).

Every format's `load` returns a `Checkpoint` and its `save` takes one, so that any format can be converted into any
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
    """What the UNet predicts, whether its schedule ends in pure noise, and how that is known.

    Raises InputError for an unknown kind, eps on a schedule that ends in pure noise, or sigmas that are not positive
    and finite or are out of order.
    """

    kind: str
    """eps, v or x0, as `parameterisation` in refimpl.diffusion.config"""
    zero_terminal_snr: bool
    """whether it was trained on the schedule that ends in pure noise (N §2.2)"""
    reason: str
    """how it was decided, human-readable: "marker v_pred", "no marker: eps", "given" """
    sigma_min: float | None = None
    """value of `edm_vpred.sigma_min`: the network is conditioned on ¼·ln σ_edm between the two sigmas, not on t"""
    sigma_max: float | None = None
    """value of `edm_vpred.sigma_max`"""

    def __post_init__(self) -> None:
        check_choice("prediction", self.kind, KINDS)
        if self.zero_terminal_snr and self.kind == "eps":
            raise InputError(
                f"prediction eps on a schedule that ends in pure noise ({self.reason}): at SNR 0 eps says nothing "
                "about the image; give v (--v-pred), or turn zero terminal SNR off"
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
    """The parts of a model, with the keys that each format is mapped to; a part that a file does not have is None."""

    unet: Mapping[str, Tensor] | None = None
    """keys of refimpl.model.unet.UNet: those below `model.diffusion_model.` in the single file"""
    vae: Mapping[str, Tensor] | None = None
    """keys of refimpl.latents.vae.VAE: those below `first_stage_model.` in the single file"""
    text_l: Mapping[str, Tensor] | None = None
    """CLIP-L with the names of transformers' CLIPTextModel, always with the prefix `text_model.`"""
    text_g: Mapping[str, Tensor] | None = None
    """bigG with the names of CLIPTextModelWithProjection: `text_model.…` and `text_projection.weight`"""
    prediction: Prediction = EPS_BY_DEFAULT
    """what the UNet predicts"""
    scale_shift: ScaleShift = SDXL_DEFAULT
    """scale-and-shift of the latents; 0.13025 if the file says nothing"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """metadata of the safetensors header: `modelspec.*` and anything else"""
    other: Mapping[str, Tensor] = field(default_factory=dict)
    """tensors kept only for a lossless round trip, by single-file key: logit_scale, position_ids, leftovers"""
