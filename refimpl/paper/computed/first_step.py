"""The step from ∞ as a limit: how fast it is reached, and what DPM++ would weigh it (N App. A.1); R by grid."""

import math

from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.paper.computed.quantity import Quantity, exact
from refimpl.paper.exact_posteriors import kept_spread
from refimpl.sample.grids import grid_by_name

STARTS = (2254.0, 20000.0, 1e6, 1e30, math.inf)
CANVAS = (104, 152)  # latents of 832 × 1216 px
STEPS = 28


def dpmpp_weight(start: float, second: float, third: float) -> float:
    """The weight of the estimate at `start` in DPM++ 2M's step from `second` to `third` (Lu et al. 2023, alg. 2).

    (1 − e^−h)·h/(2·h_last), up to its sign, with h = ln(second/third) and h_last = ln(start/second); 0 at ∞.
    """
    h, h_last = math.log(second / third), math.log(start / second)
    return -math.expm1(-h) * h / (2 * h_last)


def first_step_limit() -> list[Quantity]:
    """DPM++'s weight of a first estimate, and the error of eq. 3 against eq. 9, for starts that tend to ∞."""
    second, third = (float(level) for level in _grid("native")[1:3])
    weights = [
        exact(f"DPM++ 2M's weight of the estimate at σ = {_name(start)}", dpmpp_weight(start, second, third))
        for start in STARTS
    ]
    # eq. 8 less eq. 9: −(σ₁/σ₀)·D
    missing = [exact(f"D missing from x₁ at σ₀ = {_name(start)}", second / start) for start in STARTS]
    return [*weights, *missing]


def laplace_spread() -> list[Quantity]:
    """The share of the canvas mean's spread that the Laplace grid keeps, and other grids of as many steps."""
    return [
        exact(f"share kept by {grid} {STEPS} with {sampler}", kept_spread(sampler, _grid(grid), *CANVAS))
        for grid in ("laplace", "native", "karras", "canvas")
        for sampler in ("euler", "dpmpp_2m")
    ]


def _grid(name: str):
    return grid_by_name(name, zero_terminal_snr(sdxl_schedule()), STEPS, latent_size=CANVAS)


def _name(level: float) -> str:
    return "∞" if math.isinf(level) else f"{level:g}"
