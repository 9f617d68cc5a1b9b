"""The noised latent x_t = alpha·x0 + sigma·eps (Ho et al. 2020, eq. 4; N §2.2)."""

import math

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import LAST, LOW_PRECISION, coefficients, exact_schedule, largest
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number

SHAPE = (4, 3, 5)  # of a latent with odd sides


def latent(values: list[float], batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A latent [B, 4, 3, 5] that repeats these numbers."""
    count = batch * math.prod(SHAPE)
    repeated = torch.tensor(values, dtype=dtype).repeat(-(-count // len(values)))
    return repeated[:count].reshape(batch, *SHAPE)


def scale_of(*latents: list[float]) -> float:
    """The largest absolute value, at least 1: what rounding errors of a sum are measured in."""
    return max(1.0, *(abs(value) for values in latents for value in values))


@check(
    cites="Ho et al. 2020, eq. 4",
    unit="of the larger term",
    limit=2e-5,
    x0=draws.latents,
    eps=draws.latents,
    t=draws.several_timesteps,
)
def mixes(peer: Guarded, x0: list[float], eps: list[float], t: list[int]) -> float:
    """x_t is alpha·x0 + sigma·eps, each sample at its own timestep, in float32."""
    clean, noise = latent(x0, len(t)), latent(eps, len(t))
    found = peer.noised(clean, noise, torch.tensor(t))
    alpha, sigma = coefficients(t)
    return largest((found - alpha * clean - sigma * noise).abs()) / scale_of(x0, eps)


@check(
    cites="N §2.2; Lin et al. 2023, §3.2",
    unit="of the latent",
    limit=0,
    x0=draws.latents,
    eps=draws.latents,
    dtype=draws.dtypes,
)
def pure_noise(peer: Guarded, x0: list[float], eps: list[float], dtype: str) -> float:
    """At t = 999 the network sees the noise itself: x_t equals eps, whatever the image, in any precision."""
    clean, noise = (latent(values, 1, getattr(torch, dtype)) for values in (x0, eps))
    found = peer.noised(clean, noise, torch.tensor([LAST]))
    return largest((found - noise).abs()) / scale_of(x0, eps)


@check(cites="N §2.2 (the schedule's low end)", unit="of the true sigma", limit=LOW_PRECISION)
def low_noise_in_bfloat16(peer: Guarded) -> Measured:
    """Latents in bfloat16 get the noise of t = 0, 1 and 5: sigma is not rounded away with abar."""
    t = torch.tensor([0, 1, 5])
    zeros, ones = torch.zeros(3, 4, 2, 2, dtype=torch.bfloat16), torch.ones(3, 4, 2, 2, dtype=torch.bfloat16)
    share = peer.noised(zeros, ones, t).mean((1, 2, 3)) / exact_schedule(True).at(t)[1]
    shown = ", ".join(number(round(value, 3)) for value in share.tolist())
    return Measured(largest((share - 1).abs()), f"{shown} of the true sigma at t = 0, 1, 5")


@check(
    cites="Ho et al. 2020, eq. 4",
    unit="of the larger term",
    limit=LOW_PRECISION,
    dtype=draws.dtypes,
    t=draws.timesteps,
)
def keeps_dtype(peer: Guarded, dtype: str, t: int) -> float:
    """x_t has the latents' dtype and is right to its precision, in float32, bfloat16 and float16."""
    kind = getattr(torch, dtype)
    clean, noise = latent([1.0, -1.0], 1, kind), latent([-1.0, 1.0], 1, kind)
    found = peer.noised(clean, noise, torch.tensor([t]))
    alpha, sigma = (float(part) for part in exact_schedule(True).at(t))
    return largest((found - alpha * clean - sigma * noise).abs())


@check(
    cites="one sample's noise level is its own",
    unit="elements",
    limit=0,
    t=draws.several_timesteps,
    x0=draws.latents,
)
def batch_independent(peer: Guarded, t: list[int], x0: list[float]) -> float:
    """A sample is noised to the same bits in any batch."""
    clean, noise = latent(x0, len(t)), latent([1.0, -1.0], len(t))
    together = peer.noised(clean, noise, torch.tensor(t))
    alone = [
        peer.noised(clean[i : i + 1], noise[i : i + 1], torch.tensor(t[i : i + 1])) for i in range(len(t))
    ]
    return float((together != torch.cat(alone)).sum())
