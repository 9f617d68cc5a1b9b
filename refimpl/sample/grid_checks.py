"""Checks of inference grids and of their arguments (N §2.3)."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.errors import InputError

MOST_STEPS = 100_000  # a hundred times the timesteps of the schedule; beyond it a typing error is certain


def as_levels(values: Tensor | Sequence[float], place: str) -> Tensor:
    """The values as a tensor, float64 if they are Python numbers. Raises InputError when they are not numbers."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{place}: {values!r}; give real noise levels, decreasing to 0.") from None


def check_grid(sigmas: Tensor | Sequence[float], place: str = "grid") -> Tensor:
    """The grid as float64 on the CPU.

    sigmas   [n + 1]  sigma_edm, n >= 1: strictly decreasing, last entry 0, ∞ allowed as the first entry only
    Raises InputError when the grid violates one of these.
    """
    sigmas = as_levels(sigmas, place)
    if sigmas.ndim != 1 or sigmas.numel() < 2:
        raise InputError(
            f"{place}: shape {list(sigmas.shape)}; a grid is [n + 1], at least one level and a final 0."
        )
    if sigmas.is_complex() or sigmas.dtype == torch.bool:
        raise InputError(f"{place}: dtype {sigmas.dtype}; give real noise levels.")
    sigmas = sigmas.detach().to("cpu", torch.float64)
    if sigmas.isnan().any():
        where = int(sigmas.isnan().nonzero()[0])
        raise InputError(f"{place}: entry {where} is NaN; give real noise levels.")
    if sigmas[-1] != 0:
        raise InputError(
            f"{place}: the last entry is {float(sigmas[-1])}; a grid ends in 0, the clean image."
        )
    falls = sigmas[1:] < sigmas[:-1]
    if not falls.all():
        i = int((~falls).nonzero()[0])
        raise InputError(
            f"{place}: entries {i} and {i + 1} are {float(sigmas[i])} and {float(sigmas[i + 1])}; levels "
            "must be strictly decreasing (inf only as the first). Take fewer steps or levels further apart."
        )
    return sigmas


def check_steps(n: int, most: int = MOST_STEPS) -> int:
    """n as an int. Raises InputError when it is not a whole number in 1 … most."""
    try:
        steps = operator.index(n)
    except TypeError:
        raise InputError(f"steps: {n!r} is not a whole number; give 1 to {most}.") from None
    if not 1 <= steps <= most:
        raise InputError(f"steps: {steps} is not in 1 to {most}; choose a number of steps in that range.")
    return steps


def check_positive(what: str, value: float) -> float:
    """value as a float. Raises InputError naming `what` when it is not positive and finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{what} is {value}; give a positive finite number.")
    return number


def grid_of(levels: Tensor, place: str) -> Tensor:
    """The grid of the levels [n] followed by 0, checked."""
    return check_grid(torch.cat([levels.double(), torch.zeros(1, dtype=torch.float64)]), place)
