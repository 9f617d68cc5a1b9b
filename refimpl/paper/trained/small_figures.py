"""N Fig. 2, 3, 4, 6 and 7 by five small networks, with each effect over the networks."""

from dataclasses import replace
from pathlib import Path

import torch

from refimpl.paper.computed.quantity import Quantity, bootstrapped
from refimpl.paper.effects import COHERENT_ON_THE_WAY, EXTREMES, FIRST_ESTIMATE_LOST, Effects
from refimpl.paper.experiments import SEEDS as SHOWN_SEEDS
from refimpl.paper.experiments import Experiment, effects_of, experiments_of
from refimpl.paper.trained.experiment import SEEDS, Found
from refimpl.paper.trained.small_training import SmallRun, trained_model
from refimpl.sample.config import SampleConfig

NETWORKS = "networks"  # folder of their weights
NETWORK_SEEDS = range(SEEDS)
PROMPTS = (
    "red circle, white background",
    "black square, yellow background",
    "white cross, blue background",
    *EXTREMES,
)
SETTINGS = SampleConfig(prompts=PROMPTS, seeds=SHOWN_SEEDS, guidance=1.0, width=16, height=16)
CANVAS = replace(
    SETTINGS, width=8, height=8, prompts=PROMPTS[::-1]
)  # C of Fig. 6 and 7, which draw 2C = 16 px

# The report gives the sign of every effect; `refimpl.paper.effects` names them.
PREDICTED = (
    "contrast of white and black, from ∞ less from 14.6",
    "brightness of black from 14.6 less from ∞",
    "share of the canvas mean lost from 14.6",
    FIRST_ESTIMATE_LOST,
    "share of shapes in one piece, from 2·14.6 less from 14.6",
    COHERENT_ON_THE_WAY,
)


def small_experiments(folder: Path) -> dict[int, Experiment]:
    """The experiments on the first network, with the effects of all: a value per network, the mean over its images.

    folder  where the weights are, or will be kept
    """
    shown = experiments_of(_network(0, folder), SETTINGS, CANVAS)
    effects = [{number: each.effects for number, each in shown.items()}]
    effects += [effects_of(_network(seed, folder), SETTINGS, CANVAS) for seed in NETWORK_SEEDS[1:]]
    found = {}
    for number, experiment in shown.items():
        over = _over_networks([each[number] for each in effects])
        found[number] = replace(experiment, title=_said(experiment.title, over), effects=over)
    return found


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one network as measures of the claims table, "figure 2" and so on: means over its images."""
    effects = effects_of(_network(seed, folder), SETTINGS, CANVAS)
    return {
        f"figure {number}": {name: float(values.mean()) for name, values in each.items()}
        for number, each in effects.items()
    }


def _network(seed: int, folder: Path):
    return trained_model(SmallRun(seed=seed), folder)


def _over_networks(each: list[Effects]) -> Effects:
    """Effects by network [seeds] as the means of each, [networks]."""
    return {name: torch.stack([effects[name].mean() for effects in each]) for name in each[0]}


def _mean(name: str, values: torch.Tensor) -> Quantity:
    return bootstrapped(name, values.double().numpy(), lambda x: float(x.mean()))


def _said(title: str, effects: Effects) -> str:
    """The title with the first effect and its interval."""
    name, values = next(iter(effects.items()))
    mean = _mean(name, values)
    return f"{title}\n{name}: {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}], {len(values)} networks"
