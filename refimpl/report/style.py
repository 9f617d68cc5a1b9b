"""The look of every figure: one style, colour-blind-safe colours, no global matplotlib state."""

import io
import re
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
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#6b6b6b",
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
    "svg.hashsalt": "refimpl",  # the same figure has the same names inside
}

# Each colour of a figure, and what stands in its place on a dark page.
ON_DARK = {
    BLUE: "#5db4ee", ORANGE: "#f2b84b", GREEN: "#3fc79c", VERMILION: "#f58a4e", PURPLE: "#e29cc9", GREY: "#a5aeb8",
    "#000000": "#e6e8ea", "#222222": "#e6e8ea", "#444444": "#c3c9d0", "#555555": "#a5aeb8", "#e4e4e4": "#363c44",
    "#ffffff": "#15181c",
}  # fmt: skip


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


def svg_bytes(figure: "Figure") -> bytes:
    """The figure as an SVG file whose colours follow the reader's: light, or those of ON_DARK.

    Its letters are outlines, so that it looks the same without the figure's font; it has no background of its own.
    The same figure always gives the same bytes.
    """
    buffer = io.StringIO()
    with matplotlib_module().rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", dpi=DPI / 2, transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawn = buffer.getvalue()
    # Outlines of letters have no colour of their own: they get that of ink.
    themed = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), drawn.partition("<svg")[2])
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in ON_DARK)
    dark = "".join(f"--c{colour[1:]}:{other};" for colour, other in ON_DARK.items())
    style = (
        f"<style>svg{{{light}fill:var(--c000000)}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    opening, _, rest = themed.partition(">")
    return f"<svg{opening}>{style}{rest}".encode()


def _variable(colour: str) -> str:
    return f"var(--c{colour[1:]})" if colour in ON_DARK else colour
