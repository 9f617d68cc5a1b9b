"""A grid whose steps share a weight by timestep equally, such as MinSNR's (N §2.4; R's dynamic SNR gamma)."""

import numpy as np
import torch
from torch import Tensor

from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_steps, grid_of


def weighted(
    schedule: NoiseSchedule, n: int, weights: Tensor, start: float | None = None, end: float = 0.0
) -> Tensor:
    """n timesteps from `start` to `end` with an equal share of a weight between neighbours, then sigma 0.

    `native` where the weights are equal. With MinSNR's loss weight (N §2.4) steps go where training put its effort:
    a smaller γ takes steps from the low noise levels. Not from a paper.
    weights     [T]  positive and finite, one per timestep
    start, end  first and last timestep; the schedule's last, and 0
    returns     sigma_edm [n + 1] float64
    Raises InputError for n < 1, other weights, ends out of order, and steps so dense that two levels coincide.
    """
    n = check_steps(n)
    last = schedule.timesteps - 1
    first = float(last if start is None else start)
    if not 0 <= end < first <= last:
        raise InputError(f"weighted grid: from {first} to {end}; give 0 ≤ end < start ≤ {last}.")
    if weights.shape != schedule.alpha.shape or not bool(((weights > 0) & weights.isfinite()).all()):
        raise InputError(
            f"weighted grid: give one positive finite weight per timestep, [{schedule.timesteps}], not "
            f"{list(weights.shape)} from {float(weights.min()):g} to {float(weights.max()):g}."
        )
    w, timesteps = weights.double().numpy(), np.arange(last + 1, dtype=np.float64)
    below = np.concatenate(([0.0], np.cumsum((w[1:] + w[:-1]) / 2)))  # the weight below each timestep
    most, least = (float(np.interp(t, timesteps, below)) for t in (first, end))
    shares = np.linspace(most, least, n)
    t = torch.from_numpy(np.interp(shares, below, timesteps))
    return grid_of(schedule.t_to_sigma_edm(t), "weighted grid")
