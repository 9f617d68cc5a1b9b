"""Each channel's own scale and shift against the one factor 0.13025 (N App. B).

The channels of the pictures are given the means and deviations of N Fig. 8's first three. Multiplied by 0.13025 they
are off zero and of unequal spread, as SDXL's latents of illustrations are; scaled and shifted they have mean 0 and
deviation 1.

Predicted: colours are truer with each channel's own scale and shift (N App. B: a distribution nearer the noise's).
"""

from pathlib import Path

from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.model.pipeline import Model
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.learned import learned, lesson
from refimpl.paper.trained.small_measures import canvas, colour_error
from refimpl.paper.trained.small_training import SmallRun, pictured, trained_model

MEASURE = "scale and shift"

COLOUR = "colour error, factor 0.13025 less own scale and shift"
PREDICTED = (COLOUR,)


def of_seed(seed: int, folder: Path) -> Found:
    """The colour errors of one seed's networks and their difference."""
    run = SmallRun(seed=seed)
    own = trained_model(run, folder)
    settings = canvas(run.side, run.side, seed)
    errors = {
        "own scale and shift": colour_error(own, settings),
        "factor 0.13025": colour_error(by_one_factor(run, own.scale_shift, folder), settings),
    }
    found = {COLOUR: errors["factor 0.13025"] - errors["own scale and shift"]}
    return {MEASURE: found | {f"colour error, {name}": error for name, error in errors.items()}}


def by_one_factor(run: SmallRun, own: ScaleShift, folder: Path) -> Model:
    """The network of a run whose channels are multiplied by one factor.

    own  the pixels' own scale and shift
    """
    model, examples = pictured(run, one_factor(own))
    return learned(model, lesson(run, examples), folder)


def one_factor(own: ScaleShift) -> ScaleShift:
    """Pixels to 0.13025 · (μ + σ · their standardised values), with the channels' μ and σ of N Fig. 8.

    In one step: (z − m)/s with m = μ_z − σ_z·μ/σ and s = σ_z/(0.13025·σ).
    """
    pixels = list(zip(own.mean, own.std, strict=True))
    latents = list(zip(NOVELAI_ANIME.mean, NOVELAI_ANIME.std, strict=True))[: len(pixels)]
    factor = 1 / SDXL_DEFAULT.std[0]
    both = list(zip(pixels, latents, strict=True))
    means = tuple(mean_z - std_z * mean / std for (mean_z, std_z), (mean, std) in both)
    return ScaleShift(means, tuple(std_z / (factor * std) for (_, std_z), (_, std) in both))
