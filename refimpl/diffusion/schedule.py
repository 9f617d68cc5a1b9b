"""Noise schedule of SDXL and its zero-terminal-SNR rescale (N §2.2, S §2.5; Lin et al. 2023, alg. 1)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refimpl.errors import InputError

TIMESTEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012  # S §2.5 keeps the discrete schedule of Rombach et al. (N ref. 25)
UNIT_NORM_SLACK = 1e-12  # how far alpha² + sigma² may be from 1: a few thousand float64 roundings


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The variance-preserving (alpha, sigma) of every timestep; one object serves training and sampling.

    alpha, sigma  [T]  float64, alpha² + sigma² = 1, alpha strictly decreasing, sigma > 0. alpha may end in 0.
    Raises InputError when a table violates one of these.
    """

    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        a, s = self.alpha, self.sigma
        if a.dtype != torch.float64 or s.dtype != torch.float64:
            raise InputError(
                f"a schedule must be float64 (half precision has no noise at t = 0): got {a.dtype}, {s.dtype}"
            )
        if a.ndim != 1 or a.shape != s.shape or len(a) < 3:
            raise InputError(
                f"alpha and sigma must be [T] with T >= 3, got {list(a.shape)} and {list(s.shape)}"
            )
        if not bool(((a**2 + s**2 - 1).abs() <= UNIT_NORM_SLACK).all()):
            raise InputError("alpha² + sigma² must be 1 at every timestep of a schedule")
        if not bool((a[1:] < a[:-1]).all() and (a >= 0).all() and (s > 0).all()):
            raise InputError(
                "alpha must be strictly decreasing and >= 0, and sigma must be > 0, at every timestep"
            )

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alpha)

    @property
    def is_zero_terminal(self) -> bool:
        """Whether the last timestep is pure noise, SNR 0."""
        return bool(self.alpha[-1] == 0)

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio (alpha/sigma)² [T]; 0 at a zero-SNR end."""
        return (self.alpha / self.sigma) ** 2

    @property
    def sigma_edm(self) -> Tensor:
        """The σ of N and of Karras et al. 2022 (EDM), sigma/alpha [T]; inf at a zero-SNR end."""
        return self.sigma / self.alpha

    def at(self, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """alpha and sigma at integer timesteps.

        t  [...]  integers 0..T−1        returns  [...], [...]  float64 on t's device
        Raises InputError outside that range and on non-integers.
        """
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise InputError(f"a table lookup needs integer timesteps, got {t.dtype}; use t_to_sigma_edm")
        self._check_timesteps(t)
        return self.alpha.to(t.device)[t.long()], self.sigma.to(t.device)[t.long()]

    def t_to_sigma_edm(self, t: Tensor | float) -> Tensor:
        """sigma_edm at timesteps that need not be integers, by interpolation in log sigma_edm.

        Exact at integers. At a zero-SNR end log sigma_edm is infinite, so the last interval is linear in
        1/sigma_edm instead: sigma_edm(t) = sigma_edm[T−2] / (T−1−t), which is inf at T−1.

        t  [...]  0 to T−1        returns  [...]  float64
        Raises InputError outside that range and on NaN.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        self._check_timesteps(t)
        table = self._finite_sigma_edm.to(t.device)
        last = len(table) - 1
        low = t.floor().long().clamp(max=last)
        high = (low + 1).clamp(max=last)
        finite = table[low] * (table[high] / table[low]) ** (t - low).clamp(max=1)
        return torch.where(t > last, table[last] / (self.timesteps - 1 - t), finite)

    def sigma_edm_to_t(self, sigma_edm: Tensor | float) -> Tensor:
        """The timestep of a noise level, the inverse of `t_to_sigma_edm`; not rounded.

        inf maps to T−1 exactly. A value outside the table maps to the nearest end, 0 or T−1: the network was
        not trained on timesteps beyond it.

        sigma_edm  [...]  0 to inf        returns  [...]  float64, 0 to T−1
        Raises InputError on negative values and NaN.
        """
        sigma_edm = torch.as_tensor(sigma_edm, dtype=torch.float64)
        if not bool((sigma_edm >= 0).all()):
            raise InputError(
                f"sigma_edm must be a number of at least 0, got {_show(sigma_edm, sigma_edm >= 0)}"
            )
        table = self._finite_sigma_edm.to(sigma_edm.device)
        last = len(table) - 1
        inside = sigma_edm.clamp(table[0], table[last])
        low = (torch.searchsorted(table, inside, right=True) - 1).clamp(max=last - 1)
        finite = low + torch.log(inside / table[low]) / torch.log(table[low + 1] / table[low])
        if not self.is_zero_terminal:
            return finite
        beyond = self.timesteps - 1 - table[last] / sigma_edm
        # a level above the last finite one is past its timestep, also where the difference rounds away
        past = torch.nextafter(beyond.new_tensor(last), beyond.new_tensor(math.inf))
        return torch.where(sigma_edm > table[last], torch.maximum(beyond, past), finite)

    @property
    def _finite_sigma_edm(self) -> Tensor:
        return self.sigma_edm[:-1] if self.is_zero_terminal else self.sigma_edm

    def _check_timesteps(self, t: Tensor) -> None:
        inside = (t >= 0) & (t <= self.timesteps - 1)
        if not bool(inside.all()):
            raise InputError(f"timesteps must lie in 0 to {self.timesteps - 1}, got {_show(t, inside)}")


def sdxl_schedule() -> NoiseSchedule:
    """SDXL's schedule as published, which ends at sigma_edm 14.6 (S §2.5; N §2.2)."""
    # S §2.5: the square roots of the betas are linearly spaced
    beta = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - beta, dim=0)
    return NoiseSchedule(alpha=torch.sqrt(abar), sigma=torch.sqrt(1 - abar))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule shifted and scaled so that it ends in pure noise (N §2.2; Lin et al. 2023, alg. 1).

    The first timestep is unchanged bit for bit; at the last, alpha is exactly 0 and sigma exactly 1. Computed
    from alpha = √abar directly: converting to betas and back costs 1e-5. A schedule that already ends in zero
    SNR is returned as is.
    """
    if schedule.is_zero_terminal:
        return schedule
    first, last = schedule.alpha[0], schedule.alpha[-1]
    # alg. 1: √abar′ = (√abar − √abar_T)·√abar_0 / (√abar_0 − √abar_T)
    alpha = (schedule.alpha - last) * first / (first - last)
    alpha[0] = first  # what the formula says, without its rounding
    sigma = torch.sqrt(1 - alpha**2)
    sigma[0] = schedule.sigma[0]
    return NoiseSchedule(alpha=alpha, sigma=sigma)


def _show(values: Tensor, good: Tensor) -> str:
    bad = values[~good].flatten().tolist()
    return ", ".join(str(value) for value in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
