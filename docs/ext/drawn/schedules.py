"""Figures of noise: schedules, loss weights, the preconditioner and grids (N §2, App. A)."""

import numpy as np
import torch
from matplotlib.figure import Figure

from refimpl.diffusion.min_snr import POLICIES, min_snr_weight
from refimpl.diffusion.preconditioner import scalings
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.report.figures import schedule_figure, weight_mass
from refimpl.report.noised_image import example_image, noised_image
from refimpl.report.style import BLUE, GREY, ORANGE, VERMILION, new_figure, styled
from refimpl.sample.grids import GRIDS, grid_by_name

STEPS = 28  # N §2.3
LATENT = (152, 104)  # height and width of the latents of 832×1216 px
FLOOR = 0.05  # of the policy `floor`, which has no value of its own


def figure_1() -> Figure:
    """N Fig. 1: noise of σ = 14.6 leaves the average colours of an image in sight."""
    plain = sdxl_schedule()
    return noised_image(example_image(), plain, zero_terminal_snr(plain))


def figure_5() -> Figure:
    """N Fig. 5: the schedule with and without zero terminal SNR."""
    plain = sdxl_schedule()
    return schedule_figure(plain, zero_terminal_snr(plain))


def loss_weights() -> Figure:
    """The share of the loss weight by timestep, for each policy."""
    snr = zero_terminal_snr(sdxl_schedule()).snr
    floors = {"floor": FLOOR}
    return weight_mass(
        {policy: min_snr_weight(snr, 5.0, policy, floors.get(policy, 0.0)) for policy in POLICIES}
    )


@styled
def velocity() -> Figure:
    """What v is made of at each timestep."""
    figure, (axes,) = new_figure(3.4)
    schedule = zero_terminal_snr(sdxl_schedule())
    axes.plot(schedule.alpha, color=BLUE, label="alpha, the share of eps in v")
    axes.plot(schedule.sigma, color=VERMILION, label="sigma, the share of −x0 in v")
    axes.set(xlabel="timestep t", ylabel="coefficient", title="From noise to image prediction")
    axes.legend(loc="center left")
    return figure


@styled
def scaling_curves() -> Figure:
    """The three scalings of the preconditioner against σ."""
    figure, (axes,) = new_figure(3.4)
    sigma = torch.logspace(-3, 5, 400, dtype=torch.float64)
    for values, name, colour in zip(
        scalings(sigma), ("c_skip", "c_out", "c_in"), (BLUE, VERMILION, ORANGE), strict=True
    ):
        axes.plot(sigma, values, color=colour, label=name)
    axes.set_xscale("log")
    axes.set(xlabel="noise level σ", title="The preconditioner, with σd = 1")
    axes.legend(loc="center right")
    return figure


@styled
def grids() -> Figure:
    """The finite levels of each grid that starts at ∞."""
    figure, (axes,) = new_figure(4.2)
    schedule = zero_terminal_snr(sdxl_schedule())
    for name in GRIDS:
        if name == "leading":  # refused: it skips ∞
            continue
        steps = 10 if name == "community_trainer" else STEPS
        sigmas = grid_by_name(name, schedule, steps, latent_size=LATENT)
        axes.plot(np.arange(1, steps) / steps, sigmas[1:-1], marker=".", linewidth=1, label=name)
    axes.axhline(14.6, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set(
        xlabel="share of the steps taken", ylabel="noise level σ", title="Levels after σ = ∞, at 832×1216"
    )
    axes.legend(ncols=2, loc="upper right")
    return figure
