"""How far the moving average is from the weights (S §2.5 samples from the average)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from refimpl.train.setup.trainable import Part


@torch.no_grad()
def ema_drift(parts: Sequence[Part], averages: Mapping[str, Mapping[str, Tensor]]) -> Tensor | None:
    """‖weights − average‖ / ‖weights‖ over all that is trained, a scalar on the device; None where none is kept.

    One tensor after another, so that it takes no more memory than the largest.
    """
    distances, sizes = [], []
    for part in parts:
        for name, weight in part.parameters().items() if part.name in averages else ():
            distances.append(torch.linalg.vector_norm(weight.float() - averages[part.name][name]))
            sizes.append(torch.linalg.vector_norm(weight.float()))
    if not sizes:
        return None
    return torch.linalg.vector_norm(torch.stack(distances)) / torch.linalg.vector_norm(torch.stack(sizes))
