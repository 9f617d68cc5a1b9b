"""R's nodes for ComfyUI, each with an effect, and N's native schedule (R, "Available Nodes"; N §2, App. A).

Names, categories and parameters are R's. Parameters that have no effect in R have one here, and what R lacks is
an optional input, so that R's workflows load. Invalid inputs raise InputError, which ComfyUI shows on the node.
"""

from typing import Any

from refimpl.comfyui.cfg_rescale import METHODS, patch_guidance
from refimpl.comfyui.first_step import patch_first_step
from refimpl.comfyui.inputs import MODEL_INPUT, TRUE_FALSE, checked, choice, number
from refimpl.comfyui.levels import TERMINAL, Levels, levels_for
from refimpl.comfyui.model_sampling import model_sampling
from refimpl.comfyui.scheduler_checks import SCHEDULERS_NOTE
from refimpl.comfyui.scheduler_nodes import LaplaceSchedulerNode, NAINativeSchedulerNode
from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import weight_mass

LARGEST_SIDE = 16384  # px, ComfyUI's own


class ZsnrVpredConditioningNode:
    """Sets a model's prediction type and noise levels (N §2.1–2.3, App. A).

    min_snr_gamma weights the training loss and has no meaning for a sampler: it affects only the second output, a
    text that says what the model was set to and what share of the training loss weight the noisiest steps had.
    """

    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "info")
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
                "min_snr_gamma": number(5.0, 1.0, 20.0, 0.1, "a training loss weight: reported, not used"),
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
    ) -> tuple[Any, str]:
        """Returns the patched model and a text of its settings. Raises InputError for eps-prediction with zsnr."""
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
        return patched, _told(diffusion, levels)


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
        f"{diffusion.min_snr_gamma:g} is a training loss weight and has no effect here; training with it gives "
        f"timesteps 950 and later {share:.4%} of the total weight."
    )


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
