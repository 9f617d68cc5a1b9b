"""How far the moving average is from the weights (S §2.5 samples from the average)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.run.world import World
from refimpl.storage.local_tensors import is_divided, local
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.sharding.kinds import Sharding
from refimpl.train.sharding.mesh import REPEATED


@torch.no_grad()
def ema_drift(parts: Sequence[Part], averages: Averages, sharding: Sharding, world: World) -> Tensor:
    """‖weights − average‖ / ‖weights‖ over all that is trained, a scalar on the device; every rank calls it.

    averages  those that this rank keeps
    Each rank sums what it holds and no rank before it, one tensor after another, so that it takes no more memory than
    the largest.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for part in parts:
        for name, weight in sharding.own(part).items():
            if name in averages.get(part.name, {}) and _is_first(weight, sharding, world):
                held, average = local(weight).float(), local(averages[part.name][name])
                norms = (torch.linalg.vector_norm(held - average), torch.linalg.vector_norm(held))
                sums += torch.stack(norms).double().square()
    distance, size = world.sum(sums).unbind()
    return (distance / size).sqrt()


def _is_first(weight: Tensor, sharding: Sharding, world: World) -> bool:
    """Whether no rank before this one holds the same."""
    if sharding.mesh is None:
        return True  # averages are on one rank alone
    return sharding.mesh[REPEATED].get_local_rank() == 0 if is_divided(weight) else world.is_main
