"""The timestep with which the network is conditioned (N app. A.1: "special-casing the noise level conditioning")."""

import math

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import LAST, exact_schedule, largest
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number


def _of(peer: Guarded, *levels: float) -> torch.Tensor:
    return peer.sigma_to_t(torch.tensor(levels, dtype=torch.float32))


@check(cites="N app. A.1, after eq. 18", unit="timesteps", limit=0)
def at_infinity(peer: Guarded) -> Measured:
    """Pure noise, σ = ∞, is timestep 999."""
    t = float(_of(peer, math.inf))
    return Measured(abs(t - LAST), f"t(∞) = {number(t)}")


@check(cites="the table of the schedule", unit="timesteps", limit=0.05)
def at_the_table(peer: Guarded) -> Measured:
    """Every finite level of the table is its timestep, to 0.05."""
    levels = exact_schedule(True).sigma_edm[:LAST]
    found = peer.sigma_to_t(levels.float())
    errors = (found - torch.arange(LAST)).abs()
    worst = int(errors.argmax())
    return Measured(largest(errors), f"t({number(float(levels[worst]))}) = {number(float(found[worst]))}")


@check(
    cites="a noisier image has a later timestep",
    unit="timesteps",
    limit=0,
    first=draws.any_finite_level,
    second=draws.any_finite_level,
)
def rises(peer: Guarded, first: float, second: float) -> float:
    """More noise never gives an earlier timestep."""
    low, high = _of(peer, *sorted((first, second))).tolist()
    return low - high


@check(cites="the network was trained on 0 … 999", unit="timesteps", limit=0, sigma=draws.any_finite_level)
def stays_inside(peer: Guarded, sigma: float) -> float:
    """No level gives a timestep outside 0 … 999."""
    t = _of(peer, sigma)
    return max(largest(t - LAST), largest(-t), 0.0)


@check(cites="not in N", unit="timesteps", kind="choice")
def beyond_the_last_finite(peer: Guarded) -> Measured:
    """The timestep of σ = 20000, which lies between the last finite level, 2254, and ∞."""
    t = float(_of(peer, 20000.0))
    return Measured(
        abs(t - 999 + float(exact_schedule(True).sigma_edm[998]) / 20000), f"t(20000) = {number(t)}"
    )


@check(cites="not in N", unit="timesteps", kind="choice")
def between_two_levels(peer: Guarded) -> Measured:
    """The timestep half-way in log σ between those of t = 500 and t = 501: 500.5 if interpolated."""
    level = float((exact_schedule(True).sigma_edm[500] * exact_schedule(True).sigma_edm[501]).sqrt())
    t = float(_of(peer, level))
    return Measured(abs(t - 500.5), f"{number(round(t, 3))}")
