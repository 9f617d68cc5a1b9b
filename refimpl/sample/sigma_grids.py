"""Grids evenly spaced in a function of sigma_edm (Karras et al. 2022, eq. 5; Hang et al. 2024; R; N §2.3)."""

import math

import torch
from torch import Tensor

from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.sample.grid_checks import check_positive, check_steps, grid_of

SIDES_TO_FIRST_LEVEL = (
    3.2  # sigma_edm of the first finite level of `canvas`, over the side of the latent canvas
)
LATENT_SIDE = 128  # of SDXL's 1024² px


def karras(
    schedule: NoiseSchedule,
    n: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    finite_max: float | None = None,
) -> Tensor:
    """Karras et al. 2022, eq. 5: evenly spaced in sigma^(1/rho), then sigma 0.

    sigma_min   last level before 0; the schedule's first by default
    sigma_max   first level; the schedule's last by default. Where that is ∞, the formula gives the n − 1
                levels after it, from `finite_max` down
    finite_max  only with sigma_max = ∞; the schedule's largest finite level by default (2254.2 for SDXL)
    returns     sigma_edm [n + 1] float64
    Raises InputError for n < 1, levels or rho that are not positive and finite, or levels out of order.
    """
    n = check_steps(n)
    rho = check_positive("karras grid: rho", rho)
    low, high, from_infinity = _levels("karras", schedule, n, sigma_min, sigma_max, finite_max)
    # eq. 5
    ramp = torch.linspace(high ** (1 / rho), low ** (1 / rho), n - from_infinity, dtype=torch.float64)
    return _grid("karras", _pin_ends(ramp**rho, high, low), from_infinity)


def exponential(
    schedule: NoiseSchedule,
    n: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    finite_max: float | None = None,
) -> Tensor:
    """Evenly spaced in log sigma (the limit rho → ∞ of Karras et al. 2022, eq. 5), then sigma 0.

    Arguments, result and errors as in `karras`.
    """
    n = check_steps(n)
    low, high, from_infinity = _levels("exponential", schedule, n, sigma_min, sigma_max, finite_max)
    return _grid("exponential", _log_spaced(high, low, n - from_infinity), from_infinity)


