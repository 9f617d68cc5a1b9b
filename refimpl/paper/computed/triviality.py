"""How much of eps and of v the best linear guess leaves open at each noise level (N §2.1).

Photographs have most of their power P at low frequencies. A linear estimate of x0 from x_t leaves P·sigma²/(alpha²·P
+ sigma²) at each, so it leaves alpha²·P/(alpha²·P + sigma²) of eps and P/(alpha²·P + sigma²) of v. At SNR 0 that is
nothing of eps, the input itself, and all of v, which is −x0.
"""

import numpy as np

from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.paper.computed.photographs import luma_canvases
from refimpl.paper.computed.quantity import Floats, Quantity, resampled_means, with_interval

TIMESTEPS = (0, 250, 500, 750, 925, 962, 999)  # 925 and 962: the native grid's after ∞, in reverse
SPECTRA_RESAMPLES = 300


def power_spectra() -> Floats:
    """P of each photograph [n, h·w]: by frequency, with the average at 0; the mean over both is 1."""
    upright = [each if each.shape[0] < each.shape[1] else each.T for each in luma_canvases()]
    return np.array([np.square(np.abs(np.fft.fft2(each))).ravel() / each.size for each in upright])


def left_open(power: Floats, t: int, target: str) -> Floats:
    """The share of a target's variance that the best linear estimate from x_t leaves.

    power  [..., frequencies], over images        target  eps or v        returns  [...]
    """
    alpha, sigma = (float(part[t]) for part in _levels())
    total = alpha**2 * power + sigma**2
    if target == "eps":
        return (alpha**2 * power / total).mean(-1)
    return (power / total).mean(-1) / (alpha**2 + sigma**2 * power.mean(-1))


def triviality() -> list[Quantity]:
    """What is left open of eps and of v at some timesteps of the schedule with zero terminal SNR."""
    spectra = power_spectra()
    drawn = resampled_means(spectra, SPECTRA_RESAMPLES)
    return [
        with_interval(
            f"{target} left open at t = {t}",
            float(left_open(spectra.mean(0), t, target)),
            left_open(drawn, t, target),
        )
        for target in ("eps", "v")
        for t in TIMESTEPS
    ]


def _levels():
    schedule = zero_terminal_snr(sdxl_schedule())
    return schedule.alpha, schedule.sigma
