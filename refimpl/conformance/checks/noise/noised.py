"""The noised latent x_t = alpha·x0 + sigma·eps (Ho et al. 2020, eq. 4; N §2.2)."""

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import LAST, LOW_PRECISION, exact_schedule, largest
from refimpl.conformance.guarded import Guarded
from refimpl.conformance.returned import number


def filled(value: float, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A latent [B, 4, 2, 2] of one number, one element of which is its negative."""
    latent = torch.full((batch, 4, 2, 2), value, dtype=dtype)
    latent[:, 0, 0, 0] *= -1
    return latent


@check(
    cites="Ho et al. 2020, eq. 4",
    unit="of the larger term",
    limit=2e-5,
    x0=draws.values,
    eps=draws.values,
    t=draws.several_timesteps,
)
def mixes(peer: Guarded, x0: float, eps: float, t: list[int]) -> float:
    """x_t is alpha·x0 + sigma·eps, each sample at its own timestep, in float32."""
    clean, noise = filled(x0, len(t)), filled(eps, len(t))
    found = peer.noised(clean, noise, torch.tensor(t))
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in exact_schedule(True).at(torch.tensor(t)))
    return largest((found - alpha * clean - sigma * noise).abs()) / max(abs(x0), abs(eps), 1)


@check(
    cites="N §2.2; Lin et al. 2023, §3.2", unit="of the latent", limit=0, x0=draws.values, eps=draws.values
)
def pure_noise(peer: Guarded, x0: float, eps: float) -> float:
    """At t = 999 the network sees the noise itself: x_t equals eps, whatever the image."""
    found = peer.noised(filled(x0, 1), filled(eps, 1), torch.tensor([LAST]))
    return largest((found - filled(eps, 1)).abs()) / max(abs(x0), abs(eps), 1)


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
    found = peer.noised(filled(1.0, 1, kind), filled(-1.0, 1, kind), torch.tensor([t]))
    alpha, sigma = (float(part) for part in exact_schedule(True).at(t))
    return largest((found - (alpha - sigma) * filled(1.0, 1)).abs())


@check(
    cites="one sample's noise level is its own",
    unit="elements",
    limit=0,
    t=draws.several_timesteps,
    x0=draws.values,
)
def batch_independent(peer: Guarded, t: list[int], x0: float) -> float:
    """A sample is noised to the same bits in any batch."""
    clean, noise = filled(x0, len(t)), filled(1.0, len(t))
    together = peer.noised(clean, noise, torch.tensor(t))
    alone = [
        peer.noised(clean[i : i + 1], noise[i : i + 1], torch.tensor(t[i : i + 1])) for i in range(len(t))
    ]
    return float((together != torch.cat(alone)).sum())
