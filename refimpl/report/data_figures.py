"""Figures of a data set: its sizes (S Fig. 2), its aspect errors (N §4.1.3) and its loss weights (N §4.3)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.report.figures import N_MEAN_ASPECT_ERROR
from refimpl.report.style import BLUE, GREEN, VERMILION, matplotlib_module, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR_BINS = 40


@styled
def size_density(density: Any, bin_pixels: int, buckets: Sequence[tuple[int, int]]) -> "Figure":
    """S Fig. 2: number of images by height and width, with the buckets marked.

    density  [bins, bins]  images by height (rows) and width, in bins of `bin_pixels`; the last bin has all beyond it
    buckets  (width, height) in pixels
    """
    counts = np.asarray(density, np.float64)
    used = np.flatnonzero(counts.sum(0) + counts.sum(1))
    last = min(len(counts), int(used[-1]) + 2 if len(used) else 1)
    reach = max([last * bin_pixels, *(1.05 * side for bucket in buckets for side in bucket)])
    figure, (axes,) = new_figure(6.4)
    colours = matplotlib_module().colors.LogNorm(1, max(2.0, counts.max()))
    shown = np.where(counts[:last, :last] > 0, counts[:last, :last], np.nan)
    edges = np.arange(last + 1) * bin_pixels
    mesh = axes.pcolormesh(edges, edges, shown, norm=colours, cmap="viridis", rasterized=True)
    figure.colorbar(mesh, ax=axes, label=f"images in {bin_pixels} × {bin_pixels} px")
    widths, heights = zip(*buckets, strict=True)
    axes.plot(widths, heights, "s", color=VERMILION, markersize=3, label="buckets")
    axes.set(xlabel="width (px)", ylabel="height (px)", xlim=(0, reach), ylim=(0, reach), aspect="equal")
    axes.legend(loc="upper right")
    return figure


@styled
def aspect_errors(errors: Any, mean: float) -> "Figure":
    """Histogram of the images' aspect errors, |bucket aspect − image aspect| as in N §4.1.3."""
    values = np.asarray(errors, np.float64)
    figure, (axes,) = new_figure(3.2)
    most = float(np.percentile(values, 99)) if values.size else 0.0
    axes.hist(values.clip(0, most), bins=ERROR_BINS, range=(0, most or 1.0), color=BLUE)
    axes.axvline(mean, color=VERMILION, label=f"mean {mean:.3f} (N: {N_MEAN_ASPECT_ERROR})")
    axes.set(xlabel="aspect error; the last bar holds all beyond the 99th percentile", ylabel="images")
    axes.legend(loc="upper right")
    return figure


@styled
def weight_histogram(edges: Sequence[float], images: Sequence[int]) -> "Figure":
    """Histogram of the images' loss weights (N §4.3), with bins of equal width on a log scale."""
    figure, (axes,) = new_figure(3.2)
    axes.bar(edges[:-1], images, np.diff(edges), align="edge", color=GREEN, edgecolor="white")
    axes.set_xscale("log")
    axes.axvline(1.0, color="#222222", linewidth=0.8, linestyle="--")
    axes.set(xlabel="loss weight; mean 1", ylabel="images")
    return figure
