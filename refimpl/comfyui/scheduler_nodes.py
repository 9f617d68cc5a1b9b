"""Schedulers for ComfyUI: R's Laplace levels and N's native schedule, as SIGMAS (R; N §2.3)."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from refimpl.comfyui.inputs import MODEL_INPUT, checked, number
from refimpl.comfyui.levels import Levels
from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.sample.sigma_grids import laplace

LARGEST_SIGMA = 1e6  # limit of the number fields, far above every terminal level on every canvas
MOST_STEPS = 10000  # ComfyUI's own


class LaplaceSchedulerNode:
    """Noise levels at quantiles of a Laplace density of log sigma (R; Hang et al. 2024, Tab. 1), ending in 0.

    R's node writes μ and β where no sampler reads them. This one returns SIGMAS, for SamplerCustom and the like.
    """

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "apply_scheduler"
    CATEGORY = "sampling"
    DESCRIPTION = (
        "Levels concentrated around e^mu, from the model's largest level down to its smallest, then 0."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        own = "0 takes the model's own"
        return {
            "required": {
                "model": MODEL_INPUT,
                "mu": number(0.0, -5.0, 5.0, 0.1, "log sigma around which the levels are concentrated"),
                "beta": number(0.5, 0.1, 5.0, 0.1, "width of the density of log sigma"),
            },
            "optional": {
                "steps": number(28, 1, MOST_STEPS, 1, "sampling steps"),
                "sigma_min": number(0.0, 0.0, LARGEST_SIGMA, 0.0001, f"lowest level before 0; {own}"),
                "sigma_max": number(0.0, 0.0, LARGEST_SIGMA, 0.01, f"first level; {own}"),
            },
        }

    def apply_scheduler(
        self,
        model: Any,
        mu: float,
        beta: float,
        steps: int = 28,
        sigma_min: float = 0.0,
        sigma_max: float = 0.0,
    ) -> tuple[Tensor]:
        """The levels [steps + 1] float32, decreasing. Raises InputError if sigma_min is not below sigma_max."""
        inputs = checked(
            type(self),
            {
                "mu": mu,
                "beta": beta,
                "steps": steps,
                "sigma_min": sigma_min,
                "sigma_max": sigma_max,
            },
        )
        sampling = _discrete_sampling(model)
        levels: Levels | None = getattr(sampling, "levels", None)
        low = inputs["sigma_min"] or float(sampling.sigma_min)
        arguments = (inputs["steps"], inputs["mu"], inputs["beta"], low)
        if levels is not None and levels.exact and not inputs["sigma_max"]:
            grid = laplace(levels.schedule, *arguments)  # from ∞, represented by the largest level
            return (grid.clamp(max=levels.sigma_max).float(),)
        high = inputs["sigma_max"] or float(sampling.sigma_max)
        # both ends are given, so the schedule itself does not matter
        return (laplace(DiffusionConfig().schedule(), *arguments, sigma_max=high).float(),)


class NAINativeSchedulerNode:
    """N §2.3: the model's levels at timesteps spaced evenly from its last to 0, then a final 0."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "apply_scheduler"
    CATEGORY = "sampling"
    DESCRIPTION = "linspace(999, 0, steps) on the model's own schedule, as NovelAI Diffusion V3 samples."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL_INPUT,
                "steps": number(28, 1, 1000, 1, "sampling steps, one timestep each"),
            }
        }

    def apply_scheduler(self, model: Any, steps: int) -> tuple[Tensor]:
        """The levels [steps + 1] float32, decreasing."""
        steps = checked(type(self), {"steps": steps})["steps"]
        sampling = _discrete_sampling(model)
        start = float(sampling.timestep(torch.as_tensor(sampling.sigma_max)))
        sigmas = sampling.sigma(torch.linspace(start, 0, steps, dtype=torch.float64)).cpu()
        return (torch.cat([sigmas, sigmas.new_zeros(1)]),)


def _discrete_sampling(model: Any) -> Any:
    """The model's sampling object. Raises InputError unless it has a schedule of timesteps, like SDXL's."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, import_module("comfy.model_sampling").ModelSamplingDiscrete):
        raise InputError(
            f"the model samples with {type(sampling).__name__}, which has no schedule of timesteps; these levels "
            "are for SDXL and similar models"
        )
    return sampling
