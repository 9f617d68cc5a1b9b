"""Work that ranks share out among them, and results that every rank then has."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from refimpl.run.world import World

Item = TypeVar("Item")
Result = TypeVar("Result")


def gathered(world: World, value: Item) -> list[Item]:
    """Every rank's value, in the order of ranks, on every rank."""
    if world.size == 1:
        return [value]
    box: list[Any] = [None] * world.size
    dist.all_gather_object(box, value)
    return box


def shared_out(world: World, items: Sequence[Item], function: Callable[[Item], Result]) -> list[Result]:
    """`function` of every item, each computed on one rank; in the items' order, on every rank."""
    parts = gathered(world, [function(item) for item in items[world.rank :: world.size]])
    return [parts[i % world.size][i // world.size] for i in range(len(items))]


def from_main(world: World, action: Callable[[], Result]) -> Result:
    """What rank 0's `action` returns, on every rank; the others wait. Its InputError is every rank's."""
    box: list[Any] = [None]

    def act() -> None:
        box[0] = action()

    world.on_main(act)
    if world.size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
