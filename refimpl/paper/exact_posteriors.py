"""What a grid and a sampler make of data whose denoiser is known exactly (N §2.3, App. A.1).

D(∞), the estimate of the exact first step, is the mean of the data. The spread around it comes from the steps after.
R is the share of the spread of a canvas' average colour that a grid and a sampler keep: 1 is right. The covariance
that they give to Gaussians and to a mixture of two is measured in the same way, by the samplers themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal
from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.diffusion.schedule import NoiseSchedule, sdxl_schedule, zero_terminal_snr
from refimpl.sample.config import SampleConfig
from refimpl.sample.grid_checks import check_grid, check_positive, check_steps
from refimpl.sample.grids import exponential, grid_by_name
from refimpl.sample.samplers import SAMPLERS, STOCHASTIC
from refimpl.sample.stepping import Noise, PredictV, is_jump

# Variance of the average luma of a canvas, over photographs, where latents have variance 1. The photographs that
# scikit-image and scikit-learn bundle have 0.33 about their mean and 0.42 about 0 (docs/grids.md).
CANVAS_MEAN_VARIANCE = 0.3822
STDS = (0.3, 0.6, 1.0, 2.0)  # of the Gaussians, standardised latents having 1
POINTS = 2**14  # over a mixture's noises
ORDER_LEVELS = (10.0, 0.1)  # between which the order of convergence is measured
JUMPED_SIDES = 2.0  # of the latent canvas: a jump to below leaves out levels that its average needs


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians of one std and equal weights at ±offset, in one dimension."""

    offset: float
    std: float

    @property
    def variance(self) -> float:
        """Of the whole mixture."""
        return self.offset**2 + self.std**2

    def predict_v(self, x: Tensor, sigma_edm: Tensor) -> Tensor:
        """E[v | x]: the components' denoisers, weighted by how likely each has made x."""
        alpha, sigma = (float(part) for part in alpha_sigma(sigma_edm))
        power = (alpha * self.std) ** 2 + sigma**2
        # the weights w₊ − w₋ of two Gaussians of variance `power` at ±alpha·offset
        mean = self.offset * torch.tanh(alpha * self.offset * x / power)
        return sigma * (alpha * x * (1 - self.std**2) - mean) / power


BIMODAL = Mixture(offset=0.8, std=0.6)  # variance 1


def gaussian_v(variance: Tensor) -> PredictV:
    """The optimal network for x0 ~ N(0, variance): E[v | x] = alpha·sigma·x·(1 − s²)/(alpha²s² + sigma²).

    variance  [B, ...]  broadcasts over the state
    """

    def predict_v(x: Tensor, sigma_edm: Tensor) -> Tensor:
        alpha, sigma = (float(part) for part in alpha_sigma(sigma_edm))
        return alpha * sigma * x * (1 - variance) / (alpha**2 * variance + sigma**2)

    return predict_v


def canvas_spread(height: float, width: float) -> float:
    """The spread s of the average of a latent canvas, in units in which its noise at σ has standard deviation σ."""
    side = math.sqrt(check_positive("height", height) * check_positive("width", width))
    return math.sqrt(CANVAS_MEAN_VARIANCE) * side


def gaussian_covariance(sampler: str, sigmas: Tensor, variances: Sequence[float]) -> list[float]:
    """The variance of a sampler's results over the data's, for zero-mean Gaussians of these variances.

    It starts from noise alone, as sampling does. Exact up to rounding.
    """
    data = torch.tensor(variances, dtype=torch.float64)
    _, sigma = alpha_sigma(float(check_grid(sigmas)[0]))
    return (_result_variance(sampler, sigmas, data, sigma.expand(len(data))) / data).tolist()


def mixture_covariance(
    sampler: str, sigmas: Tensor, mixture: Mixture = BIMODAL, points: int = POINTS
) -> float:
    """The variance of a sampler's results over the data's, for a mixture of Gaussians centred at 0.

    By quadrature over the first noise; over the noises of a stochastic sampler too by Monte Carlo with keyed normals,
    with a standard error of about 0.002.
    """
    normal = _normals(points, len(sigmas) if sampler in STOCHASTIC else 1)
    _, sigma = alpha_sigma(float(check_grid(sigmas)[0]))
    x = float(sigma) * normal[:, 0]  # noise alone, at a finite level too
    x0 = _run(sampler, mixture.predict_v, x, sigmas, lambda step, _: normal[:, step + 1])
    return float(x0.square().mean()) / mixture.variance


@lru_cache
def _normals(points: int, dimensions: int) -> Tensor:
    """Standard normals [points, dimensions], uncorrelated to rounding, so that a Gaussian's covariance is exact."""
    if dimensions == 1:
        normal = torch.special.ndtri((torch.arange(points, dtype=torch.float64) + 0.5) / points)[:, None]
    else:
        keys = draw_key(0, torch.arange(points), 0, Purpose.INIT_NOISE)
        normal = keyed_normal(keys, (1, 1, dimensions)).reshape(points, dimensions).double()
    normal = normal - normal.mean(0)
    root = torch.linalg.cholesky(normal.T @ normal / points)
    return torch.linalg.solve_triangular(root, normal.T, upper=False).T


