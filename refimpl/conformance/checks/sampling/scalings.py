"""The preconditioner for v-prediction (N app. A.1, eq. 10–14)."""

import math
from decimal import Decimal, localcontext

import torch
from hypothesis import strategies as st

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import FLOAT32, largest
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number


def printed_scalings(sigma: float, sigma_data: float = 1.0) -> tuple[float, float, float]:
    """N eq. 10–12 as printed, to 60 digits and with an exponent range that cannot overflow; at ∞ eq. 13 and 14."""
    if math.isinf(sigma):
        return 0.0, -sigma_data, 0.0
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**6, -(10**6)
        s, d = Decimal(sigma), Decimal(sigma_data)
        norm = (s * s + d * d).sqrt()
        return float(d * d / (s * s + d * d)), float(-s * d / norm), float(1 / norm)


def _compared(peer: Guarded, sigma: float) -> Measured:
    level = torch.tensor([sigma], dtype=torch.float32)
    found = [float(part) for part in peer.scalings(level)]
    exact = printed_scalings(float(level))
    errors = torch.tensor([abs(f - e) for f, e in zip(found, exact, strict=True)], dtype=torch.float64)
    names = ("c_skip", "c_out", "c_in")
    shown = ", ".join(f"{name} {number(value)}" for name, value in zip(names, found, strict=True))
    return Measured(largest(errors), shown)


@check(cites="N eq. 10–12", unit="scaling", limit=FLOAT32, sigma=draws.finite_levels)
def finite_levels(peer: Guarded, sigma: float) -> Measured:
    """c_skip = 1/(σ² + 1), c_out = −σ/√(σ² + 1) and c_in = 1/√(σ² + 1) at levels up to 10,000."""
    return _compared(peer, sigma)


@check(cites="N eq. 10–12 at σ = 0", unit="scaling", limit=0)
def without_noise(peer: Guarded) -> Measured:
    """Without noise they are exactly (1, 0, 1)."""
    return _compared(peer, 0.0)


@check(cites="N eq. 13, 14", unit="scaling", limit=0)
def at_infinity(peer: Guarded) -> Measured:
    """At σ = ∞ they are exactly (0, −1, 0)."""
    return _compared(peer, math.inf)


@check(cites="N eq. 10–12", unit="scaling", limit=FLOAT32, power=st.integers(5, 37))
def huge_levels(peer: Guarded, power: int) -> Measured:
    """They are right at any level that float32 holds, whose square it may not hold."""
    return _compared(peer, float(10**power))
