"""The table of the schedule (S §2.5; N §2.2; Lin et al. 2023, alg. 1)."""

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks.exact import (
    FLOAT32_TABLE,
    LAST,
    exact_schedule,
    largest,
    ratio_error,
    sigma_edm_of,
)
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number

ALG_1 = "N §2.2; Lin et al. 2023, alg. 1"
PUBLISHED_LAST, RESCALED_LAST_FINITE = 14.614641229333639, 2254.2379783369956  # sigma_edm in float64


@check(cites="S §2.5", unit="abar", limit=FLOAT32_TABLE)
def published_table(peer: Guarded) -> float:
    """The published schedule's betas are evenly spaced in their square roots, from 0.00085 to 0.012."""
    return largest((peer.schedule(False) - exact_schedule(False).alpha ** 2).abs())


@check(cites="S §2.5; N §2.2", unit="relative", limit=1e-4)
def published_end(peer: Guarded) -> Measured:
    """The published schedule ends at sigma_edm 14.6."""
    last = sigma_edm_of(peer.schedule(False))[LAST:]
    return Measured(
        ratio_error(last, torch.full_like(last, PUBLISHED_LAST)), f"sigma_edm {number(float(last))}"
    )


@check(cites=ALG_1, unit="relative", limit=FLOAT32_TABLE)
def zero_snr_table(peer: Guarded) -> float:
    """The rescaled table's finite noise levels are those of √abar shifted and scaled, to float32's rounding."""
    return ratio_error(sigma_edm_of(peer.schedule(True))[:LAST], exact_schedule(True).sigma_edm[:LAST])


@check(cites=ALG_1, unit="abar", limit=0)
def zero_snr_end(peer: Guarded) -> Measured:
    """The rescaled schedule ends in exactly zero SNR: abar is 0 at t = 999."""
    abar = peer.schedule(True)[LAST:]
    return Measured(
        float(abar.abs()), f"abar {number(float(abar))}, sigma_edm {float(sigma_edm_of(abar)):.8g}"
    )


@check(cites=ALG_1, unit="relative", limit=FLOAT32_TABLE)
def zero_snr_first(peer: Guarded) -> float:
    """The rescale leaves abar at t = 0 as it was."""
    return ratio_error(peer.schedule(True)[:1], peer.schedule(False)[:1])


@check(cites=ALG_1, unit="relative", limit=0.01)
def zero_snr_last_finite(peer: Guarded) -> Measured:
    """The noise level before pure noise is 2254 (sigma_edm at t = 998), to one per cent."""
    level = sigma_edm_of(peer.schedule(True))[LAST - 1 : LAST]
    return Measured(ratio_error(level, torch.full_like(level, RESCALED_LAST_FINITE)), f"{float(level):.6g}")


@check(cites="Ho et al. 2020, eq. 4", unit="timesteps", limit=0)
def decreasing(peer: Guarded) -> float:
    """abar decreases strictly, in both tables."""
    tables = (peer.schedule(False), peer.schedule(True))
    return float(sum(int((abar[1:] >= abar[:-1]).sum()) for abar in tables))
