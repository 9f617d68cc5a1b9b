"""N Fig. 2, 3, 4, 6 and 7 as what the package keeps of them: their effects on five small networks, with intervals."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from refimpl.paper.computed.quantity import Quantity
from refimpl.paper.results_file import TRAINED, read_results
from refimpl.paper.trained.small_figures import PREDICTED
from refimpl.report.style import BLUE, GREY, new_figure, styled

LETTERS = 38  # in a line of a name


def starts() -> Figure:
    """N Fig. 2, 3 and 4: what a start at a finite level costs."""
    return _effects((2, 3, 4), "What a start at a finite level loses")


def raised_starts() -> Figure:
    """N Fig. 6 and 7: what twice the level brings on a canvas of twice the side."""
    return _effects((6, 7), "What twice the first level brings on a canvas of twice the side")


def kept_effects(numbers: Sequence[int]) -> list[tuple[int, Quantity]]:
    """The effects that the package keeps and the report gives the sign of: (number of N's figure, effect)."""
    kept = read_results(TRAINED)
    return [
        (number, effect)
        for number in numbers
        for effect in kept[f"figure {number}"]
        if effect.name in PREDICTED
    ]


@styled
def _effects(numbers: Sequence[int], title: str) -> Figure:
    effects = kept_effects(numbers)
    figure, (axes,) = new_figure(1.3 + 0.55 * len(effects))
    places = range(len(effects))
    for place, (_, effect) in zip(places, effects, strict=True):
        axes.plot([effect.low, effect.high], [place, place], color=BLUE, linewidth=2)
        axes.plot([effect.value], [place], "o", color=BLUE)
        axes.annotate(f"{effect.value:.3f}", (effect.value, place), (0, 7), textcoords="offset points",
                      ha="center", fontsize=8, color="#444444")  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    names = [f"Fig. {number}: {effect.name}" for number, effect in effects]
    axes.set_yticks(places, ["\n".join(textwrap.wrap(name, LETTERS)) for name in names], fontsize=9)
    axes.set_ylim(len(effects) - 0.5, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(
        xlabel="mean over five small networks, with its 95 % interval; the report predicts above 0",
        title=title,
    )
    return figure
