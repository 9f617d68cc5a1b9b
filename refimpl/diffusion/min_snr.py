"""Loss weight by timestep: MinSNR (N §2.4; Hang et al. 2023, §3.4), in units of the v-loss.

A weight multiplies a squared error in v. The same error expressed in eps or in x0 is smaller: at a fixed
x_t, eps error = alpha · v error and x0 error = sigma · v error. So one v-loss serves every convention, with
weight_eps = weight_v / alpha² and weight_x0 = weight_v / sigma².
"""

import math

import torch
from torch import Tensor

from refimpl.diffusion.config import POLICIES
from refimpl.errors import InputError


def min_snr_weight(
    snr: Tensor | float, gamma: float = 5.0, policy: str = "paper", floor: float = 0.0
) -> Tensor:
    """The weight of the v-loss at a signal-to-noise ratio.

    paper         min(SNR, γ) / (SNR + 1): 0 at SNR 0, so the terminal timestep of N §2.2 contributes no gradient
    floor         the same, but at least `floor`
    snr_plus_one  min(SNR + 1, γ) / (SNR + 1): 1 where SNR < γ − 1
    none          1

    snr      [...]  0 to inf, from the schedule used in training
    returns  [...]  float64 for float64 and for Python numbers, else float32; finite at 0, and at inf (where
                    it is 0, the floor under policy "floor", or 1 under "none")
    Raises InputError on an unknown policy, γ ≤ 0, a floor outside policy "floor" or below 0, and on an SNR
    that is negative or NaN.
    """
    _check_settings(gamma, policy, floor)
    if not isinstance(snr, Tensor):
        snr = torch.tensor(snr, dtype=torch.float64)
    snr = snr.to(torch.promote_types(snr.dtype, torch.float32))
    if not bool((snr >= 0).all()):
        raise InputError(f"SNR must be at least 0, got {snr[~(snr >= 0)].tolist()[:5]}")
    if policy == "none":
        return torch.ones_like(snr)
    if policy == "snr_plus_one":
        return (snr + 1).clamp(max=gamma) / (snr + 1)
    # N §2.4 for v: min(SNR, γ) / (SNR + 1)
    weight = snr.clamp(max=gamma) / (snr + 1)
    return weight.clamp(min=floor) if policy == "floor" else weight


def weight_mass(weights: Tensor, t_from: int) -> float:
    """The share of the total weight on timesteps t_from and later, when t is drawn uniformly.

    weights  [T]  one per timestep        returns  0 to 1
    Raises InputError when t_from is outside 0..T or the sum of the weights is not positive and finite.
    """
    if weights.ndim != 1 or not 0 <= t_from <= len(weights):
        raise InputError(f"t_from {t_from} must be in 0 to T, and weights [T]: got {list(weights.shape)}")
    total = float(weights.double().sum())
    if not (0 < total < math.inf):
        raise InputError(f"the weights sum to {total}, so no share of them is defined")
    return float(weights[t_from:].double().sum()) / total


def _check_settings(gamma: float, policy: str, floor: float) -> None:
    if policy not in POLICIES:
        raise InputError(f"unknown MinSNR policy {policy!r}: choose one of {', '.join(POLICIES)}")
    if not (0 < gamma < math.inf):
        raise InputError(f"MinSNR's gamma must be positive and finite, got {gamma}: N uses 5")
    if not (0 <= floor < math.inf):
        raise InputError(f"the floor of the loss weight must be finite and at least 0, got {floor}")
    if floor and policy != "floor":
        raise InputError(f"a floor of {floor} has no effect under policy {policy!r}: choose policy 'floor'")
