"""The step from σ = ∞, or from a huge finite level in its place, taken before a ComfyUI sampler starts (N App. A)."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from refimpl.comfyui.levels import Levels
from refimpl.comfyui.scheduler_checks import check_levels
from refimpl.errors import InputError
from refimpl.sample.stepping import is_jump

KEY = "refimpl_first_step"


def patch_first_step(model: Any, levels: Levels) -> None:
    """Make every sampler of a cloned ComfyUI model start after the first step; replaces an earlier patch.

    Samplers, including multistep ones, then see only finite levels (N eq. 18), none of which is a jump away from the
    next. Raises InputError if ComfyUI is too old to wrap a sampler and the levels end in ∞.
    """
    if hasattr(model, "remove_wrappers_with_key"):
        wrappers = import_module("comfy.patcher_extension").WrappersMP
        model.remove_wrappers_with_key(wrappers.SAMPLER_SAMPLE, KEY)
        model.add_wrapper_with_key(wrappers.SAMPLER_SAMPLE, KEY, first_step(levels))
    elif levels.exact:
        raise InputError(
            "this ComfyUI cannot wrap samplers, which the exact step from infinity needs: update ComfyUI, or set "
            "terminal_sigma to 20000"
        )


def first_step(levels: Levels) -> Callable[..., Tensor]:
    """A wrapper for ComfyUI's Sampler.sample that takes the first step if the levels start at ∞ or with a jump.

    The sampler is given the remaining levels, the same noise, and a latent image from which its own initial state,
    σ₁·n + latent, is the state after that step: after ∞ the first estimate (eq. 18), after a huge finite level
    (`is_jump`) what Euler's step leaves beside σ₁·n (eq. 2). Inpainting uses the latent image for something else, so
    it is left to the sampler, which starts from the first level itself. Exact levels that a scheduler placed badly
    are refused (InputError), as `check_levels` does.
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
        if levels.exact:
            check_levels(levels, sigmas, noise, latent_image if denoise_mask is None else None)
        if denoise_mask is not None or not _begins_with_a_jump(levels, sigmas):
            return executor(
                model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            )
        state = _first_state(levels, model_wrap, sigmas[0], noise, latent_image)
        x0 = model_wrap(state, sigmas[0] * noise.new_ones(len(noise)), **extra_args)  # at ∞ D = −σd·F(n; ∞)
        steps = len(sigmas) - 1
        if callback is not None:
            callback(0, x0, state, steps)
        if steps == 1:
            return x0

        def later(step: int, denoised: Tensor, x: Tensor, _: int) -> None:
            if callback is not None:
                callback(step + 1, denoised, x, steps)

        rest = x0  # eq. 9, 18: x₁ = σ₁·n + D, computed by the sampler's own noise_scaling
        if not levels.exact:  # eq. 2: x₁ = D + σ₁·(x − D)/σ₀
            rest = x0 * (1 - sigmas[1] / sigmas[0]) + sigmas[1] * (state / sigmas[0] - noise)
        return executor(model_wrap, sigmas[1:], extra_args, later, noise, rest, None, disable_pbar)

    return sample


def _begins_with_a_jump(levels: Levels, sigmas: Tensor) -> bool:
    """Whether the first step is the wrapper's: from the last level, ∞ or at least ten times the next one."""
    if len(sigmas) < 2 or not bool(levels.is_last(sigmas[0])):
        return False
    return levels.exact or is_jump(float(sigmas[0]), float(sigmas[1]))


def _first_state(levels: Levels, model: Any, sigma: Tensor, noise: Tensor, latent: Tensor | None) -> Tensor:
    """The state at the last level: σ·n for ∞, whose estimate sees n alone; else ComfyUI's own."""
    if levels.exact:
        return noise * sigma
    latent = noise.new_zeros(noise.shape) if latent is None else latent
    return model.inner_model.model_sampling.noise_scaling(sigma, noise, latent, True)
