"""The first step from pure noise (N app. A.1, eq. 9, 18)."""

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks.exact import NATIVE_SECOND, rms, unit_noise
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number

SHAPE = (4, 4, 128, 128)


def equation_18(noise: torch.Tensor, v: torch.Tensor, sigma_next: float) -> torch.Tensor:
    """The state y = x0 + σ·n after the first step from ∞: x₁ = σ₁·n − F(n)."""
    return sigma_next * noise - v


def _error(peer: Guarded, dtype: torch.dtype) -> Measured:
    noise, v = (unit_noise(seed, *SHAPE).to(dtype) for seed in (0, 1))
    found = peer.first_step(noise, lambda x: v.to(x.dtype), NATIVE_SECOND)
    error = rms(found - equation_18(noise.double(), v.double(), NATIVE_SECOND))
    return Measured(error, f"rms {number(error)}")


@check(cites="N eq. 18", unit="rms", limit=1e-5)
def from_infinity(peer: Guarded) -> Measured:
    """x₁ = σ₁·n − F(n), for the first two levels of N's 28 steps, in float32."""
    return _error(peer, torch.float32)


@check(cites="N eq. 18; app. A.2 (float32)", unit="rms", limit=0.25)
def in_bfloat16(peer: Guarded) -> Measured:
    """The same for noise in bfloat16, within what rounding the result of size σ₁ = 56 costs."""
    return _error(peer, torch.bfloat16)


@check(cites="N eq. 17, 18: c_in·σ₀ → 1", unit="rms", limit=1e-6)
def network_sees_the_noise(peer: Guarded) -> float:
    """At the first step the network is given the unit-variance noise itself."""
    noise, seen = unit_noise(0, *SHAPE).float(), []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().clone())
        return torch.zeros_like(x)

    peer.first_step(noise, network, NATIVE_SECOND)
    return rms(seen[0].double() - noise.double()) if seen else float("nan")


@check(cites="N app. A.1, on multistep samplers", unit="calls", limit=0)
def one_call(peer: Guarded) -> float:
    """The first step asks the network once."""
    calls: list[int] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.zeros_like(x)

    peer.first_step(unit_noise(0, *SHAPE).float(), network, NATIVE_SECOND)
    return abs(len(calls) - 1.0)
