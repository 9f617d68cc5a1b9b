"""R's nodes for ComfyUI, each with an effect, and N's native schedule (R, "Available Nodes"; N §2, App. A).

Names, categories and parameters are R's. Parameters that have no effect in R have one here, and what R lacks is
an optional input, so that R's workflows load. Invalid inputs raise InputError, which ComfyUI shows on the node.
"""

from typing import Any

import torch
from torch import Tensor

from refimpl.comfyui.cfg_rescale import METHODS, patch_guidance
from refimpl.comfyui.first_step import patch_first_step
from refimpl.comfyui.inputs import MODEL_INPUT, TRUE_FALSE, checked, choice, number
from refimpl.comfyui.levels import TERMINAL, Levels, levels_for
from refimpl.comfyui.model_sampling import model_sampling
from refimpl.comfyui.scheduler_checks import SCHEDULERS_NOTE
from refimpl.comfyui.scheduler_nodes import MOST_STEPS, LaplaceSchedulerNode, NAINativeSchedulerNode
from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import min_snr_weight, weight_mass
from refimpl.sample.weighted_grid import weighted

LARGEST_SIDE = 16384  # px, ComfyUI's own


class ZsnrVpredConditioningNode:
    """Sets a model's prediction type and noise levels (N §2.1–2.3, App. A).

    min_snr_gamma acts on the third output, `steps` levels for SamplerCustom and the like with equal shares of
    MinSNR's weight min(SNR + 1, γ)/(SNR + 1) between neighbours (N §2.4): a small γ spends few steps where little
    noise is left, a large one spaces them as N's native schedule. It leaves the model itself alone, for which a loss
    weight has no meaning. The second output is a text that says what the model was set to.
    """

    RETURN_TYPES = ("MODEL", "STRING", "SIGMAS")
    RETURN_NAMES = ("model", "info", "sigmas")
    FUNCTION = "apply_conditioning"
    CATEGORY = "conditioning"
    DESCRIPTION = (
        "Zero-terminal-SNR v-prediction: exact scalings, noise levels for the canvas, exact first step. "
        f"{SCHEDULERS_NOTE}"
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = "of the canvas, px, for resolution_scaling"
        return {
            "required": {
                "model": MODEL_INPUT,
                "zsnr": choice(TRUE_FALSE, "true", "the schedule ends in pure noise"),
                "v_prediction": choice(TRUE_FALSE, "true", "false is eps-prediction, which zsnr rules out"),
                "sigma_min": number(0.0292, 0.0, 1.0, 0.0001, "lowest level; 0 takes the schedule's own"),
                "sigma_data": number(1.0, 0.1, 3.0, 0.1, "σd of the preconditioner; SDXL's is 1"),
                "min_snr_gamma": number(5.0, 1.0, 20.0, 0.1, "smaller: fewer of the output's low levels"),
                "resolution_scaling": choice(
                    TRUE_FALSE, "true", "largest level times √(H·W)/1024; ∞ stays ∞"
                ),
            },
            "optional": {
                "width": number(1024, 16, LARGEST_SIDE, 8, f"width {side}"),
                "height": number(1024, 16, LARGEST_SIDE, 8, f"height {side}"),
                "terminal_sigma": choice(
                    list(TERMINAL), "exact", f"how to treat σ = ∞; 20000: N App. A.2. {SCHEDULERS_NOTE}"
                ),
                "steps": number(28, 1, MOST_STEPS, 1, "sampling steps of the output's levels"),
            },
        }

    def apply_conditioning(
        self,
        model: Any,
        zsnr: str,
        v_prediction: str,
        sigma_min: float,
        sigma_data: float,
        min_snr_gamma: float,
        resolution_scaling: str,
        width: int = 1024,
        height: int = 1024,
        terminal_sigma: str = "exact",
        steps: int = 28,
    ) -> tuple[Any, str, Tensor]:
        """The patched model, a text of its settings, and levels [steps + 1] float32 spaced by min_snr_gamma.

        Raises InputError for eps-prediction with zsnr, and for more steps than there are levels to tell apart.
        """
        inputs = checked(
            type(self),
            {
                "zsnr": zsnr,
                "v_prediction": v_prediction,
                "sigma_min": sigma_min,
                "sigma_data": sigma_data,
                "min_snr_gamma": min_snr_gamma,
                "resolution_scaling": resolution_scaling,
                "width": width,
                "height": height,
                "terminal_sigma": terminal_sigma,
                "steps": steps,
            },
        )
        diffusion = DiffusionConfig(
            parameterisation="v" if inputs["v_prediction"] == "true" else "eps",
            zero_terminal_snr=inputs["zsnr"] == "true",
            min_snr_gamma=inputs["min_snr_gamma"],
        )
        canvas = (inputs["height"], inputs["width"]) if inputs["resolution_scaling"] == "true" else None
        levels = levels_for(diffusion.schedule(), inputs["terminal_sigma"], inputs["sigma_min"], canvas)
        patched = model.clone()
        patched.add_object_patch(
            "model_sampling",
            model_sampling(
                levels, diffusion.parameterisation == "v", inputs["sigma_data"], model.model.model_config
            ),
        )
        patch_first_step(patched, levels)
        return patched, _told(diffusion, levels), _spaced(diffusion, levels, inputs["steps"])


class CFGRescaleNode:
    """Rescales the guided output to the standard deviation of the conditional one (arXiv 2305.08891 §3.4; N §5)."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply_rescale"
    CATEGORY = "sampling"
    DESCRIPTION = (
        "CFG rescale on v, with the same strength at every level (standard) or decreasing along a schedule."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL_INPUT,
                "rescale_cfg": choice(TRUE_FALSE, "true", "false leaves the model unchanged"),
                "scale_method": choice(METHODS, "standard", "how the strength varies over the levels"),
                "rescale_multiplier": number(
                    0.7, 0.0, 1.0, 0.05, "φ: 0 for no rescale, 1 for the full rescale"
                ),
            }
        }

    def apply_rescale(
        self, model: Any, rescale_cfg: str, scale_method: str, rescale_multiplier: float
    ) -> tuple[Any]:
        """The model with its guidance rescaled."""
        inputs = checked(
            type(self),
            {
                "rescale_cfg": rescale_cfg,
                "scale_method": scale_method,
                "rescale_multiplier": rescale_multiplier,
            },
        )
        patched = model.clone()
        if inputs["rescale_cfg"] == "true":
            patch_guidance(patched, inputs["scale_method"], inputs["rescale_multiplier"])
        return (patched,)


def _told(diffusion: DiffusionConfig, levels: Levels) -> str:
    """Human-readable description of what a model was set to."""
    top = "∞ (pure noise)" if levels.exact else f"{levels.sigma_max:g}"
    share = weight_mass(diffusion.loss_weights(), 950)
    return (
        f"{diffusion.parameterisation}-prediction, noise levels {top} to {levels.sigma_min:g}. Min-SNR γ = "
        f"{diffusion.min_snr_gamma:g} spaces the levels of the output sigmas and changes nothing in the model; "
        f"training with it gives timesteps 950 and later {share:.4%} of the total weight."
    )


def _spaced(diffusion: DiffusionConfig, levels: Levels, steps: int) -> Tensor:
    """Levels [steps + 1] float32 from the largest to the smallest with equal shares of MinSNR's weight, then 0."""
    schedule = levels.schedule
    weights = min_snr_weight(schedule.snr, diffusion.min_snr_gamma, policy="snr_plus_one")
    lowest = float(schedule.sigma_edm_to_t(torch.tensor(levels.sigma_min, dtype=torch.float64)))
    sigmas = weighted(schedule, steps, weights, levels.last_timestep, lowest)
    sigmas[0] = (
        levels.sigma_max
    )  # where it is not the schedule's: the stand-in for ∞, or another canvas' level
    if steps > 1:
        sigmas[-2] = levels.sigma_min
    return sigmas.float()


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "ZsnrVpredConditioningNode": ZsnrVpredConditioningNode,
    "CFGRescaleNode": CFGRescaleNode,
    "LaplaceSchedulerNode": LaplaceSchedulerNode,
    "NAINativeSchedulerNode": NAINativeSchedulerNode,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "ZsnrVpredConditioningNode": "ZSNR V-Prediction",
    "CFGRescaleNode": "CFG Rescale",
    "LaplaceSchedulerNode": "Laplace Scheduler",
    "NAINativeSchedulerNode": "NAI Native Scheduler",
}
