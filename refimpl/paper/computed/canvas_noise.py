"""What is left of a canvas' average colour under noise (N §2.2, Fig. 1; App. A.2).

Latents have variance 1, and noise of σ on h·w of them leaves σ/√(h·w) on their average. The SNR of the average is its
variance over photographs, times h·w/σ². A linear estimate of it recovers SNR/(1 + SNR) of its variance.
"""

import numpy as np

from refimpl.paper.computed.photographs import luma_canvases
from refimpl.paper.computed.quantity import Floats, Quantity, bootstrapped, exact

LEVELS = (14.6, 29.0, 56.0, 136.0, 317.0, 20000.0)  # N §2.2, Fig. 6, Fig. 4, App. A.2
ENOUGH = (136.0, 317.0)  # N App. A.2: "sufficient to prevent our model expecting mean leakage"


def canvas_means() -> Floats:
    """The average luma of each photograph [n], standardised."""
    return np.array([each.mean() for each in luma_canvases()])


def mean_noise() -> list[Quantity]:
    """The standard deviation of the noise on the average of N's canvas, in units of the latents' own."""
    area = luma_canvases()[0].size
    return [exact(f"noise on the canvas mean at σ = {level:g}", level / np.sqrt(area)) for level in LEVELS]


def mean_snr() -> list[Quantity]:
    """The SNR of the average luma at each level, over photographs."""
    area = luma_canvases()[0].size
    return [
        bootstrapped(
            f"SNR of the canvas mean at σ = {level:g}",
            canvas_means(),
            lambda means, level=level: float(means.var(ddof=1)) * area / level**2,
        )
        for level in LEVELS
    ]


def mean_recovered() -> list[Quantity]:
    """The share of the variance of the average luma that the noised canvas still tells, at each level."""
    return [
        Quantity(
            each.name.replace("SNR of", "share told of"),
            *(x / (1 + x) for x in (each.value, each.low, each.high)),
        )
        for each in mean_snr()
    ]


def level_of_unit_snr() -> Quantity:
    """The σ at which signal and noise of the canvas mean are equally strong: the spread s of `canvas_spread`."""
    area = luma_canvases()[0].size
    return bootstrapped(
        "σ at which the SNR of the canvas mean is 1",
        canvas_means(),
        lambda means: float(np.sqrt(means.var(ddof=1) * area)),
    )
