"""Figures of a run and of N (Fig. 5 and 8): one function each, from plain numbers to a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from refimpl.diffusion.min_snr import weight_mass as mass_from
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.report.style import BLUE, GREEN, GREY, ORANGE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]
Moments = tuple[Any, Any]  # mean[C] and std[C]: anything numpy reads, torch CPU tensors among it

N_MEAN_ASPECT_ERROR = 0.033  # of N's data set
S_SHORT_SHARE = 0.39  # of S's data set: images with an edge below 256 px (S Fig. 2)


def _numbers(name: str, values: Any, ndim: int = 1) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise InputError(f"{name} must have {ndim} dimension(s), got shape {list(array.shape)}")
    return array


@styled
def bucket_histogram(
    buckets: Sequence[tuple[int, int]], counts: Sequence[int], mean_aspect_error: float
) -> "Figure":
    """Number of images in each bucket, from the tallest to the widest (N §4.1.2).

    buckets  (width, height) in pixels        counts  images in each
    Raises InputError when the two differ in length or are empty.
    """
    if not buckets or len(buckets) != len(counts):
        raise InputError(f"{len(buckets)} buckets and {len(counts)} counts: give one count for each bucket")
    order = sorted(range(len(buckets)), key=lambda i: buckets[i][0] / buckets[i][1])
    labels = [f"{buckets[i][0]}×{buckets[i][1]}" for i in order]
    figure, (axes,) = new_figure(3.6)
    bars = axes.bar(np.arange(len(order)), [counts[i] for i in order], color=BLUE)
    axes.bar_label(bars, fontsize=8, color="#444444")
    axes.set_xticks(np.arange(len(order)), labels, rotation=60 if len(order) > 9 else 0)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="bucket, width × height (px)", ylabel="images")
    axes.set_title(f"Buckets in use; mean aspect error {mean_aspect_error:.3f} (N: {N_MEAN_ASPECT_ERROR})")
    return figure


def _finite(sigma_edm: Any) -> tuple[FloatArray, FloatArray]:
    sigma = _numbers("sigma_edm", sigma_edm)
    t = np.arange(len(sigma), dtype=np.float64)
    return t[np.isfinite(sigma)], sigma[np.isfinite(sigma)]


@styled
def schedule_figure(plain: NoiseSchedule, zero_terminal: NoiseSchedule) -> "Figure":
    """N Fig. 5: noise level against timestep, with and without zero terminal SNR."""
    figure, (axes,) = new_figure(4.2)
    for schedule, colour, label in (
        (plain, GREY, "as published (SDXL)"),
        (zero_terminal, BLUE, "zero terminal SNR"),
    ):
        axes.plot(*_finite(schedule.sigma_edm), color=colour, label=label)
    axes.set_yscale("log")
    axes.set_ylim(0.02, 2e4)
    axes.set(
        xlabel="timestep t", ylabel="noise level σ = sigma/alpha", title="Schedule with and without ZTSNR"
    )
    t, sigma = _finite(plain.sigma_edm)
    _note(axes, f"σ = {sigma[-1]:.1f} at t = {t[-1]:.0f}", (t[-1], sigma[-1]), (690, 1.2), GREY)
    t, sigma = _finite(zero_terminal.sigma_edm)
    _note(axes, f"σ = {sigma[-1]:.0f} at t = {t[-1]:.0f}", (t[-1], sigma[-1]), (690, 700), BLUE)
    if zero_terminal.is_zero_terminal:
        end = zero_terminal.timesteps - 1
        axes.plot([end], [1.0], marker="^", color=BLUE, clip_on=False, transform=axes.get_xaxis_transform())
        axes.text(end - 12, 0.985, f"σ = ∞ at t = {end}", color=BLUE, ha="right", va="top",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.legend(loc="upper left")
    return figure


def _note(axes: "Axes", text: str, point: tuple[float, float], at: tuple[float, float], colour: str) -> None:
    axes.annotate(
        text, point, at, color=colour, arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8}
    )


@styled
def latent_statistics(before: Moments, after: Moments, reference: Moments | None = None) -> "Figure":
    """N Fig. 8: mean and standard deviation of each latent channel, before and after standardising.

    before, after  (mean[C], std[C])        reference  another pair to compare with, such as N's
    Raises InputError when the tables differ in their number of channels.
    """
    series = [("encoded", before, ORANGE), ("standardised", after, BLUE)]
    if reference is not None:
        series.append(("N Fig. 8", reference, GREY))
    tables = [(label, _numbers(label, m), _numbers(label, s), colour) for label, (m, s), colour in series]
    channels = len(tables[0][1])
    for label, mean, std, _ in tables:
        if len(mean) != channels or len(std) != channels:
            raise InputError(
                f"{label} has {len(mean)} means and {len(std)} stds; expected {channels} of each"
            )
    figure, panels = new_figure(3.6, 1, 2)
    width = 0.8 / len(tables)
    for panel, axes in enumerate(panels):
        for number, (label, mean, std, colour) in enumerate(tables):
            x = np.arange(channels) + (number - (len(tables) - 1) / 2) * width
            bars = axes.bar(x, (mean, std)[panel], width, color=colour, label=label)
            axes.bar_label(bars, fmt="%.2f", fontsize=7, color="#444444", padding=1)
        ideal = (0.0, 1.0)[panel]
        axes.axhline(ideal, color="#222222", linewidth=0.8, linestyle="--")
        axes.set_xticks(np.arange(channels), [str(channel) for channel in range(channels)])
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.12)
        axes.set(
            xlabel="latent channel", title=("Mean μ (target 0)", "Standard deviation σ (target 1)")[panel]
        )
    panels[0].set_ylabel("latent value")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return figure


@styled
def latent_table(mean: Any, std: Any) -> "Figure":
    """The table of N Fig. 8: μ and σ of each latent channel, to four decimals."""
    values = [_numbers("mean", mean), _numbers("std", std)]
    figure, (axes,) = new_figure(1.4)
    axes.axis("off")
    table = axes.table(
        cellText=[[name, *(f"{value:.4f}" for value in row)] for name, row in zip("μσ", values, strict=True)],
        colLabels=["variable", *(str(channel) for channel in range(len(values[0])))],
        loc="center",
        cellLoc="center",
    )
    table.scale(1.0, 1.8)
    axes.set_title("Scale and shift of latent anime illustrations encoded by the SDXL VAE")
    return figure


@styled
def weight_mass(weights: Mapping[str, Any], per: int = 50) -> "Figure":
    """Share of the total loss weight that falls on each range of timesteps (N §2.4), one panel per policy.

    weights  policy → weight[T] of each timestep        per  timesteps per bar
    Raises InputError when no policy is given, or when a policy's weights do not sum to a positive finite number.
    """
    if not weights:
        raise InputError("no policy to draw: give the weights of at least one")
    rows = (len(weights) + 1) // 2
    figure, panels = new_figure(0.6 + 2.3 * rows, rows, 2, sharex=True, sharey=True)
    for axes, (name, values) in zip(panels, weights.items(), strict=False):
        weight = _numbers(name, values)
        if not 0 < weight.sum() < np.inf:
            raise InputError(
                f"the weights of policy {name!r} sum to {weight.sum()}; nothing would be learned"
            )
        share = 100 * weight / weight.sum()
        starts = np.arange(0, len(weight), per)
        late = [100 * mass_from(torch.from_numpy(weight), t) for t in (800, 950)]
        axes.bar(starts, np.add.reduceat(share, starts), per * 0.9, align="edge", color=GREEN)
        axes.set_title(f"{name}: {late[0]:.2g} % on t ≥ 800, {late[1]:.2g} % on t ≥ 950", fontsize=9)
        axes.grid(axis="x", visible=False)
    for axes in panels[len(weights) :]:
        axes.axis("off")
    figure.supxlabel(f"timestep t, {per} per bar", fontsize=10)
    figure.supylabel("share of total weight (%)", fontsize=10)
    return figure
