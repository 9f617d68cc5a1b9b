"""One rank for each parameter, which alone steps it (Rajbhandari et al. 2020, "ZeRO", §5.1: optimizer state)."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from refimpl.train.sharding.flat import flattened, in_buckets, split_like


def owners_of(parameters: Sequence[nn.Parameter], ranks: int) -> dict[nn.Parameter, int]:
    """The owner of each parameter, in their order: the largest first, each to the rank that has the least."""
    loads, owner = [0] * ranks, {}
    for parameter in sorted(parameters, key=lambda p: -p.numel()):  # stable: the same on every rank
        owner[parameter] = min(range(ranks), key=loads.__getitem__)
        loads[owner[parameter]] += parameter.numel()
    return {parameter: owner[parameter] for parameter in parameters}


@torch.no_grad()
def send_from_owners(owners: Mapping[nn.Parameter, int], ranks: int) -> None:
    """Every owner sends its parameters to all others; every rank calls it. As much is sent as by an all-gather."""
    for rank in range(ranks):
        for bucket in in_buckets([parameter for parameter, owner in owners.items() if owner == rank]):
            flat = flattened(bucket)
            dist.broadcast(flat, src=rank)
            for parameter, values in zip(bucket, split_like(bucket, flat), strict=True):
                parameter.copy_(values)
