"""Adapter of Stability-AI/generative-models (sgm), read from a checkout."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter
from refimpl.conformance.adapters.checkouts.checkout import Checkout

COMMIT = "0ad7de9a5cb53fd63d6d30a4f385485e72e08597"
FOLDER = "sgm/modules/diffusionmodules/"
SCALINGS, TABLE, GUIDERS = (FOLDER + name for name in ("denoiser_scaling.py", "discretizer.py", "guiders.py"))
UTIL = FOLDER + "util.py"


class GenerativeModels(Adapter):
    """VScaling, the legacy DDPM table, and plain guidance; it has no schedule of zero terminal SNR."""

    name = "generative-models (sgm)"

    def __init__(self) -> None:
        self.code = Checkout("Stability-AI/generative-models", COMMIT)
        self.version = self.code.version
        types = {"torch": torch, "Tuple": tuple}
        self.scaling: Any = self.code.take(SCALINGS, "VScaling", **types).VScaling()
        betas = self.code.take(UTIL, "make_beta_schedule", torch=torch, np=np).make_beta_schedule
        self.table: Any = self.code.take(
            TABLE, "generate_roughly_equally_spaced_steps", "Discretization", "LegacyDDPMDiscretization",
            **types, np=np, partial=partial, make_beta_schedule=betas, append_zero=None, abstractmethod=lambda f: f,
        ).LegacyDDPMDiscretization()  # fmt: skip
        self.guider: Any = self.code.take(GUIDERS, "VanillaCFG", Guider=object, Dict=dict, **types)

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {
            "scalings": (SCALINGS, "VScaling"),
            "schedule": (TABLE, "LegacyDDPMDiscretization"),
            "guide": (GUIDERS, "VanillaCFG"),
        }
        return self.code.link(*called[method]) if method in called else ""

    def schedule(self, zero_snr: bool) -> Tensor:
        """alphas_cumprod of the legacy table."""
        if zero_snr:
            raise NotImplementedError("it has no zero-SNR table")
        return torch.as_tensor(self.table.alphas_cumprod)

    def scalings(self, sigma_edm: Tensor) -> Sequence[Tensor]:
        """VScaling."""
        return self.scaling(sigma_edm)[:3]

    def guide(self, cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
        """VanillaCFG; it has no rescale."""
        if rescale > 0:
            raise NotImplementedError("it has no rescale")
        return self.guider.VanillaCFG(scale)(torch.cat([uncond, cond]), torch.zeros(0))
