"""N Fig. 2, 3, 4, 6 and 7 on five more networks, none of which was seen when the measures were chosen.

Two measures, of Fig. 4 and 7, were chosen after a first one had the other sign on the first network. Here every
measure is taken as it stands on other seeds, and must come out as on the first five.
"""

from pathlib import Path

from refimpl.paper.trained import small_figures
from refimpl.paper.trained.experiment import SEEDS, Found

MEASURE = "figures, fresh networks"
FRESH = ", fresh networks"  # ends the names of the numbers

PREDICTED = tuple(name + FRESH for name in small_figures.PREDICTED)


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one network of a seed that the figures do not use."""
    figures = small_figures.of_seed(SEEDS + seed, folder).values()
    numbers = {name: value for each in figures for name, value in each.items()}
    return {MEASURE: {name + FRESH: numbers[name] for name in small_figures.PREDICTED}}
