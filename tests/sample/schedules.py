"""The two schedules used in the tests, small ones of any length, and grids without the step from ∞."""

import math

import torch

from refimpl.diffusion.schedule import NoiseSchedule, sdxl_schedule, zero_terminal_snr
from refimpl.sample.grids import karras, native

PLAIN = sdxl_schedule()
ZERO_SNR = zero_terminal_snr(PLAIN)

FINITE_GRIDS = {
    "native": native(PLAIN, 28),
    "native after the step from infinity": native(ZERO_SNR, 28)[1:],
    "karras": karras(PLAIN, 12),
    "two levels": torch.tensor([14.6, 2.0, 0.0], dtype=torch.float64),
    "one level": torch.tensor([3.0, 0.0], dtype=torch.float64),
}


def small_schedule(timesteps: int, zero_terminal: bool) -> NoiseSchedule:
    """A quarter of a cosine wave, down to pure noise or nearly so."""
    phi = torch.linspace(0.02, math.pi / 2 if zero_terminal else 1.5, timesteps, dtype=torch.float64)
    alpha = phi.cos()
    if zero_terminal:
        alpha[-1] = 0
    return NoiseSchedule(alpha=alpha, sigma=(1 - alpha**2).sqrt())
