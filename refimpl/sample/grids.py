"""Inference noise grids by name (N §2.3, Fig. 5; R), and where they start for a canvas or an image (N §2.3; SDEdit).

Every grid is sigma_edm [n + 1], float64, strictly decreasing, last entry 0. Its first entry is ∞ if it
starts at the zero-SNR end of the schedule; no other entry is ∞.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.names import nearest
from refimpl.sample.grid_checks import as_levels, check_grid, check_positive, check_steps
from refimpl.sample.sigma_grids import exponential, karras, laplace
from refimpl.sample.timestep_grids import leading, native, trailing

# R's "Progressive Steps", verbatim. R calls 20000 zero terminal SNR, but it is finite, and so is this grid's start.
COMMUNITY_TRAINER_SIGMAS = (20000.0, 17.8, 12.4, 9.2, 7.2, 5.4, 3.9, 2.1, 0.9, 0.0292)


def explicit(sigmas: Sequence[float] | Tensor) -> Tensor:
    """An explicit list of levels as a grid; a final 0 is appended if it is missing.

    Raises InputError unless the list is strictly decreasing, with ∞ allowed as the first entry only.
    """
    levels = as_levels(sigmas, "explicit grid")
    if levels.ndim == 1 and levels.numel() and levels[-1] != 0:
        levels = torch.cat([levels.double(), torch.zeros(1, dtype=torch.float64, device=levels.device)])
    return check_grid(levels, "explicit grid")


def community_trainer(schedule: NoiseSchedule, n: int = len(COMMUNITY_TRAINER_SIGMAS)) -> Tensor:
    """R's ten fixed levels ("Progressive Steps") and 0. The schedule is not used.

    Raises InputError for n other than 10.
    """
    if n != len(COMMUNITY_TRAINER_SIGMAS):
        raise InputError(
            f"community_trainer grid: {n} steps asked for; it is a fixed list of {len(COMMUNITY_TRAINER_SIGMAS)}."
        )
    return explicit(COMMUNITY_TRAINER_SIGMAS)


def scale_sigma_max(sigma_max: float, height: int, width: int, base: int = 1024) -> float:
    """N §2.3 and R: sigma_max for a canvas, in proportion to its side √(H·W)/base.

    Twice the side needs twice the noise to destroy as much of the (fully redundant) signal.
    sigma_max  ∞, pure noise, stays ∞ on every canvas     height, width, base  all in pixels or all in latent pixels
    """
    side = math.sqrt(check_positive("height", height) * check_positive("width", width))
    scale = side / check_positive("base", base)
    return math.inf if sigma_max == math.inf else check_positive("sigma_max", sigma_max) * scale


def start_at(sigmas: Tensor, sigma_edm: float) -> Tensor:
    """The rest of a grid from a finite level on: that level, then the entries below it (SDEdit; S §2.5).

    Raises InputError when the level is not finite and above 0.
    """
    sigmas = check_grid(sigmas)
    level = check_positive("start_at: sigma_edm", sigma_edm)
    return check_grid(torch.cat([sigmas.new_tensor([level]), sigmas[sigmas < level]]))


def from_strength(sigmas: Tensor, strength: float) -> Tensor:
    """The last strength·n steps of a grid, rounded to a whole number, for image-to-image (SDEdit).

    strength  in (0, 1]; 1 is the whole grid, from pure noise if that starts at ∞. Below 1, at least the first
              step is left out, so that the noise added to the image is finite.
    Raises InputError for a strength outside that range, or one that leaves no step.
    """
    sigmas = check_grid(sigmas)
    n = sigmas.numel() - 1
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength}; give a number above 0 and up to 1.")
    steps = n if strength == 1 else min(round(strength * n), n - 1)
    if steps < 1:
        raise InputError(f"strength {strength} of a grid of {n} steps leaves none; take more steps.")
    return sigmas[n - steps :]


GRIDS: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {
    "native": native,
    "trailing": trailing,
    "leading": leading,
    "karras": karras,
    "exponential": exponential,
    "laplace": laplace,
    "community_trainer": community_trainer,
}


def grid_by_name(name: str, schedule: NoiseSchedule, n: int, sigma_max: float | None = None) -> Tensor:
    """The grid of that name with its defaults, as configurations and the command line use it.

    sigma_max  first level, for the grids that can start anywhere; None starts at the schedule's end
    Raises InputError for an unknown name (naming the nearest), and as the grid itself does.
    """
    n = check_steps(n)
    if name not in GRIDS:
        raise InputError(f"grid {name!r} is unknown{_nearest(name, GRIDS)}")
    if sigma_max is None:
        return GRIDS[name](schedule, n)
    movable = {"native": native, "karras": karras, "exponential": exponential, "laplace": laplace}
    if name not in movable:
        raise InputError(
            f"grid {name!r} has a fixed start, so sigma_max={sigma_max} cannot apply; use one of "
            f"{', '.join(movable)}, or leave sigma_max out."
        )
    return movable[name](schedule, n, sigma_max=sigma_max)


def _nearest(name: str, known: dict) -> str:
    return f"; did you mean {nearest(name, known)[0]!r}? Known: {', '.join(known)}."
