"""Loss weights by tags (N §4.3): what they do for concepts of rare tags.

Flat pictures of six colours, of which two are in 2 % of the pictures each, are learned with the weights of
`refimpl.data.tags` and with equal ones, for few steps.

Predicted: with the weights, rare colours are drawn truer (N §4.3). Of common colours, which weigh less, the report
says nothing; they are shown beside.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.model.pipeline import Model
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.learned import learned, lesson
from refimpl.paper.trained.pictures import colour_value, flat_caption
from refimpl.paper.trained.small_measures import canvas, colour_error
from refimpl.paper.trained.small_model import small_model
from refimpl.paper.trained.small_training import SmallRun, examples_of, measured

MEASURE = "tag weights"
STEPS = 250
SHARES = {"black": 0.36, "white": 0.3, "red": 0.2, "green": 0.1, "blue": 0.02, "yellow": 0.02}
RARE, COMMON = ("blue", "yellow"), ("black", "white")
COUNT = 800

ERROR = "colour error of rare tags, equal weights less tag weights"
PREDICTED = (ERROR,)


def of_seed(seed: int, folder: Path) -> Found:
    """The colour errors of one seed's networks, and the difference for rare tags."""
    colours = drawn_colours(COUNT, seed)
    found = {}
    models = {
        "equal weights": taught(colours, torch.ones(COUNT), seed, folder),
        "tag weights": taught(colours, weights_of(colours), seed, folder),
    }
    for name, model in models.items():
        side = SmallRun().side
        for kind, names in {"rare": RARE, "common": COMMON}.items():
            found[f"colour error of {kind} tags, {name}"] = colour_error(
                model, canvas(side, side, seed), names
            )
    difference = (
        found["colour error of rare tags, equal weights"] - found["colour error of rare tags, tag weights"]
    )
    return {MEASURE: {ERROR: difference} | found}


def drawn_colours(count: int, seed: int) -> list[str]:
    """The colour of each picture, in a random order; the number of each colour is the same for all seeds."""
    names = [name for name, share in SHARES.items() for _ in range(round(share * count))]
    return [names[place] for place in np.random.default_rng(seed).permutation(len(names))]


def weights_of(colours: list[str]) -> Tensor:
    """The loss weights of pictures with one tag each, [N] float32, of mean 1."""
    tags = [{"colour": [name]} for name in colours]
    return torch.from_numpy(dataset_weights(tags, count_tags(tags, TagCounts()))).float()


def taught(colours: list[str], weights: Tensor, seed: int, folder: Path) -> Model:
    """The network that learned flat pictures with these weights."""
    run = SmallRun(seed=seed, steps=STEPS)
    values = torch.stack([colour_value(name) for name in colours])
    images = values[:, :, None, None].repeat(1, 1, run.side, run.side)
    model = small_model(run.diffusion, measured(images), seed)
    examples = examples_of(model, images, [flat_caption(name) for name in colours])
    return learned(model, lesson(run, replace(examples, weights=weights)), folder)
