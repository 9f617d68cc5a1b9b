"""Samples from σ = ∞ have the data's distribution; samples from the published σ_max = 14.6 do not (N §2.2, App. A).

The data are canvases of one colour, c ~ N(1.0, 0.3²), as large as SDXL's latents of 1024 × 1024 pixels. Their perfect
denoiser is known in closed form, so the only error left is that of the first step: at σ = 14.6 the mean of so many
pixels still shows through the noise, a network knows it, and noise without it is taken for a canvas near 0.

python examples/sample_from_infinity.py
"""

import torch
from torch import Tensor

from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.sample.grids import exponential, native
from refimpl.sample.samplers import dpmpp_2m

MEAN, STD, SIDE, CANVASES = 1.0, 0.3, 128, 128


def predict_v(x: Tensor, sigma_edm: Tensor) -> Tensor:
    """The perfect network: E[v | x] at any noise level, ∞ included, where it is −E[x0].

    The average pixel of x = alpha·c + sigma·eps has the noise sigma / SIDE, and tells all that x knows of c.
    x  [B, 1, SIDE, SIDE]  variance-preserving        returns  [B, 1, SIDE, SIDE]
    """
    alpha, sigma = alpha_sigma(sigma_edm)
    signal, noise = (alpha * STD) ** 2, (sigma / SIDE) ** 2
    average = x.mean(dim=(1, 2, 3), keepdim=True)
    # E[c | average] of a normal c seen through normal noise
    x0 = (alpha * STD**2 * average + noise * MEAN) / (signal + noise)
    # v = (alpha·x − x0) / sigma
    return (alpha * x - x0) / sigma


def show(start: str, x: Tensor, sigmas: Tensor) -> None:
    """Samples from x, which has the noise level sigmas[0], and prints what colours come out."""
    colours = dpmpp_2m(predict_v, x, sigmas).mean(dim=(1, 2, 3))
    print(f"{start:<28} mean {colours.mean():6.3f}   std {colours.std():6.3f}")


def main() -> None:
    """Draws both sets of canvases from the same noise."""
    half = torch.randn(CANVASES // 2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([half, -half])  # every noise and its opposite: the mean is free of chance
    print(f"{'the data':<28} mean {MEAN:6.3f}   std {STD:6.3f}")

    zero_snr = zero_terminal_snr(sdxl_schedule())
    # N eq. 18: from ∞ to the first finite level, 2254.2, the step is exact
    show("from σ = ∞", noise, exponential(zero_snr, 24))

    published = native(sdxl_schedule(), 24)
    _, sigma = alpha_sigma(published[0])
    show(f"from σ_max = {published[0]:.1f}", sigma * noise, published)


if __name__ == "__main__":
    main()
