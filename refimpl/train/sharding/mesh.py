"""The ranks as a mesh: one dimension along which weights are divided, one along which they are repeated.

Fully sharded data parallelism is Rajbhandari et al. 2020, "ZeRO", §5 (stage 3); dividing within a node and repeating
across nodes keeps its traffic on the fast links (Zhao et al. 2023, "PyTorch FSDP", §3.2.2).
"""

import os

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from refimpl.errors import InputError
from refimpl.run.config import TrainConfig
from refimpl.run.world import World

REPEATED, DIVIDED = "repeated", "divided"  # dimensions of the mesh
LOCAL_RANKS = "LOCAL_WORLD_SIZE"  # set by torchrun


def ranks_per_node(settings: TrainConfig, size: int) -> int:
    """Ranks among which a run's weights are divided; 1 where they are not."""
    if size == 1 or settings.sharding == "replicate":
        return 1
    if settings.sharding == "shard":
        return size
    return settings.ranks_per_node or int(os.environ.get(LOCAL_RANKS, str(size)))


def check_sharding(settings: TrainConfig, size: int) -> None:
    """Raises InputError when `size` ranks cannot be divided as the settings say; one rank divides nothing."""
    if settings.step_in_backward and size > 1:
        raise InputError(
            f"train.step_in_backward steps a rank's own gradients, before those of {size} ranks could be summed; use "
            "one rank, or leave it off"
        )
    if settings.sharding != "hybrid" or size == 1:
        return
    ranks = ranks_per_node(settings, size)
    source = "train.ranks_per_node" if settings.ranks_per_node else f"torchrun's {LOCAL_RANKS}"
    if ranks == 1:
        raise InputError(
            f"train.sharding 'hybrid' divides the weights among the ranks of a node, and {source} says 1; name "
            "more with train.ranks_per_node, or use shard or replicate"
        )
    if size % ranks:
        raise InputError(
            f"train.sharding 'hybrid' needs a whole number of nodes, but {source} says {ranks} ranks on each and the "
            f"run has {size}; set train.ranks_per_node to a divisor of {size}, or use shard"
        )


def make_mesh(settings: TrainConfig, world: World) -> DeviceMesh | None:
    """Nodes by ranks of a node, rank = node · ranks of a node + rank within it; None where nothing is divided.

    Every rank calls it, after `check_sharding`.
    """
    ranks = ranks_per_node(settings, world.size)
    if ranks == 1:
        return None
    return init_device_mesh(
        world.device.type, (world.size // ranks, ranks), mesh_dim_names=(REPEATED, DIVIDED)
    )
