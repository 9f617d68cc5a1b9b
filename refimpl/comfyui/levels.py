"""The noise levels that a ComfyUI sampler is given, none of which may be infinite (N §2.2, §2.3, App. A)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.sample.config import TERMINAL_NAMES
from refimpl.sample.grids import scale_sigma_max, terminal_level

# The stand-in for σ = ∞ where samplers need a finite number. A power of two, so that scaling noise up and down
# again changes no bit. Samplers compute with its value only where the exact first step cannot apply (inpainting):
# there Euler's float32 rounding costs σ·2⁻²⁴ and the finite start costs σ₁/σ of the estimate, hence this size.
STAND_IN_FOR_INFINITY = 2.0**15
TERMINAL = {name: terminal_level(name) for name in TERMINAL_NAMES}  # N App. A.1; A.2; other tools' clamps
SAME_FLOAT32 = (
    2.0**-23
)  # relative distance within which a level that passed through float32 is the table's own
# Relative distance below the last level within which a level is the last: float32 has no 4518.7637, and schedulers
# that compute its power or its logarithm in float32 miss it by up to 5e-7. ComfyUI takes a level this near the
# largest for the largest, too.
NEAR_THE_LAST = 1e-5


@dataclass(frozen=True)
class Levels:
    """The part of a schedule between two levels, as ComfyUI indexes it.

    sigma_min, sigma_max  finite; the first and last levels of the table
    exact                 whether sigma_max is the stand-in for ∞
    """

    schedule: NoiseSchedule
    sigma_min: float
    sigma_max: float
    exact: bool

    def table(self) -> Tensor:
        """sigma_edm [≤ T + 1] float64, increasing: the schedule's own levels between the two ends, and the ends.

        The schedule's last level is never among them: if the table reaches that far, sigma_max replaces it.
        """
        own = self.schedule.sigma_edm[:-1]
        ends = own.new_tensor([self.sigma_min]), own.new_tensor([self.sigma_max])
        return torch.cat([ends[0], own[(own > self.sigma_min) & (own < self.sigma_max)], ends[1]])

    def level(self, sigma: Tensor) -> Tensor:
        """The noise level that a sampler's sigma represents: ∞ for its stand-in, else sigma itself."""
        return torch.where(self.is_last(sigma), math.inf, sigma) if self.exact else sigma

    def sigma(self, t: Tensor) -> Tensor:
        """Timesteps [...], clamped to 0 … T−1, as sigma_edm [...] float64 within the ends; T−1 gives sigma_max."""
        t = t.double().clamp(0, self.schedule.timesteps - 1)
        inside = self.schedule.t_to_sigma_edm(t).clamp(self.sigma_min, self.sigma_max)
        return torch.where((t == self.last_timestep) | self.is_last(inside), self.sigma_max, inside)

    def timestep(self, sigma: Tensor) -> Tensor:
        """sigma_edm [...] as timesteps [...] float64, whole where a level is the table's up to float32 rounding."""
        sigma = sigma.double()
        t = self.schedule.sigma_edm_to_t(sigma)
        whole = t.round()
        near = self.schedule.t_to_sigma_edm(whole)
        t = torch.where(((sigma - near).abs() <= SAME_FLOAT32 * near) & near.isfinite(), whole, t)
        return torch.where(self.is_last(sigma), self.last_timestep, t)

    def is_last(self, sigma: Tensor) -> Tensor:
        """Whether a sampler's sigma is the last level, as schedulers compute it or above."""
        return sigma >= self.sigma_max * (1 - NEAR_THE_LAST)

    @property
    def largest_finite(self) -> float:
        """The schedule's last level that is not ∞; between it and ∞ the schedule has none."""
        return float(self.schedule.sigma_edm[self.schedule.sigma_edm.isfinite()][-1])

    @property
    def last_timestep(self) -> float:
        """The timestep of sigma_max: the schedule's last, or an earlier one if a small canvas lowers sigma_max."""
        if self.sigma_max >= self.largest_finite:
            return float(self.schedule.timesteps - 1)
        return float(self.schedule.sigma_edm_to_t(self.sigma_max))


def levels_for(
    schedule: NoiseSchedule, terminal: str, sigma_min: float, canvas: tuple[int, int] | None
) -> Levels:
    """The levels of a schedule for a canvas.

    terminal   level of a zero-SNR end: "exact" for ∞, "20000" (N App. A.2) or another of TERMINAL. A finite end is
               the schedule's own
    sigma_min  lowest level; 0 takes the schedule's own
    canvas     (height, width) px that the upper end is scaled for, by √(H·W)/1024 (R; N §2.3); None leaves it.
               Pure noise is pure noise on every canvas: ∞ stays ∞
    Raises InputError if sigma_min is not below the upper end.
    """
    end = TERMINAL[terminal] if schedule.is_zero_terminal else float(schedule.sigma_edm[-1])
    if canvas is not None:
        end = scale_sigma_max(end, *canvas)
    exact = end == math.inf
    sigma_max = STAND_IN_FOR_INFINITY if exact else end
    sigma_min = sigma_min or float(schedule.sigma_edm[0])
    if sigma_min >= sigma_max:
        raise InputError(
            f"sigma_min {sigma_min} is not below {sigma_max:g}, the largest level of this canvas"
        )
    return Levels(schedule, sigma_min, sigma_max, exact)
