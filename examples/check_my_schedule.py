"""Compares another trainer's schedule, v-target and loss weights with ours; exits with 1 when they differ.

python examples/check_my_schedule.py                # what diffusers computes, by the formulas below
python examples/check_my_schedule.py mine.json      # or .pt, or .npy with alphas_cumprod alone

A file holds alphas_cumprod [T] and, if you have them, weights [T] of the v-loss (MinSNR, γ = 5) and target [B, ...]
with its x0, eps [B, ...] and t [B]. --published compares with the schedule that ends at σ = 14.6 instead.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from refimpl.diffusion import min_snr, schedule, v_prediction

TOLERANCE = 1e-5  # for values of order one: float32's cumulative product is within 3e-6 of float64's


def diffusers_by_formula() -> dict[str, torch.Tensor]:
    """DDPMScheduler with rescale_betas_zero_snr, its get_velocity, and the MinSNR of the training scripts."""
    root = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    t, (x0, eps) = torch.tensor([0, 500, 999]), torch.randn(2, 3, 4)
    target = root[t, None] * eps - (1 - root[t, None] ** 2).sqrt() * x0
    weights = (root**2 / (1 - root**2)).clamp(max=5) * (1 - root**2)
    return {"alphas_cumprod": root**2, "weights": weights, "target": target, "x0": x0, "eps": eps, "t": t}


def read(path: str) -> dict[str, torch.Tensor]:
    """The tables of a file by name."""
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a file")
    if path.endswith(".pt"):
        return torch.load(path, weights_only=True)
    found = {"alphas_cumprod": np.load(path)} if path.endswith(".npy") else json.loads(Path(path).read_text())
    return {name: torch.as_tensor(table) for name, table in found.items()}


parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
parser.add_argument("file", nargs="?", type=read, default=diffusers_by_formula())
parser.add_argument("--published", action="store_true")
options = parser.parse_args()
ours = schedule.sdxl_schedule() if options.published else schedule.zero_terminal_snr(schedule.sdxl_schedule())

abar = options.file["alphas_cumprod"].double()
if abar.shape != ours.alpha.shape:
    parser.error(f"alphas_cumprod has shape {list(abar.shape)}, not {list(ours.alpha.shape)}")
pairs = {"alpha": (abar.sqrt(), ours.alpha), "sigma": ((1 - abar).sqrt(), ours.sigma)}
if "weights" in options.file:
    pairs["weights"] = (options.file["weights"], min_snr.min_snr_weight(ours.snr))
if "target" in options.file:
    target, x0, eps, t = (options.file[name] for name in ("target", "x0", "eps", "t"))
    pairs["target"] = (target, v_prediction.v_target(x0, eps, *ours.at(t)))
differences = {name: float((theirs - expected).abs().max()) for name, (theirs, expected) in pairs.items()}
for name, value in differences.items():
    print(f"{name:<8} largest difference {value:.1e}   {'agrees' if value <= TOLERANCE else 'DIFFERS'}")
raise SystemExit(not all(difference <= TOLERANCE for difference in differences.values()))
