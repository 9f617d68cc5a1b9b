"""CFG rescale for ComfyUI (arXiv 2305.08891 §3.4; N §5), with a strength that varies over the levels by R's methods.

R names its methods after schedulers and multiplies the guidance scale by ratios of the grid's ends. Here the
multiplier is φ of the paper's rescale, applied to v. `standard` is the paper's: the same φ at every level. The
others are not from a paper: φ decreases to 0 from the largest level to the smallest, linearly in the quantity in
which the scheduler of that name spaces its levels, so that it acts where guidance overshoots and leaves the last
details alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from refimpl.comfyui.model_sampling import noise_level
from refimpl.diffusion.preconditioner import scalings
from refimpl.diffusion.v_prediction import v_from_x0, x0_from_v
from refimpl.sample.guidance import cfg, rescale

KARRAS_RHO = 7.0  # Karras et al. 2022, eq. 5: the scheduler's default
# R's names, in its order. The last four schedulers are even in timesteps and differ only in how they end.
POST = "sampler_post_cfg_function"  # ComfyUI's option with the functions that follow guidance
METHODS = ["karras", "standard", "exponential", "sgm_uniform", "simple", "ddim_uniform", "normal"]


def strength(method: str, sigma: Tensor, sampling: Any) -> Tensor:
    """The fraction of φ that a method applies: sigma [B] → [B] float64, 0 to 1; sampling is ComfyUI's."""
    if method == "standard":
        return torch.ones_like(sigma, dtype=torch.float64)
    coordinate: Callable[[Tensor], Tensor] = sampling.timestep
    if method == "karras":
        coordinate = _root
    elif method == "exponential":
        coordinate = torch.log
    low, high, here = (
        coordinate(torch.as_tensor(level)).double().to(sigma.device)
        for level in (sampling.sigma_min, sampling.sigma_max, sigma)
    )
    return ((here - low) / (high - low)).clamp(0, 1)


def patch_guidance(model: Any, method: str, multiplier: float) -> None:
    """Make a cloned ComfyUI model rescale its guidance; replaces another guidance function, as such nodes do there.

    ComfyUI subtracts what a guidance function returns from the state. In float32 that loses the estimate where the
    state is 32768 times as large, so the function returns float64, and the estimate is converted to float32 before
    anything else sees it.
    """
    model.set_model_sampler_cfg_function(rescaled_guidance(method, multiplier))
    later = model.model_options.get(POST, [])
    model.model_options[POST] = [as_state, *(function for function in later if function is not as_state)]


def as_state(args: dict[str, Any]) -> Tensor:
    """A function for ComfyUI's `sampler_post_cfg_function`: the denoised estimate in the dtype of the state."""
    denoised: Tensor = args["denoised"]
    return denoised.to(args["input"].dtype)


def rescaled_guidance(method: str, multiplier: float) -> Callable[[dict[str, Any]], Tensor]:
    """A function for ComfyUI's `set_model_sampler_cfg_function`.

    It is given the denoised estimates D [B, ...] for both conditions and the state x at sigma [B], and returns x − D
    for the guided estimate, in float64. Guidance and std are computed on the network's output, v where σd = 1.
    Computes in float64, which the device must support.
    """

    def guide(args: dict[str, Any]) -> Tensor:
        x, sampling = args["input"], args["model"].model_sampling
        sigma = args["sigma"].reshape(-1).expand(len(x))
        sigma_data = float(sampling.sigma_data)
        _, c_out, c_in = scalings(noise_level(sampling, sigma).double(), sigma_data)
        alpha, noise = sigma_data * c_in, -c_out / sigma_data
        x_t = _times(c_in, x)
        # eq. 1 solved for F: with x_t = c_in·x, F is the v of the estimate D/σd
        v_cond, v_uncond = (
            v_from_x0(x_t, args[name].double() / sigma_data, alpha, noise)
            for name in ("cond_denoised", "uncond_denoised")
        )
        guided = cfg(v_cond, v_uncond, args["cond_scale"])
        factors = multiplier * strength(method, sigma, sampling)
        v = torch.cat(
            [
                rescale(guided[i : i + 1], v_cond[i : i + 1], float(factor))
                for i, factor in enumerate(factors.tolist())
            ]
        )
        return x.double() - sigma_data * x0_from_v(x_t, v, alpha, noise)

    return guide


def _times(factor: Tensor, x: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (x.ndim - 1)) * x.double()


def _root(sigma: Tensor) -> Tensor:
    return sigma ** (1 / KARRAS_RHO)
