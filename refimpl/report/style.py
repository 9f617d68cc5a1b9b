"""The look of every figure: one style, colour-blind-safe colours, no global matplotlib state."""

import io
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from refimpl.errors import InputError
from refimpl.packages import install_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe & Ito 2008: distinguishable with every common form of colour vision, and in greyscale.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#767676",
)  # fmt: skip
WIDTH = 9.0  # inches; at DPI it is 1,800 px, twice the width of the page for dense screens
DPI = 200

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def matplotlib_module() -> Any:
    """matplotlib, imported when the first figure is drawn. Raises InputError when it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            f"matplotlib is not installed; figures need it. Run: {install_line('matplotlib')}"
        ) from None
    return matplotlib


def styled(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Run a drawing function under STYLE without changing the caller's matplotlib settings."""

    @wraps(draw)
    def under_style(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        with matplotlib_module().rc_context(STYLE):
            return draw(*args, **kwargs)

    return under_style


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple["Figure", list["Axes"]]:
    """An empty figure as wide as the page, and its axes, row by row; height in inches.

    Figure objects are created directly, never through pyplot, which needs a window system and global state.
    """
    matplotlib_module()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, list(axes.flat)


def png_bytes(figure: "Figure") -> bytes:
    """The figure as the bytes of a PNG file; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib_module().rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
