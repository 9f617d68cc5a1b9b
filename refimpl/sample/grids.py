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
from refimpl.sample.config import SampleConfig
from refimpl.sample.grid_checks import as_levels, check_grid, check_positive, check_steps
from refimpl.sample.sigma_grids import canvas, exponential, karras, laplace
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


def terminal_level(terminal: str) -> float:
    """The sigma_edm of one of config.TERMINAL_NAMES: ∞ for "exact", else the number itself."""
    return math.inf if terminal == "exact" else float(terminal)


def with_terminal(sigmas: Tensor, terminal: str) -> Tensor:
    """A grid from ∞ that starts at a terminal level instead, as another tool's does (N App. A.2); "exact" leaves it.

    The other levels stay: native's are then N's own recipe, 20000 and after it 56.178 for 28 steps.
    Raises InputError when the grid does not start at ∞, or its next level is not below the terminal one.
    """
    sigmas = check_grid(sigmas)
    if terminal == "exact":
        return sigmas
    level = terminal_level(terminal)
    if sigmas[0] < math.inf:
        raise InputError(
            f"terminal {terminal} replaces σ = ∞, but the grid starts at {float(sigmas[0]):g}; use exact, or leave "
            "the start (start_sigma, or a schedule without zero terminal SNR) out"
        )
    if sigmas[1] >= level:
        raise InputError(
            f"terminal {terminal} is not above the grid's next level, {float(sigmas[1]):g}; use exact or another grid"
        )
    return torch.cat([sigmas.new_tensor([level]), sigmas[1:]])


GRIDS: dict[str, Callable[..., Tensor]] = {
    "native": native,
    "trailing": trailing,
    "leading": leading,
    "karras": karras,
    "exponential": exponential,
    "canvas": canvas,
    "laplace": laplace,
    "community_trainer": community_trainer,
}
MOVABLE = ("native", "karras", "exponential", "canvas", "laplace")  # can start at any level


def grid_by_name(
    name: str,
    schedule: NoiseSchedule,
    n: int,
    sigma_max: float | None = None,
    latent_size: tuple[int, int] | None = None,
) -> Tensor:
    """The grid of that name with its defaults, as configurations and the command line use it.

    sigma_max    first level, for the grids that can start anywhere; None starts at the schedule's end
    latent_size  (height, width) of the latent canvas, on which only the grid `canvas` depends; None is SDXL's 128²
    Raises InputError for an unknown name (naming the nearest), and as the grid itself does.
    """
    n = check_steps(n)
    if name not in GRIDS:
        raise InputError(f"grid {name!r} is unknown{_nearest(name, GRIDS)}")
    size = (
        dict(zip(("height", "width"), latent_size, strict=True)) if latent_size and name == "canvas" else {}
    )
    if sigma_max is None:
        return GRIDS[name](schedule, n, **size)
    if name not in MOVABLE:
        raise InputError(
            f"grid {name!r} has a fixed start, so sigma_max={sigma_max} cannot apply; use one of "
            f"{', '.join(MOVABLE)}, or leave sigma_max out."
        )
    return GRIDS[name](schedule, n, sigma_max=sigma_max, **size)


def grid_of_settings(
    settings: SampleConfig,
    schedule: NoiseSchedule,
    latent_size: tuple[int, int],
    start_sigma: float | None = None,
) -> Tensor:
    """The grid that images are drawn on: by name, for the canvas, from the terminal level asked for.

    Arguments and errors as in `grid_by_name` and `with_terminal`; start_sigma is its sigma_max.
    """
    sigmas = grid_by_name(settings.grid, schedule, settings.steps, start_sigma, latent_size)
    return with_terminal(sigmas, settings.terminal)


def _nearest(name: str, known: dict) -> str:
    return f"; did you mean {nearest(name, known)[0]!r}? Known: {', '.join(known)}."