def kept_spread(sampler: str, sigmas: Tensor, height: float, width: float) -> float:
    """R: the share of the spread of a latent canvas' average that a sampler keeps on a grid."""
    spread = canvas_spread(height, width)
    return math.sqrt(gaussian_covariance(sampler, sigmas, [spread**2])[0])


def kept_by_exact_flow(sigmas: Tensor, height: float, width: float) -> float:
    """R of an exact sampler on a grid that starts with a jump: σ₁/√(σ₁² + s²), as the jump is all that is lost.

    At σ₁ the state is D(∞) + σ₁·n, whose spread σ₁ the exact flow scales as it does √(σ₁² + s²), to s.
    """
    level, spread = float(check_grid(sigmas)[1]), canvas_spread(height, width)
    return level / math.hypot(level, spread)


def most_that_euler_keeps(steps: int) -> float:
    """The largest R that any grid of so many steps gives Euler: cos(π/(2·steps))^steps, 0.957 for 28.

    On a zero-mean Gaussian of spread s, a step of Euler's from σ to σ′ keeps (s² + σσ′)/√((s² + σ²)(s² + σ′²)) of the
    spread, which is the cosine of θ − θ′ with θ = arctan(σ/s). From ∞ to 0 the angles sum to π/2, so that the product
    of their cosines is largest where all are equal: with σ = s·tan θ, made for that one spread alone.

    Raises InputError when `steps` is below 1.
    """
    return math.cos(math.pi / (2 * check_steps(steps))) ** steps


def jumps_too_far(sigmas: Tensor, height: float, width: float) -> bool:
    """Whether a grid goes from ∞, or a level that is taken likewise, to below 2·√(h·w) of the latent canvas."""
    first, second = check_grid(sigmas)[:2].tolist()
    return is_jump(first, second) and second < JUMPED_SIDES * math.sqrt(height * width)


def jump_note(
    settings: SampleConfig, sigmas: Tensor, schedule: NoiseSchedule, size: tuple[int, int]
) -> str | None:
    """One line for whoever samples on a grid that jumps too far on a latent canvas of that size, else None."""
    if not jumps_too_far(sigmas, *size):
        return None
    kept = kept_spread(settings.sampler, sigmas, *size)
    better = grid_by_name("canvas", schedule, settings.steps, latent_size=size)
    kept_by_better = kept_spread(settings.sampler, better, *size)
    start = "∞" if sigmas[0] == math.inf else f"{float(sigmas[0]):g}"
    advice = f"--grid canvas keeps {kept_by_better:.2f}" if kept_by_better > kept else "take more steps"
    return (
        f"note: the grid {settings.grid} goes from {start} to {float(sigmas[1]):.3g}, below "
        f"2·√(h·w) = {JUMPED_SIDES * math.sqrt(math.prod(size)):.0f} on this canvas, where {settings.sampler} keeps "
        f"R = {kept:.2f} of the spread of its average colour; {advice} (docs/grids.md)"
    )


def order_of_convergence(sampler: str, std: float = 0.6, steps: int = 160) -> float:
    """By how many powers of two the error shrinks as steps double: the limit for many steps.

    The error is that of the standard deviation of the results, for a Gaussian noised to a level where its state
    has the exact marginal; steps are equal in log σ down to a fixed level, so that the last, to 0, has no error.
    """
    schedule, (top, bottom) = zero_terminal_snr(sdxl_schedule()), ORDER_LEVELS
    data = torch.tensor([std**2], dtype=torch.float64)
    alpha, sigma = alpha_sigma(top)
    exact = std**2 / math.hypot(
        std, bottom
    )  # the denoiser's std of a state with the exact marginal at `bottom`
    errors = []
    for n in (steps, 2 * steps):
        grid = exponential(schedule, n, sigma_min=bottom, sigma_max=top)
        got = _result_variance(sampler, grid, data, torch.hypot(alpha * std, sigma).expand(1))
        errors.append(abs(math.sqrt(float(got)) - exact))
    return math.log2(errors[0] / errors[1])


def _result_variance(sampler: str, sigmas: Tensor, data: Tensor, start: Tensor) -> Tensor:
    """The variance [K] of results for Gaussians of variance `data` [K], from states in VP form of std `start` [K].

    The denoiser of a Gaussian is linear, so a result is a sum of independent noises, the first and each step's. Each
    column of the batch has one of them at 1 and the others at 0.
    """
    first = torch.zeros(len(data), len(sigmas), dtype=torch.float64)
    first[:, 0] = start

    def one_at_a_time(step: int, like: Tensor) -> Tensor:
        z = torch.zeros_like(like)
        z[:, step + 1] = 1
        return z

    return _run(sampler, gaussian_v(data[:, None]), first, sigmas, one_at_a_time).square().sum(1)


def _run(sampler: str, predict_v: PredictV, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
    """The sampler's result, with `noise` where it draws any."""
    arguments = {"noise": noise} if sampler in STOCHASTIC else {}
    return SAMPLERS[sampler](predict_v, x, sigmas, **arguments)
