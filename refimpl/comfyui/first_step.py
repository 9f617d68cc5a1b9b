"""The step from σ = ∞, taken before a ComfyUI sampler starts (N App. A.1, eq. 9, 18)."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from refimpl.comfyui.levels import Levels
from refimpl.comfyui.scheduler_checks import check_levels
from refimpl.errors import InputError

KEY = "refimpl_first_step"


def patch_first_step(model: Any, levels: Levels) -> None:
    """Make every sampler of a cloned ComfyUI model start after the step from ∞; replaces an earlier patch.

    Samplers, including multistep ones, then see only finite levels (N eq. 18). Levels without ∞ need no patch.
    Raises InputError if ComfyUI is too old to wrap a sampler.
    """
    if hasattr(model, "remove_wrappers_with_key"):
        wrappers = import_module("comfy.patcher_extension").WrappersMP
        model.remove_wrappers_with_key(wrappers.SAMPLER_SAMPLE, KEY)
        if levels.exact:
            model.add_wrapper_with_key(wrappers.SAMPLER_SAMPLE, KEY, first_step(levels))
    elif levels.exact:
        raise InputError(
            "this ComfyUI cannot wrap samplers, which the exact step from infinity needs: update ComfyUI, or set "
            "terminal_sigma to 20000"
        )


def first_step(levels: Levels) -> Callable[..., Tensor]:
    """A wrapper for ComfyUI's Sampler.sample that takes the step from ∞ if the levels start there.

    The sampler is given the remaining levels, the same noise, and the first estimate as the latent image: its own
    initial state, σ₁·n + latent, is then eq. 18. Inpainting uses the latent image for something else, so it is
    left to the sampler, which starts from the finite stand-in. Levels that a scheduler placed badly are refused
    (InputError), as `check_levels` does.
    """

    def sample(
        executor: Callable[..., Tensor],
        model_wrap: Callable[..., Tensor],
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        check_levels(levels, sigmas, noise, latent_image if denoise_mask is None else None)
        if denoise_mask is not None or len(sigmas) < 2 or not bool(levels.level(sigmas[0]).isinf()):
            return executor(
                model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            )
        state = noise * sigmas[0]
        x0 = model_wrap(state, sigmas[0] * noise.new_ones(len(noise)), **extra_args)  # D = −σd·F(n; ∞)
        steps = len(sigmas) - 1
        if callback is not None:
            callback(0, x0, state, steps)
        if steps == 1:
            return x0

        def later(step: int, denoised: Tensor, x: Tensor, _: int) -> None:
            if callback is not None:
                callback(step + 1, denoised, x, steps)

        # eq. 9, 18: x₁ = σ₁·n + D, computed by the sampler's own noise_scaling
        return executor(model_wrap, sigmas[1:], extra_args, later, noise, x0, None, disable_pbar)

    return sample
