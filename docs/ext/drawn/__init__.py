"""The figures of the pages, drawn at every build by the functions that the pages are about."""

from collections.abc import Callable

from matplotlib.figure import Figure

from docs.ext.drawn.images import buckets, figure_8, image_prompt, jpeg_measures, size_features, tag_weights
from docs.ext.drawn.measured import raised_starts, starts
from docs.ext.drawn.networks import attention_entropy, network_levels
from docs.ext.drawn.schedules import figure_1, figure_5, grids, loss_weights, scaling_curves, velocity
from docs.ext.drawn.steps import guided_samples, keyed_noise, refiner_levels
from refimpl.report.style import png_bytes

FIGURES: tuple[Callable[[], Figure], ...] = (
    figure_1, figure_5, figure_8, loss_weights, buckets, velocity, scaling_curves, grids, tag_weights, size_features,
    starts, raised_starts, guided_samples, keyed_noise, refiner_levels, network_levels, attention_entropy,
    jpeg_measures, image_prompt,
)  # fmt: skip
# By file name.
DRAWN: dict[str, Callable[[], bytes]] = {
    draw.__name__: lambda draw=draw: png_bytes(draw()) for draw in FIGURES
}
