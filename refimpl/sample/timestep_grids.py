"""Grids evenly spaced in timesteps (N §2.3, Fig. 5; arXiv 2305.08891 §3.3, Tab. 2)."""

import torch
from torch import Tensor

from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_steps, grid_of


def native(
    schedule: NoiseSchedule, n: int, start: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """N §2.3: n timesteps spaced evenly from the schedule's last to 0, then sigma 0.

    start      first timestep, instead of the schedule's last (N Fig. 6: 880 and 932 on the zero-SNR table)
    sigma_max  the start as a noise level; give at most one of the two
    returns    sigma_edm [n + 1] float64; for n = 28 from t = 999 the timesteps are 999, 962, … 37, 0
    Raises InputError for n < 1, a start outside the schedule, and steps so dense that two levels coincide.
    """
    n = check_steps(n)
    if start is not None and sigma_max is not None:
        raise InputError(f"native grid: got both start={start} and sigma_max={sigma_max}; give one of them.")
    last = schedule.timesteps - 1
    first = float(last if start is None else start)
    if sigma_max is not None:
        first = _timestep_of(schedule, sigma_max)
    if not (first == 0 and n == 1) and not 0 < first <= last:
        raise InputError(
            f"native grid: start {first} is not in (0, {last}]; choose a timestep in that range."
        )
    sigma_edm = schedule.t_to_sigma_edm(torch.linspace(first, 0, n, dtype=torch.float64))
    if sigma_max is not None:
        sigma_edm[0] = sigma_max  # exactly: the way through t and back costs a rounding
    return grid_of(sigma_edm, "native grid")


def trailing(schedule: NoiseSchedule, n: int) -> Tensor:
    """arXiv 2305.08891 §3.3, Tab. 2 "trailing": t_i = round(T·(n − i)/n) − 1, i = 0 … n − 1, then sigma 0.

    Rounded half to even in integer arithmetic: stepping in floating point gives n + 1 entries for some n.
    returns  sigma_edm [n + 1] float64
    Raises InputError for n outside 1 … T.
    """
    total = schedule.timesteps
    n = check_steps(n, total)
    t = _round_half_even(total * torch.arange(n, 0, -1), n) - 1
    return grid_of(schedule.t_to_sigma_edm(t), "trailing grid")


def leading(schedule: NoiseSchedule, n: int, offset: int = 1, force: bool = False) -> Tensor:
    """arXiv 2305.08891 §3.3, Tab. 2 "leading": t_i = (n − 1 − i)·⌊T/n⌋ + offset, then sigma 0.

    It omits the last timestep, so on a zero-SNR schedule the pure noise that sampling starts from is treated
    as a noisy image: the flaw that zero terminal SNR is meant to fix. Only `force` allows it.
    offset   shift of all timesteps (1 for SDXL), reduced where it would leave the schedule (n = T)
    returns  sigma_edm [n + 1] float64
    Raises InputError for n outside 1 … T, a negative offset, or a zero-SNR schedule without `force`.
    """
    total = schedule.timesteps
    n = check_steps(n, total)
    if offset < 0:
        raise InputError(f"leading grid: offset {offset} is negative; give 0 or more.")
    if schedule.is_zero_terminal and not force:
        raise InputError(
            f"leading grid: the schedule ends in zero SNR at t = {total - 1}, and leading spacing skips that "
            "step, so sampling would start from a level that still contains signal. Use native or trailing, or "
            "pass force=True."
        )
    spacing = total // n
    shift = min(offset, total - 1 - (n - 1) * spacing)
    t = torch.arange(n - 1, -1, -1, dtype=torch.float64) * spacing + shift
    return grid_of(schedule.t_to_sigma_edm(t), "leading grid")


def _timestep_of(schedule: NoiseSchedule, sigma_max: float) -> float:
    top = float(schedule.sigma_edm[-1])
    if not 0 < sigma_max <= top:
        raise InputError(f"grid: sigma_max {sigma_max} is not in (0, {top}], the levels of the schedule.")
    return float(schedule.sigma_edm_to_t(torch.tensor(sigma_max, dtype=torch.float64)))


def _round_half_even(numerator: Tensor, denominator: int) -> Tensor:
    quotient = numerator // denominator
    twice = 2 * (numerator % denominator)
    up = (twice > denominator) | ((twice == denominator) & (quotient % 2 == 1))
    return quotient + up
