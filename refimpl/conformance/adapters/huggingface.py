"""Adapter of Hugging Face's diffusers: its schedulers and its SDXL pipeline's guidance."""

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from refimpl.conformance.adapter import Adapter
from refimpl.conformance.adapters.where import line_of
from refimpl.errors import InputError
from refimpl.packages import install_line

SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
SOURCE = "https://github.com/huggingface/diffusers/blob/v{}/src/diffusers/{}.py#L{}"
GRIDS = {
    "native": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "karras": {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    "exponential": {"timestep_spacing": "trailing", "use_exponential_sigmas": True},
}
PIPELINE = "pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl"


class Diffusers(Adapter):
    """DDPMScheduler in training, EulerDiscreteScheduler in sampling, both with rescale_betas_zero_snr."""

    name = "diffusers"

    def __init__(self) -> None:
        try:
            import diffusers
            from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
            from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
            from diffusers.training_utils import compute_snr
        except ImportError as error:
            raise InputError(f"diffusers is not installed: {install_line('diffusers')} ({error})") from error
        self.version = diffusers.__version__
        self.plain: Any = DDPMScheduler(**SDXL)
        self.training: Any = DDPMScheduler(**SDXL, rescale_betas_zero_snr=True)
        self.euler: Any = EulerDiscreteScheduler
        self.compute_snr: Any = compute_snr

    @cached_property
    def rescale_noise_cfg(self) -> Any:
        """Of the SDXL pipeline, whose import takes a second."""
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

        return rescale_noise_cfg

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

        ddpm, euler = "schedulers/scheduling_ddpm", "schedulers/scheduling_euler_discrete"
        called = {
            "schedule": (ddpm, rescale_zero_terminal_snr),
            "noised": (ddpm, type(self.training).add_noise),
            "target": (ddpm, type(self.training).get_velocity),
            "weight": ("training_utils", self.compute_snr),
            "sigma_to_t": (euler, self.euler._sigma_to_t),
            "first_step": (euler, self.euler.step),
            "grid": (euler, self.euler.set_timesteps),
            "guide": (PIPELINE, self.rescale_noise_cfg),
        }
        if method not in called:
            return ""
        file, function = called[method]
        return SOURCE.format(self.version, file, line_of(function))

    def schedule(self, zero_snr: bool) -> Tensor:
        """alphas_cumprod."""
        return (self.training if zero_snr else self.plain).alphas_cumprod

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """add_noise."""
        return self.training.add_noise(x0, eps, t)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """get_velocity."""
        return self.training.get_velocity(x0, eps, t)

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """compute_snr, and what the training scripts make of it for v-prediction."""
        snr = self.compute_snr(self.training, t)
        return torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0] / (snr + 1)

    def sigma_to_t(self, sigma_edm: Tensor) -> Tensor:
        """_sigma_to_t, by which Karras and other levels get their timesteps."""
        import numpy as np

        scheduler = self._euler("native", 28)
        table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
        with np.errstate(all="ignore"):
            found = scheduler._sigma_to_t(sigma_edm.double().numpy(), np.log(table.double().numpy()))
        return torch.as_tensor(found)

    def first_step(self, noise: Tensor, network: Callable[[Tensor], Tensor], sigma_next: float) -> Tensor:
        """The Euler scheduler's first of 28 steps, as a pipeline takes it."""
        scheduler = self._euler("native", 28)
        scheduler.sigmas[1] = sigma_next
        first = scheduler.timesteps[0]
        sample = noise * scheduler.init_noise_sigma.to(noise)
        v = network(scheduler.scale_model_input(sample, first))
        return scheduler.step(v, first, sample).prev_sample

    def grid(self, kind: str, n: int) -> Tensor:
        """set_timesteps of the Euler scheduler."""
        if kind not in GRIDS:
            raise NotImplementedError(kind)
        return self._euler(kind, n).sigmas.clone()

    def guide(self, cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
        """The pipeline's line for guidance, and rescale_noise_cfg."""
        guided = uncond + scale * (cond - uncond)
        return self.rescale_noise_cfg(guided, cond, guidance_rescale=rescale) if rescale > 0 else guided

    def _euler(self, kind: str, n: int) -> Any:
        scheduler = self._made(kind)
        scheduler.set_timesteps(n)
        return scheduler

    @cache  # noqa: B019 - an adapter lives as long as its run
    def _made(self, kind: str) -> Any:
        return self.euler(**SDXL, rescale_betas_zero_snr=True, **GRIDS[kind])
