"""v and eps on the plain and the rescaled schedule (N §2.1, §2.2).

Three of the four cells exist: eps on a schedule that ends in zero SNR is refused, since there the noise to predict is
the input itself. Each cell has the loss weight `none`, the plain squared error of its own output.

Predicted: v has the lower held-out error and the truer colours on the same schedule (N §2.1: stable, keeps colours,
converges faster); on the rescaled schedule, black is darker and differs more from white (N §2.2: without pure noise,
every picture gets a medium brightness). At 32 px, σ = 14.6 hides as much as 58 would at 1024², so that the schedules
differ less than they do there.
"""

import math
from pathlib import Path

from refimpl.diffusion.config import DiffusionConfig
from refimpl.model.pipeline import Model
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.small_measures import brightness, canvas, colour_error, held_out, held_out_loss
from refimpl.paper.trained.small_training import SmallRun, trained_model

MEASURE = "factorial"
CELLS = {
    "eps, plain": DiffusionConfig(parameterisation="eps", zero_terminal_snr=False, loss_weight="none"),
    "v, plain": DiffusionConfig(parameterisation="v", zero_terminal_snr=False, loss_weight="none"),
    "v, rescaled": DiffusionConfig(parameterisation="v", zero_terminal_snr=True, loss_weight="none"),
}
SIDE, BATCH, STEPS = 32, 8, 500

LOSS = "log₂ of the held-out v-loss on the plain schedule, eps less v"
COLOUR = "colour error on the plain schedule, eps less v"
CONTRAST = "contrast of white and black with v, rescaled schedule less plain"
BLACK = "brightness of black with v, plain schedule less rescaled"
PREDICTED = (LOSS, COLOUR, CONTRAST, BLACK)


def cell(name: str, seed: int, folder: Path) -> Model:
    """The trained network of a cell."""
    return trained_model(run_of(CELLS[name], seed), folder)


def run_of(diffusion: DiffusionConfig, seed: int) -> SmallRun:
    """The training that all cells share."""
    return SmallRun(diffusion=diffusion, seed=seed, side=SIDE, steps=STEPS, batch=BATCH)


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one seed's networks, and the numbers that they are the differences of."""
    models = {name: cell(name, seed, folder) for name in CELLS}
    settings = canvas(SIDE, SIDE, seed)
    losses = {
        name: held_out_loss(model, held_out(model, SIDE, seed))
        for name, model in models.items()
        if name.endswith("plain")
    }
    colours = {name: colour_error(model, settings) for name, model in models.items()}
    extremes = {name: brightness(model, settings) for name, model in models.items()}
    contrasts = {name: white - black for name, (black, white) in extremes.items()}
    found = {
        LOSS: math.log2(losses["eps, plain"] / losses["v, plain"]),
        COLOUR: colours["eps, plain"] - colours["v, plain"],
        CONTRAST: contrasts["v, rescaled"] - contrasts["v, plain"],
        BLACK: extremes["v, plain"][0] - extremes["v, rescaled"][0],
    }
    found |= {f"held-out v-loss, {name}": loss for name, loss in losses.items()}
    found |= {f"colour error, {name}": error for name, error in colours.items()}
    found |= {f"contrast, {name}": contrast for name, contrast in contrasts.items()}
    return {MEASURE: found}
