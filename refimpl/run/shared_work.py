"""Work divided among the ranks, whose results every rank then has."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from refimpl.run.world import World
from refimpl.storage.ranks.peers import Peers

Item = TypeVar("Item")
Result = TypeVar("Result")


def peers_of(world: World) -> Peers:
    """The world's processes as those that write or read a folder together."""
    return Peers(world.rank, world.size)


def gathered(world: World, value: Item) -> list[Item]:
    """Returns every rank's value, in rank order, on every rank."""
    return peers_of(world).gathered(value)


def shared_out(world: World, items: Sequence[Item], function: Callable[[Item], Result]) -> list[Result]:
    """Applies `function` to each item on one rank and returns the results, in the items' order, on every rank."""
    parts = gathered(world, [function(item) for item in items[world.rank :: world.size]])
    return [parts[i % world.size][i // world.size] for i in range(len(items))]
