"""ComfyUI's model-sampling object with the exact preconditioner (N App. A.1, eq. 1, 10–18).

ComfyUI keeps the state variance-exploding and calls, at each level sigma: `calculate_input`, the network at
`timestep(sigma)`, `calculate_denoised`; and `noise_scaling` once, before the first step. This file has all four.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from refimpl.comfyui.levels import Levels
from refimpl.diffusion.preconditioner import scalings


class LevelsSampling:
    """Methods on the levels of a schedule; a mixin for ComfyUI's ModelSamplingDiscrete."""

    levels: Levels
    sigma_data: float

    def timestep(self, sigma: Tensor) -> Tensor:
        """Levels [...] → timesteps [...] float32, which may be fractional, as in the project's own samplers."""
        return self.levels.timestep(sigma.cpu()).float().to(sigma.device)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Timesteps [...] → levels [...] float32."""
        return self.levels.sigma(timestep.cpu()).float().to(timestep.device)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """c_in·x for the network: [B, ...] of unit variance; bitwise the noise itself where sigma is ∞."""
        sigma = _columns(sigma, noise)
        level = self.levels.level(sigma)
        _, _, c_in = scalings(level, self.sigma_data)
        # eq. 17: c_in·σ → 1
        return noise * torch.where(level.isinf(), 1 / sigma, c_in)

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False
    ) -> Tensor:
        """The state at the first level. At ∞ nothing of the latent image remains."""
        if bool(self.levels.level(sigma).isinf().all()):
            return noise * _columns(sigma, noise)
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)  # type: ignore[misc]


class ExactVPrediction:
    """calculate_denoised for v-prediction, exact at ∞."""

    levels: Levels
    sigma_data: float

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """D(x; σ) [B, ...] from the network's output and the state; −σd·F at ∞ (eq. 1, 18)."""
        level = self.levels.level(_columns(sigma, model_output))
        c_skip, c_out, _ = scalings(level, self.sigma_data)
        # eq. 1: D(x; σ) = c_skip·x + c_out·F(c_in·x; σ)
        return c_skip * model_input + c_out * model_output


def model_sampling(levels: Levels, v_prediction: bool, sigma_data: float, model_config: Any) -> Any:
    """A model-sampling object for `add_object_patch("model_sampling", …)`, as ComfyUI's own nodes create it.

    v_prediction  False is eps-prediction, which has no zero-SNR end        sigma_data  σd of the preconditioner
    model_config  the patched model's, with which ComfyUI's base class is constructed
    """
    comfy = import_module("comfy.model_sampling")
    own = (ExactVPrediction, LevelsSampling) if v_prediction else (LevelsSampling,)
    kind = comfy.V_PREDICTION if v_prediction else comfy.EPS
    sampling = type("ModelSamplingRefimpl", (*own, comfy.ModelSamplingDiscrete, kind), {})(model_config)
    sampling.set_sigmas(levels.table())
    sampling.sigma_data = sigma_data
    sampling.levels = levels
    return sampling


def noise_level(sampling: Any, sigma: Tensor) -> Tensor:
    """The level that a sampler's sigma represents for a model-sampling object: ∞ only for a LevelsSampling."""
    return sampling.levels.level(sigma) if isinstance(sampling, LevelsSampling) else sigma


def _columns(sigma: Tensor, like: Tensor) -> Tensor:
    """Levels [B] or [B, 1, …], or a single one, reshaped to broadcast over [B, ...]."""
    return sigma.reshape(()) if sigma.numel() == 1 else sigma.reshape(-1, *[1] * (like.ndim - 1))
