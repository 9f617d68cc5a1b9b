"""What the terminal step learns under two MinSNR policies (N §2.4).

N's weight for v, min(SNR, γ)/(SNR + 1), is 0 at t = 999, where all that the network can learn is the prompt's average
colour; min(SNR + 1, γ)/(SNR + 1) is 1 there. Measured is the slope of the average colour of the first estimate, from
pure noise, in the colour asked for: 1 is right, 0 is the mean of the data.

Predicted: the slope is the larger under `snr_plus_one`.
"""

from dataclasses import replace
from pathlib import Path

from refimpl.diffusion.config import DiffusionConfig
from refimpl.paper.trained.experiment import Found
from refimpl.paper.trained.small_measures import canvas, terminal_slope
from refimpl.paper.trained.small_training import SmallRun, trained_model

MEASURE = "MinSNR policies"
POLICIES = ("paper", "snr_plus_one")  # the second is the network of the figures

SLOPE = "slope of the prompted colour at t = 999, snr_plus_one less paper"
PREDICTED = (SLOPE,)


def run_of(policy: str, seed: int) -> SmallRun:
    """The training under a policy."""
    run = SmallRun(seed=seed)
    return replace(run, diffusion=DiffusionConfig(loss_weight=policy))


def of_seed(seed: int, folder: Path) -> Found:
    """The slopes of one seed's networks and their difference."""
    slopes = {}
    for policy in POLICIES:
        run = run_of(policy, seed)
        slopes[policy] = terminal_slope(trained_model(run, folder), canvas(run.side, run.side, seed))
    found = {SLOPE: slopes["snr_plus_one"] - slopes["paper"]}
    found |= {f"slope of the prompted colour at t = 999, {policy}": slope for policy, slope in slopes.items()}
    return {MEASURE: found}
