"""N Fig. 1: latents under increasing noise, and their lowest frequencies, which survive σ = 14.6.

The latents of a 1024² px canvas, 128 a side, of variance 1 as a network sees them. Averages over 8 × 8 px stand for
those of SDXL's autoencoder, so that the figure needs no weights.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_key, keyed_normal, sample_id
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.diffusion.v_prediction import add_noise
from refimpl.errors import InputError
from refimpl.latents.pixels import from_pixels
from refimpl.report.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLOCKS = 8  # "lowest frequencies": the averages of 8 × 8 blocks
SHOWN = 1024  # pixels a side; the claim is about large canvases, small ones hide it (N §2.3)
CELL = 8  # pixels a side of a latent
LEAST_SIDE = 100  # pixels of a given image
LEVELS = (0.5, 3.0)  # noise levels on the way to the end of the published schedule


def example_image(side: int = SHOWN) -> Image.Image:
    """A drawn landscape, the default image: a red evening sky, a bright sun, dark hills."""
    y, x = np.mgrid[0:side, 0:side] / side
    sky = np.stack([0.95 - 0.45 * (1 - y), 0.25 + 0.35 * y, 0.45 - 0.3 * y], axis=-1)
    sun = ((x - 0.65) ** 2 + (y - 0.4) ** 2 < 0.15**2)[..., None]
    hills = (y > 0.72 + 0.06 * np.sin(7 * x) + 0.03 * np.sin(23 * x + 1))[..., None]
    pixels = np.where(hills, [0.08, 0.12, 0.2], np.where(sun, [1.0, 0.92, 0.6], sky))
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def low_frequencies(images: Tensor) -> Tensor:
    """Averages over BLOCKS × BLOCKS blocks: [3, H, W] → [3, BLOCKS, BLOCKS]."""
    return torch.nn.functional.adaptive_avg_pool2d(images, BLOCKS)


def latents(pixels: Tensor) -> Tensor:
    """Averages of 8 × 8 px with mean 0 and variance 1 in each channel (N App. B): [3, H, W] → [3, H/8, W/8].

    A channel without contrast stays at 0.
    """
    cells = torch.nn.functional.avg_pool2d(pixels, CELL)
    centred = cells - cells.mean((1, 2), keepdim=True)
    std = centred.std((1, 2), keepdim=True)
    return centred / torch.where(std > 0, std, 1.0)


def _noise_like(x0: Tensor) -> Tensor:
    """Keyed noise [3, H, W] float64, the same for every level of the figure."""
    key = draw_key(0, torch.tensor([sample_id("N fig. 1")]), 0, Purpose.NOISE)
    return keyed_normal(key, tuple(x0.shape))[0].double()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over all values."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))


def _show(axes: "Axes", x: Tensor, reach: float) -> None:
    """Draw values in [-reach, reach] as colours; values outside are clipped."""
    pixels = (x / reach / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels, interpolation="nearest", extent=(0, 1, 0, 1))
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _square(image: Image.Image) -> Tensor:
    """The image's central square, resized, as [3, SHOWN, SHOWN] float64 in [-1, 1]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.convert("RGB").crop((left, top, left + side, top + side)).resize((SHOWN, SHOWN))
    return from_pixels(torch.from_numpy(np.array(cut)).permute(2, 0, 1), torch.float64)


def noised_levels(plain: NoiseSchedule, zero_terminal: NoiseSchedule) -> list[tuple[float, Tensor, Tensor]]:
    """(sigma_edm, alpha [1], sigma [1]) of each column: the two LEVELS, the published end, the ZTSNR end."""
    on_the_way = plain.sigma_edm_to_t(torch.tensor(LEVELS)).round().long()
    columns = [(plain, t.view(1)) for t in on_the_way]
    columns += [(each, torch.tensor([each.timesteps - 1])) for each in (plain, zero_terminal)]
    return [(float(schedule.sigma_edm[t]), *schedule.at(t)) for schedule, t in columns]


@dataclass(frozen=True)
class NoisedLatents:
    """One column of the figure."""

    sigma: float
    """sigma_edm."""
    latents: Tensor
    """[3, 128, 128] x_t, in VP form."""
    low: Tensor
    """[3, BLOCKS, BLOCKS] their block averages, of rms 1 if the clean ones have variance 1."""
    correlation: float
    """Between the block averages and the clean ones."""


def noised_latents(
    image: Image.Image, plain: NoiseSchedule, zero_terminal: NoiseSchedule
) -> list[NoisedLatents]:
    """The columns of the figure, with one noise throughout.

    Raises InputError when the image is smaller than 100 pixels a side: small canvases hide the flaw.
    """
    if min(image.size) < LEAST_SIDE:
        raise InputError(
            f"the image is {image.width}×{image.height}; N Fig. 1 needs {LEAST_SIDE} pixels a side or more, "
            "as small canvases hide the flaw"
        )
    x0 = latents(_square(image))
    eps = _noise_like(x0)
    clean = low_frequencies(x0)
    one = torch.ones(1, dtype=torch.float64)
    block = SHOWN / CELL / BLOCKS  # averaging block² latents divides the noise's std by block
    columns = []
    for level, alpha, sigma in [(0.0, one, 0 * one), *noised_levels(plain, zero_terminal)]:
        x_t = add_noise(x0[None], eps[None], alpha, sigma)[0]
        low = low_frequencies(x_t) / torch.hypot(alpha, sigma / block)
        columns.append(NoisedLatents(level, x_t, low, correlation(low, clean)))
    return columns


@styled
def noised_image(image: Image.Image, plain: NoiseSchedule, zero_terminal: NoiseSchedule) -> "Figure":
    """N Fig. 1: latents noised to the last sigma of the published schedule and, beside it, to infinity.

    Upper row: the noised latents, as colours. Lower row: their block averages, and the correlation of these with
    those of the clean latents. Raises InputError as `noised_latents` does.
    """
    columns = noised_latents(image, plain, zero_terminal)
    figure, axes = new_figure(4.0, 2, len(columns))
    for number, column in enumerate(columns):
        upper, lower = axes[number], axes[len(columns) + number]
        _show(upper, column.latents, 2.0)
        _show(lower, column.low, 2.0)
        name = "σ = ∞" if math.isinf(column.sigma) else f"σ = {column.sigma:.1f}".removesuffix(".0")
        upper.set_title(name, loc="center")
        lower.set_xlabel(f"correlation {column.correlation:.2f}")
    axes[0].set_ylabel("noised latents")
    axes[len(columns)].set_ylabel("lowest frequencies")
    return figure
