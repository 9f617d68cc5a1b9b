"""The two schedules of the tests, and small ones of any length."""

import math

import torch

from refimpl.diffusion.schedule import NoiseSchedule, sdxl_schedule, zero_terminal_snr

PLAIN = sdxl_schedule()
ZERO_SNR = zero_terminal_snr(PLAIN)


def small_schedule(timesteps: int, zero_terminal: bool) -> NoiseSchedule:
    """A quarter of a cosine wave, to pure noise or almost."""
    phi = torch.linspace(0.02, math.pi / 2 if zero_terminal else 1.5, timesteps, dtype=torch.float64)
    alpha = phi.cos()
    if zero_terminal:
        alpha[-1] = 0
    return NoiseSchedule(alpha=alpha, sigma=(1 - alpha**2).sqrt())
