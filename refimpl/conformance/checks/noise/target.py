"""The target of v-prediction (N §2.1; Salimans & Ho 2022, app. D)."""

import torch

from refimpl.conformance.check import check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import LAST, coefficients, largest
from refimpl.conformance.checks.noise.noised import latent, scale_of
from refimpl.conformance.guarded import Guarded

SALIMANS = "N §2.1; Salimans & Ho 2022, app. D"


@check(
    cites=SALIMANS,
    unit="of the larger term",
    limit=2e-5,
    x0=draws.latents,
    eps=draws.latents,
    t=draws.several_timesteps,
)
def velocity(peer: Guarded, x0: list[float], eps: list[float], t: list[int]) -> float:
    """The target is alpha·eps − sigma·x0, each sample at its own timestep."""
    clean, noise = latent(x0, len(t)), latent(eps, len(t))
    found = peer.target(clean, noise, torch.tensor(t))
    alpha, sigma = coefficients(t)
    return largest((found - alpha * noise + sigma * clean).abs()) / scale_of(x0, eps)


@check(
    cites="N §2.1, §2.2",
    unit="of the latent",
    limit=0,
    x0=draws.latents,
    eps=draws.latents,
    dtype=draws.dtypes,
)
def pure_noise(peer: Guarded, x0: list[float], eps: list[float], dtype: str) -> float:
    """At t = 999 the network learns the image itself: the target equals −x0, whatever the noise and precision."""
    clean, noise = (latent(values, 1, getattr(torch, dtype)) for values in (x0, eps))
    found = peer.target(clean, noise, torch.tensor([LAST]))
    return largest((found + clean).abs()) / scale_of(x0, eps)


@check(
    cites=SALIMANS,
    unit="of the larger term",
    limit=2e-5,
    needs="target noised schedule",
    x0=draws.latents,
    eps=draws.latents,
    t=draws.timesteps,
)
def inverts(peer: Guarded, x0: list[float], eps: list[float], t: int) -> float:
    """The implementation's own x_t, target and table agree: alpha·x_t − sigma·v is x0 again."""
    step = torch.tensor([t])
    clean, noise = latent(x0, 1), latent(eps, 1)
    x_t, v = peer.noised(clean, noise, step), peer.target(clean, noise, step)
    abar = peer.schedule(True)[t]
    return largest((abar.sqrt() * x_t - (1 - abar).sqrt() * v - clean).abs()) / scale_of(x0, eps)