def canvas(
    schedule: NoiseSchedule,
    n: int,
    height: float = LATENT_SIDE,
    width: float = LATENT_SIDE,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """Evenly spaced in log sigma from a level that grows with the canvas; then sigma 0. Not from a paper.

    The step from ∞ gives every sample the mean of the data. The spread around it must come from the steps after
    it, and the average colour of the canvas has the largest: with a standard deviation of c per latent, where noise
    averages out to σ/√(h·w), it is that of a Gaussian of spread s = c·√(h·w) under noise of σ. After the exact step,
    even the exact flow keeps only σ₁/√(σ₁² + s²) of it: 0.58 for native's σ₁ = 56 at 832×1216 px. σ₁ = 3.2·√(h·w),
    which is in proportion to the side as N §2.3 has it for sigma_max, keeps 0.98 for the c = 0.62 of photographs,
    on every canvas. From there on, steps are equal in log sigma: a sampler's error on a Gaussian of spread s is
    made around σ = s, by the step in log sigma there, and latents have spreads between fine detail and the canvas.

    With 28 steps, second-order samplers keep at least 0.98 of the spread and Euler 0.89 to 0.90, against 0.33 to 0.84
    on `native` (docs/grids.md). The cost is that fewer steps are left for detail: at a spread of 1 Euler gives 0.83
    of the variance, on `native` 0.90, `trailing` 0.89, `karras` 0.72; DPM++ 2M gives 1.02, there 1.08, 0.97 and 1.11.
    height, width  sides of the latent canvas; SDXL's 128 by default, 1024 px
    Other arguments, result and errors as in `exponential`, which it equals where the start is finite.
    """
    n = check_steps(n)
    side = math.sqrt(
        check_positive("canvas grid: height", height) * check_positive("canvas grid: width", width)
    )
    first = float(schedule.sigma_edm[-1]) if sigma_max is None else float(sigma_max)
    finite_max = SIDES_TO_FIRST_LEVEL * side if first == math.inf else None
    low, high, from_infinity = _levels("canvas", schedule, n, sigma_min, sigma_max, finite_max)
    return _grid("canvas", _log_spaced(high, low, n - from_infinity), from_infinity)


def laplace(
    schedule: NoiseSchedule,
    n: int,
    mu: float = 0.0,
    beta: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    finite_max: float | None = None,
) -> Tensor:
    """R's Laplace grid (Hang et al. 2024, Tab. 1): quantiles of a Laplace density of log sigma, then sigma 0.

    λ = μ − β·sign(½ − u)·ln(1 − 2|½ − u|) at n evenly spaced u in [0, 1]; σ = e^λ, clamped to the given
    levels. At u = 0 the formula itself gives ∞, which is the first entry on a zero-SNR schedule. Levels that
    the clamp makes equal are respaced evenly in log sigma up to the next unclamped one, so that no step is empty.
    mu, beta  centre and width of the density of log sigma; other arguments, result and errors as in `karras`
    """
    n = check_steps(n)
    beta = check_positive("laplace grid: beta", beta)
    if not math.isfinite(mu):
        raise InputError(f"laplace grid: mu is {mu}; give a finite number.")
    low, high, from_infinity = _levels("laplace", schedule, n, sigma_min, sigma_max, finite_max)
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    lam = mu - beta * torch.sign(0.5 - u) * torch.log(1 - 2 * (0.5 - u).abs())
    sigma = lam.exp().clamp(low, high)[int(from_infinity) :]
    return _grid("laplace", _respread(sigma, high, low), from_infinity)


def _levels(
    name: str,
    schedule: NoiseSchedule,
    n: int,
    sigma_min: float | None,
    sigma_max: float | None,
    finite_max: float | None,
) -> tuple[float, float, bool]:
    """(lowest level, highest finite level, whether ∞ comes first) of a grid given by a formula in sigma."""
    first = float(schedule.sigma_edm[-1]) if sigma_max is None else float(sigma_max)
    from_infinity = first == math.inf
    if from_infinity and not schedule.is_zero_terminal:
        raise InputError(f"{name} grid: sigma_max is inf, but the schedule does not end in zero SNR.")
    if finite_max is not None and not from_infinity:
        raise InputError(f"{name} grid: finite_max={finite_max} needs a start at inf; give sigma_max alone.")
    largest_finite = float(schedule.sigma_edm[-2]) if finite_max is None else finite_max
    high = check_positive(f"{name} grid: finite_max", largest_finite) if from_infinity else first
    high = check_positive(f"{name} grid: sigma_max", high)
    lowest = float(schedule.sigma_edm[0]) if sigma_min is None else sigma_min
    low = check_positive(f"{name} grid: sigma_min", lowest)
    if n > 1 and low >= high:
        raise InputError(f"{name} grid: sigma_min {low} is not below the highest finite level {high}.")
    return low, high, from_infinity


def _grid(name: str, levels: Tensor, from_infinity: bool) -> Tensor:
    head = levels.new_tensor([math.inf] if from_infinity else [])
    return grid_of(torch.cat([head, levels]), f"{name} grid")


def _respread(sigma: Tensor, high: float, low: float) -> Tensor:
    """Respace runs of equal levels at either bound evenly in log sigma, up to the next free level or the bound."""
    sigma = sigma.clone()
    n = sigma.numel()
    if (sigma <= low).all() and n > 1:
        return _log_spaced(high, low, n)
    free_below = int((sigma >= high).sum())
    if 1 < free_below < n:
        sigma[: free_below + 1] = _log_spaced(high, float(sigma[free_below]), free_below + 1)
    run = int((sigma <= low).sum())
    if 1 < run < n:
        sigma[n - run - 1 :] = _log_spaced(float(sigma[n - run - 1]), low, run + 1)
    return sigma


def _log_spaced(high: float, low: float, n: int) -> Tensor:
    levels = torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp()
    return _pin_ends(levels, high, low)


def _pin_ends(levels: Tensor, high: float, low: float) -> Tensor:
    """The levels with their ends set to the exact values, which powers and logarithms only approximate."""
    if levels.numel() > 0:
        levels[0] = high
    if levels.numel() > 1:
        levels[-1] = low
    return levels
