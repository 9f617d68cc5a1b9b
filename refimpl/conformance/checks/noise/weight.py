"""MinSNR's weight of the squared error in v (N §2.4; Hang et al. 2023, §3.4)."""

import torch
from torch import Tensor

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import FLOAT32, LAST, exact_schedule, largest
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number
from refimpl.diffusion.min_snr import weight_mass

HANG = "N §2.4; Hang et al. 2023, §3.4"
GAMMA = 5.0  # N §2.4 names MinSNR, Hang et al. its 5
MASS = {800: 0.3555647220107759, 950: 0.003373551544688472}  # % of all weight from a timestep on, at γ = 5
ALL = torch.arange(LAST + 1)


@check(cites=HANG, unit="weight", limit=2 * FLOAT32, gamma=draws.gammas)
def min_snr(peer: Guarded, gamma: float) -> Measured:
    """The weight in v is min(SNR, γ)/(SNR + 1), with the SNR of the rescaled schedule that is trained on."""
    snr = exact_schedule(True).snr
    errors = (peer.weight(ALL, gamma) - snr.clamp(max=gamma) / (snr + 1)).abs()
    return Measured(largest(errors), f"t = {int(errors.argmax())}")


def _mass(peer: Guarded, t_from: int) -> Measured:
    found = 100 * weight_mass(peer.weight(ALL, GAMMA), t_from)
    exact = MASS[t_from]
    return Measured(
        abs(found - exact), f"{found:.{3 if t_from < 900 else 4}f} % of all weight, not {exact:.4f} %"
    )


@check(cites=HANG, unit="% of all weight", limit=0.005)
def mass_from_800(peer: Guarded) -> Measured:
    """Timesteps 800 and later have 0.356 % of all weight at γ = 5."""
    return _mass(peer, 800)


@check(cites=HANG, unit="% of all weight", limit=0.0005)
def mass_from_950(peer: Guarded) -> Measured:
    """Timesteps 950 and later have 0.0034 % of all weight at γ = 5."""
    return _mass(peer, 950)


@check(cites="mathematics: a weight is a number", unit="timesteps", limit=0)
def finite(peer: Guarded) -> float:
    """The weight is finite and at least 0 at every timestep, zero SNR included."""
    weights: Tensor = peer.weight(ALL, GAMMA, finite=False)
    return float((~(torch.isfinite(weights) & (weights >= 0))).sum())


@check(cites="not in N, whose MinSNR gives 0", unit="weight", kind="choice")
def at_zero_snr(peer: Guarded) -> Measured:
    """What the pure-noise timestep weighs: by the formula 0, so that it trains nothing."""
    weight = float(peer.weight(torch.tensor([LAST]), GAMMA, finite=False))
    return Measured(abs(weight), f"{number(weight)}")
