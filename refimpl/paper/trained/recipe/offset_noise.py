"""Offset noise on the plain schedule (S §2.5; Guttenberg 2023).

A network that has seen the average of its noise vary trusts the average of its input less, so that from the plain
schedule's last level it draws black and white farther apart. The strength is S's 0.05, scaled to the canvas as the
levels are: the noise of a canvas' average falls with its side, so at 32 px the strength is 0.05 · 128/32 = 0.2.

Predicted: the contrast of white and black is the larger with offset noise.
"""

from dataclasses import replace
from pathlib import Path

from refimpl.diffusion.config import DiffusionConfig
from refimpl.paper.denoising import PAPER_LATENT_SIDE
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.recipe.factorial import CELLS, SIDE, run_of
from refimpl.paper.trained.small_measures import brightness, canvas
from refimpl.paper.trained.small_training import trained_model

MEASURE = "offset noise"
PUBLISHED_STRENGTH = 0.05  # S §2.5, for a latent side of 128
WITHOUT = CELLS["v, plain"]  # the network of the factorial

CONTRAST = "contrast of white and black, with offset noise less without"
PREDICTED = (CONTRAST,)


def with_offset() -> DiffusionConfig:
    """The settings with offset noise."""
    return replace(WITHOUT, offset_noise=PUBLISHED_STRENGTH * PAPER_LATENT_SIDE / SIDE)


def of_seed(seed: int, folder: Path) -> Found:
    """The contrasts of one seed's networks and their difference."""
    contrasts = {}
    for name, diffusion in {"without": WITHOUT, "with": with_offset()}.items():
        black, white = brightness(trained_model(run_of(diffusion, seed), folder), canvas(SIDE, SIDE, seed))
        contrasts[name] = white - black
    found = {CONTRAST: contrasts["with"] - contrasts["without"]}
    found |= {f"contrast {name} offset noise": contrast for name, contrast in contrasts.items()}
    return {MEASURE: found}
