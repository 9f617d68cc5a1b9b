"""Figures of single steps: keyed noise, guidance and the refiner (S §2.5; N §5)."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from refimpl.diffusion.offset_noise import SDXL_OFFSET
from refimpl.diffusion.philox import draw_key, keyed_normal
from refimpl.diffusion.philox_words import Purpose
from refimpl.diffusion.preconditioner import alpha_sigma
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.diffusion.v_prediction import v_from_x0
from refimpl.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled
from refimpl.sample.grids import native, start_at
from refimpl.sample.guidance import SCALE_RANGE, cfg, rescale
from refimpl.sample.images.refiner import finished_by_refiner
from refimpl.sample.samplers import euler
from refimpl.sample.stepping import PredictV, sdedit_start

STEPS = 28  # N §2.3
SIDES = (8, 16, 32, 64, 128)  # cells
IMAGES, CHANNELS = 64, 4
MODE, WIDTH = 1.0, 0.5  # places ±MODE of the two modes, and their standard deviation
AGREEMENT = 0.9  # correlation of the two predictions whose contrast is drawn
REFINER_LAST = 199  # S §2.5: the first 200 noise scales

Asked = list[tuple[str, float]]  # which network, base or refiner, and at which sigma_edm


@styled
def keyed_noise() -> Figure:
    """The distribution of keyed noise, and how far a channel's average is from 0 with and without an offset."""
    key = draw_key(0, torch.arange(IMAGES), 0, Purpose.NOISE)
    figure, panels = new_figure(3.4, 1, 2)
    values = keyed_normal(key, (CHANNELS, SIDES[2], SIDES[2])).flatten().numpy()
    x = np.linspace(-4, 4, 200)
    panels[0].hist(values, bins=80, range=(-4, 4), density=True, color=BLUE, label="drawn")
    panels[0].plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color=VERMILION, label="normal density")
    panels[0].set(xlabel="value", title=f"{len(values):,} draws")
    panels[0].legend(loc="upper left")
    for strength, colour in ((SDXL_OFFSET, VERMILION), (0.0, BLUE)):
        panels[1].plot(SIDES, [spread_of_averages(side, strength) for side in SIDES], "o", color=colour)
        formula = [(1 / side**2 + strength**2) ** 0.5 for side in SIDES]
        panels[1].plot(SIDES, formula, color=colour, label=f"offset {strength:g}")
    panels[1].set_xscale("log", base=2)
    panels[1].set_yscale("log")
    panels[1].set_xticks(SIDES, [str(side) for side in SIDES])
    panels[1].set(xlabel="side of the latents (cells)", title="Standard deviation of a channel's average")
    panels[1].legend(loc="lower left")
    return figure


def spread_of_averages(side: int, strength: float) -> float:
    """Standard deviation over images and channels of the average of noise on side² cells."""
    key = draw_key(0, torch.arange(IMAGES), 0, Purpose.NOISE)
    return float(keyed_normal(key, (CHANNELS, side, side), strength).mean((2, 3)).std())


@styled
def guided_samples() -> Figure:
    """Samples of one mode of two under guidance, and the contrast of guided predictions with and without rescale."""
    figure, panels = new_figure(3.4, 1, 2)
    noise = keyed_normal(draw_key(0, torch.arange(20_000), 0, Purpose.INIT_NOISE), (1, 1, 1)).double()
    sigmas = native(zero_terminal_snr(sdxl_schedule()), STEPS)
    for scale, colour in zip((1.0, *SCALE_RANGE, 7.5), (GREY, BLUE, GREEN, VERMILION), strict=True):
        drawn = euler(guided_mode(scale), noise, sigmas).flatten().numpy()
        panels[0].hist(drawn, bins=90, range=(-0.5, 4), density=True, histtype="step", color=colour, linewidth=1.5,
                       label=f"s = {scale:g}")  # fmt: skip
    panels[0].axvline(MODE, color=GREY, linewidth=0.8, linestyle="--")
    panels[0].set(xlabel="sample", ylabel="density", title="Samples move past the prompt's own mode")
    panels[0].legend()

    v_cond, other = keyed_normal(draw_key(1, torch.arange(2), 0, Purpose.NOISE), (CHANNELS, 64, 64)).double()[
        :, None
    ]
    v_uncond = AGREEMENT * v_cond + (1 - AGREEMENT**2) ** 0.5 * other
    scales = np.linspace(1, 10, 19)
    for factor, colour in ((0.0, VERMILION), (0.7, ORANGE), (1.0, BLUE)):
        guided = [rescale(cfg(v_cond, v_uncond, float(scale)), v_cond, factor) for scale in scales]
        contrast = [float(v.std() / v_cond.std()) for v in guided]
        panels[1].plot(scales, contrast, color=colour, label=f"φ = {factor:g}")
    panels[1].axvspan(SCALE_RANGE[0], SCALE_RANGE[1], color=GREY, alpha=0.15, linewidth=0)
    panels[1].set(xlabel="guidance scale s", title="Contrast: std of v over that of v_cond")
    panels[1].legend(loc="upper left")
    return figure


def guided_mode(scale: float) -> PredictV:
    """Exact predictions of one mode, guided away from the mixture of both, for data of one number."""

    def predict_v(x: Tensor, sigma_edm: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(sigma_edm)
        variance = (alpha * WIDTH) ** 2 + sigma**2
        own, other = (
            mode + alpha * WIDTH**2 / variance * (x - alpha * mode) for mode in (MODE, -MODE)
        )  # the mean of x0 given x, if it is of this mode
        chance = torch.sigmoid(2 * alpha * MODE * x / variance)  # that it is of the first
        both = chance * own + (1 - chance) * other
        return cfg(v_from_x0(x, own, alpha, sigma), v_from_x0(x, both, alpha, sigma), scale)

    return predict_v


@styled
def refiner_levels() -> Figure:
    """The noise levels at which base and refiner are asked, in both ways of refining."""
    figure, panels = new_figure(3.4, 1, 2, sharey=True)
    for axes, (title, asked) in zip(panels, asked_levels().items(), strict=True):
        for name, colour, marker in (("base", GREY, "o"), ("refiner", VERMILION, "s")):
            numbers = [number for number, (who, _) in enumerate(asked) if who == name]
            axes.plot(numbers, [asked[n][1] for n in numbers], marker, color=colour, markersize=4, label=name)
        axes.axhline(_refiner_level(), color=GREY, linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set(xlabel="evaluation", title=title)
    panels[0].set_ylabel("noise level σ")
    panels[0].legend(loc="upper right")
    return figure


def asked_levels() -> dict[str, Asked]:
    """The order of the evaluations in each mode."""
    grid, level = native(sdxl_schedule(), STEPS), _refiner_level()
    latents = noise = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    start = sdedit_start(latents, noise, float(grid[0]))
    again: Asked = []
    x0 = euler(_recorder("base", again), start, grid)
    euler(_recorder("refiner", again), sdedit_start(x0, noise, level), start_at(grid, level))
    last: Asked = []
    euler(finished_by_refiner(_recorder("base", last), _recorder("refiner", last), level), start, grid)
    return {"sdedit: noised and denoised again": again, "last: the last steps of the grid": last}


def _recorder(name: str, asked: Asked) -> PredictV:
    """A network that notes the levels it is asked at, and says 0."""

    def predict_v(x: Tensor, sigma_edm: Tensor) -> Tensor:
        asked.append((name, float(sigma_edm)))
        return torch.zeros_like(x)

    return predict_v


def _refiner_level() -> float:
    return float(sdxl_schedule().t_to_sigma_edm(REFINER_LAST))
