"""What a scale-and-shift of each channel costs and brings, and on how many images it converges (N App. B)."""

import numpy as np

from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.paper.computed.photographs import canvases
from refimpl.paper.computed.quantity import Floats, Quantity, bootstrapped, exact

SDXL_SCALE = 0.13025
N_IMAGES = 78_224  # N App. B.2
COUNTS = (1, 2, 4, 8)
WHITE = np.ones(3)  # from black, in red, green and blue


def _pixels() -> Floats:
    """Cells of each photograph [n, 3, h·w]."""
    return np.stack([each.reshape(3, -1) for each in canvases()])


def _moments(pixels: Floats) -> Floats:
    """Mean and mean square of each photograph's channels, [n, 3, 2]; all have as many cells."""
    return np.stack([pixels.mean(2), np.square(pixels).mean(2)], axis=-1)


def channel_scaling() -> list[Quantity]:
    """What becomes of signals across channels when each has its own scale instead of one for all.

    A map of each channel by itself leaves every correlation as it was: nothing is decorrelated. What changes is how
    far a signal stands out of noise that is the same in all channels.
    """
    data = _pixels()

    def stands_out(chosen: Floats) -> float:
        """White's distance from black with a scale for each channel, over that with one scale for all."""
        std = np.sqrt(chosen[..., 1].mean(0) - chosen[..., 0].mean(0) ** 2)
        return float(np.linalg.norm(WHITE / std) / np.linalg.norm(WHITE / std.mean()))

    together = data.transpose(1, 0, 2).reshape(3, -1)
    standardised = (together - together.mean(1, keepdims=True)) / together.std(1, keepdims=True)
    change = float(np.abs(np.corrcoef(standardised) - np.corrcoef(together)).max())
    gains = 1 / (SDXL_SCALE * np.array(NOVELAI_ANIME.std))
    return [
        exact("largest change of a correlation between channels", round(change, 12)),
        bootstrapped("white against black in photographs, own scales over one", _moments(data), stands_out),
        exact("smallest gain of a direction by N Fig. 8's scales over 0.13025", gains.min()),
        exact("largest gain of a direction by N Fig. 8's scales over 0.13025", gains.max()),
        exact("power that N Fig. 8's shift removes, in units of the channels' variance", _shift_power()),
    ]


def _shift_power() -> float:
    """The power that centring removes, in units of the channels' variance."""
    ratio = np.array(NOVELAI_ANIME.mean) / np.array(NOVELAI_ANIME.std)
    return float(np.square(ratio).mean())


def convergence() -> list[Quantity]:
    """How far the scale-and-shift of n images is from the final one, in units of the final std (N Fig. 8).

    Images are what is independent, so errors fall as n^−½ from that of one image; n = 78,224 by that law.
    """
    moments = _moments(_pixels())

    def error_of_one(chosen: Floats) -> Floats:
        """rms over channels of the error of mean and std from one image, to first order in it."""
        mean, square = chosen[..., 0].mean(0), chosen[..., 1].mean(0)
        std = np.sqrt(square - mean**2)
        of_mean = chosen[..., 0] - mean
        of_std = (chosen[..., 1] - square - 2 * mean * of_mean) / (2 * std)
        return np.sqrt([np.square(of_mean / std).mean(), np.square(of_std / std).mean()])

    found = []
    for part, name in enumerate(("mean", "std")):
        for count in (1, N_IMAGES):
            found.append(
                bootstrapped(
                    f"error of the {name} from {count} image{'s' * (count > 1)}",
                    moments,
                    lambda chosen, part=part, count=count: float(error_of_one(chosen)[part] / np.sqrt(count)),
                )
            )
        found.append(
            bootstrapped(
                f"images for an error of the {name} of 1 %",
                moments,
                lambda chosen, part=part: float((error_of_one(chosen)[part] / 0.01) ** 2),
            )
        )
    return [*found, _measured_exponent(moments)]


def _measured_exponent(moments: Floats) -> Quantity:
    """The power of n by which the mean's error falls when n photographs are drawn anew, measured."""
    rng = np.random.default_rng(0)
    mean = moments[..., 0].mean(0)

    def slope(resampled: Floats) -> float:
        return float(np.polyfit(np.log(COUNTS), 0.5 * np.log(resampled.mean(0)), 1)[0])

    draws = np.array(
        [
            [
                np.square(moments[rng.integers(len(moments), size=n), :, 0].mean(0) - mean).mean()
                for n in COUNTS
            ]
            for _ in range(500)
        ]
    )
    return bootstrapped("power of n in the mean's error", draws, slope)
