"""Adapters of k-diffusion (Katherine Crowson), which is given SDXL's zero-SNR table in two ways."""

import math
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter
from refimpl.conformance.adapters.stand_ins import k_diffusion
from refimpl.conformance.adapters.where import line_of
from refimpl.conformance.checks.exact import exact_schedule

SOURCE = "https://github.com/crowsonkb/k-diffusion/blob/v{}/k_diffusion/{}.py#L{}"
CLAMP = 20000.0  # N app. A.2


class KDiffusion(Adapter):
    """DiscreteVDDPMDenoiser with the table as it is: its last level is ∞."""

    name = "k-diffusion"
    clamp = math.inf
    quantize = False

    def __init__(self) -> None:
        self.external: Any = k_diffusion("external")
        self.sampling: Any = k_diffusion("sampling")
        try:
            self.version = version("k-diffusion")
        except PackageNotFoundError:
            self.version = "unknown"
        table = exact_schedule(True).sigma_edm.clamp(max=self.clamp).float()
        self.wrapper = self.external.DiscreteVDDPMDenoiser(None, 1 / (1 + table**2), self.quantize)
        # the way through abar costs float32 digits that are not k-diffusion's fault
        self.wrapper.sigmas, self.wrapper.log_sigmas = table, table.log()

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        wrapper, sampling = self.external.DiscreteVDDPMDenoiser, self.sampling
        called = {
            "scalings": ("external", wrapper.get_scalings),
            "sigma_to_t": ("external", wrapper.sigma_to_t),
            "first_step": ("sampling", sampling.sample_euler),
            "grid": ("external", wrapper.get_sigmas),
        }
        if method not in called:
            return ""
        module, function = called[method]
        return SOURCE.format(self.version, module, line_of(function))

    def scalings(self, sigma_edm: Tensor) -> Sequence[Tensor]:
        """get_scalings."""
        return self.wrapper.get_scalings(sigma_edm)

    def sigma_to_t(self, sigma_edm: Tensor) -> Tensor:
        """sigma_to_t."""
        return self.wrapper.sigma_to_t(sigma_edm)

    def first_step(self, noise: Tensor, network: Callable[[Tensor], Tensor], sigma_next: float) -> Tensor:
        """sample_euler for one step, from the noise times the first level, as its documentation begins."""
        first = self.wrapper.get_sigmas(28)[:1]
        sigmas = torch.cat([first, first.new_tensor([sigma_next])])  # float32, whatever the state is
        self.wrapper.inner_model = lambda x, t: network(x)
        return self.sampling.sample_euler(self.wrapper, noise * sigmas[0], sigmas, disable=True)

    def grid(self, kind: str, n: int) -> Tensor:
        """get_sigmas for native; Karras and exponential between the table's ends."""
        low, high = (float(level) for level in (self.wrapper.sigma_min, self.wrapper.sigma_max))
        if kind == "native":
            return self.wrapper.get_sigmas(n)
        if kind == "karras":
            return self.sampling.get_sigmas_karras(n, low, high)
        if kind == "exponential":
            return self.sampling.get_sigmas_exponential(n, low, high)
        raise NotImplementedError(kind)


class KDiffusionClamped(KDiffusion):
    """The same with the table clamped to 20000, as N app. A.2 has it, and timesteps rounded to the table's."""

    name = "k-diffusion, clamped"
    clamp = CLAMP
    quantize = True
