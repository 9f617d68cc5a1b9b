"""The loss by tenths of the timesteps: which noise levels a run learns (N §2.4 weights them by MinSNR)."""

import torch
from torch import Tensor

from refimpl.run.world import World

TENTHS = 10


class TimestepLosses:
    """Mean weighted loss of all ranks' images in each tenth of the timesteps, since it was last asked for.

    Sums stay on the device, and adding to them waits for nothing. A loss that is not finite is left out.
    """

    def __init__(self, timesteps: int) -> None:
        self._timesteps = timesteps
        self._sums: Tensor | None = None  # [2, TENTHS] float64, of losses and of images

    @torch.no_grad()
    def add(self, t: Tensor, losses: Tensor) -> None:
        """Adds a micro-batch: its timesteps [B] and its images' losses [B]."""
        is_finite = losses.isfinite()
        # As a product with a table of 0 and 1: scattering would add in an order of its own on a GPU.
        member = (t * TENTHS // self._timesteps)[:, None] == torch.arange(TENTHS, device=t.device)
        counted = (member & is_finite[:, None]).double()
        known = losses.detach().double().where(is_finite, 0.0)
        sums = torch.stack((known @ counted, counted.sum(0)))
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, world: World) -> list[float | None]:
        """The means, None where no image was, and begins anew; every rank calls it, after one micro-batch or more."""
        if self._sums is None:
            return [None] * TENTHS
        losses, images = world.sum(self._sums).tolist()
        self._sums = None
        return [loss / count if count else None for loss, count in zip(losses, images, strict=True)]
