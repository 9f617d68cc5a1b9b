"""An eps network that goes on as v with zero terminal SNR (N §2.1, §4).

Its weights are those of the factorial's eps cell. Coherent is a network whose held-out v-loss is within half again of
that of the factorial's v network on the rescaled schedule, which has learned it from the start.

Predicted: read as v, the eps network is far off at first (N §4: noise); it becomes coherent in fewer steps than
initial weights do. A network that never does within the steps trained counts as if it did at the last of them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.learned import learned_on_the_way, lesson
from refimpl.paper.trained.recipe.factorial import CELLS, SIDE, cell, run_of
from refimpl.paper.trained.small_measures import held_out, held_out_loss
from refimpl.paper.trained.small_training import frozen, pictured

MEASURE = "adaptation"
MILESTONES = (10, 20, 40, 80, 160)  # optimizer steps, after the last of which training is left off
COHERENT = 1.5  # times the held-out loss of the network that learned v from the start

AT_FIRST = "log₂ of the held-out v-loss, eps network before any step less v network"
SAVED = "log₂ of the steps until coherent, from initial weights less from the eps network"
PREDICTED = (AT_FIRST, SAVED)


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one seed's networks, and the losses on the way."""
    right = cell("v, rescaled", seed, folder)
    unseen = held_out(right, SIDE, seed)
    goal = held_out_loss(right, unseen)
    taught = cell("eps, plain", seed, folder).unet.state_dict()
    run = run_of(CELLS["v, rescaled"], seed)
    curves: dict[str, dict[int, float]] = {}
    for name in ("initial weights", "the eps network"):
        model, examples = pictured(run)
        if name == "the eps network":
            model.unet.load_state_dict(taught)
        first = {0: {key: value.clone() for key, value in model.unet.state_dict().items()}}
        whole = lesson(run, examples)
        taught_so_far = replace(whole, order=whole.order[: MILESTONES[-1]])
        weights = first | learned_on_the_way(model, taught_so_far, MILESTONES, folder)
        curves[name] = {step: held_out_loss(frozen(model, each), unseen) for step, each in weights.items()}
    steps = {name: steps_until(curve, COHERENT * goal) for name, curve in curves.items()}
    found = {
        AT_FIRST: math.log2(curves["the eps network"][0] / goal),
        SAVED: math.log2(steps["initial weights"] / steps["the eps network"]),
    }
    found |= {f"steps until coherent, from {name}": count for name, count in steps.items()}
    for name, curve in curves.items():
        found |= {f"held-out v-loss after {step} steps from {name}": loss for step, loss in curve.items()}
    return {MEASURE: found}


def steps_until(losses: Mapping[int, float], goal: float) -> float:
    """The steps after which a loss first reaches the goal, log-linear between milestones; the last, if it never does.

    losses  by steps, ascending from 0. At least 1 step, so that the logarithm of the result is finite
    """
    before = None
    for step, loss in losses.items():
        if loss <= goal:
            if before is None:
                return 1.0
            earlier, higher = before
            way = math.log(higher / goal) / math.log(higher / loss)
            return max(1.0, earlier + way * (step - earlier))
        before = step, loss
    return float(max(losses))
