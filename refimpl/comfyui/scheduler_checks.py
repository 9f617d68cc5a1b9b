"""Which of ComfyUI's schedulers suit levels that start at ∞ (N §2.2, §2.3; arXiv 2305.08891 §3.3)."""

from torch import Tensor

from refimpl.comfyui.levels import SAME_FLOAT32, Levels
from refimpl.errors import InputError

# ComfyUI's schedulers that start at the largest level and have the others where the schedule has them.
USABLE = ("normal", "simple", "sgm_uniform", "beta", "kl_optimal")
MOST_BEYOND = (
    1 / 8
)  # of the steps; karras, exponential and linear_quadratic have more from 12 steps, others none

SCHEDULERS_NOTE = (
    f"Schedulers: {', '.join(USABLE)} or the NAI Native Scheduler node. karras, exponential and linear_quadratic "
    "spend their steps on levels that the schedule does not have, and ddim_uniform skips pure noise."
)
TURN_OFF = "Setting terminal_sigma to 20000 samples with these levels as they are (N App. A.2)."


def check_levels(levels: Levels, sigmas: Tensor, noise: Tensor, latent_image: Tensor | None) -> None:
    """Refuses the levels of a scheduler that was not made for a schedule ending in pure noise.

    sigmas        [n + 1]  what the sampler was given
    latent_image  what the noise is added to; None leaves open what it is
    Raises InputError where MOST_BEYOND of the steps or more lie between the schedule's largest finite level and ∞,
    and where noise is added to an empty image at a finite level, which fixes the image's mean brightness at grey.
    """
    steps = sigmas[:-1]
    largest = levels.largest_finite * (1 + SAME_FLOAT32)
    beyond = int(((steps > largest) & levels.level(steps).isfinite()).sum())
    if beyond >= MOST_BEYOND * len(steps) > 0:
        raise InputError(
            f"{beyond} of {len(steps)} steps lie between {levels.largest_finite:.0f}, the schedule's largest finite "
            f"level, and ∞, where the network was never trained and nothing changes. {SCHEDULERS_NOTE} {TURN_OFF}"
        )
    starts_late = len(steps) > 0 and bool(levels.level(steps[0]).isfinite())
    if starts_late and latent_image is not None and bool(noise.any()) and not bool(latent_image.any()):
        raise InputError(
            f"sampling of an empty latent image starts at level {float(steps[0]):g} instead of pure noise, which a "
            "zero-terminal-SNR model takes for a grey picture; use a scheduler that starts at the largest level, and "
            f"denoise 1. {SCHEDULERS_NOTE} {TURN_OFF}"
        )
