"""The batches of an epoch (N §4.1.2)."""

from collections import Counter
from typing import Any

import numpy as np

from refimpl.conformance.adapter import Batch
from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.guarded import Guarded

PAPER = "N §4.1.2"
DRAWN: dict[str, Any] = {"items": draws.items, "batch_size": draws.batch_sizes, "world": draws.worlds}
SURVEY = (5000, 8, 8)  # items, batch size, ranks


def _enough(items: list[int], batch_size: int, world: int) -> list[int]:
    """The items, repeated until there is at least one global batch."""
    return items * -(-batch_size * world // len(items))


def _epoch(
    peer: Guarded, items: list[int], batch_size: int, world: int
) -> tuple[list[int], list[list[Batch]]]:
    enough = _enough(items, batch_size, world)
    return enough, peer.epoch(enough, batch_size, world, 7, 1)


def ids_of(ranks: list[list[Batch]]) -> list[int]:
    """Every id that is trained on, rank after rank."""
    return [i for rank in ranks for _, ids in rank for i in ids]


def repeated(ranks: list[list[Batch]]) -> int:
    """How often an id is trained on that was trained on before in the epoch."""
    return sum(count - 1 for count in Counter(ids_of(ranks)).values())


def left_out(ranks: list[list[Batch]], items: int) -> int:
    """How many of the ids 0 … items − 1 are not trained on."""
    return len(set(range(items)) - set(ids_of(ranks)))


def wrong_sizes(ranks: list[list[Batch]], batch_size: int) -> int:
    """How many batches have another size."""
    return sum(len(ids) != batch_size for rank in ranks for _, ids in rank)


def unequal_steps(ranks: list[list[Batch]]) -> int:
    """How many steps the rank with the most has more than the one with the fewest."""
    steps = [len(rank) for rank in ranks]
    return max(steps) - min(steps)


@check(cites=PAPER, unit="items", limit=0, **DRAWN)
def once(peer: Guarded, items: list[int], batch_size: int, world: int) -> float:
    """No item is trained on twice in an epoch, on whatever ranks."""
    _, ranks = _epoch(peer, items, batch_size, world)
    return float(repeated(ranks))


@check(cites=PAPER + ': "trimmed … to make it divisible"', unit="items", limit=0, **DRAWN)
def nothing_lost(peer: Guarded, items: list[int], batch_size: int, world: int) -> Measured:
    """An epoch leaves out fewer items than one global batch."""
    enough, ranks = _epoch(peer, items, batch_size, world)
    lost = left_out(ranks, len(enough))
    return Measured(max(0, lost - batch_size * world + 1), f"{lost} of {len(enough)} items lost")


@check(cites=PAPER, unit="batches", limit=0, **DRAWN)
def full_batches(peer: Guarded, items: list[int], batch_size: int, world: int) -> Measured:
    """Every batch has the batch size."""
    _, ranks = _epoch(peer, items, batch_size, world)
    wrong, batches = wrong_sizes(ranks, batch_size), sum(map(len, ranks))
    return Measured(wrong, f"{wrong} of {batches} batches")


@check(cites="a rank without a batch waits for ever", unit="steps", limit=0, **DRAWN)
def equal_steps(peer: Guarded, items: list[int], batch_size: int, world: int) -> float:
    """Every rank has as many steps."""
    _, ranks = _epoch(peer, items, batch_size, world)
    return float(unequal_steps(ranks))


@check(cites="a run that is repeated gives the same model", unit="batches", limit=0, **DRAWN)
def repeats(peer: Guarded, items: list[int], batch_size: int, world: int) -> float:
    """The same seed and epoch give the same batches."""
    enough, first = _epoch(peer, items, batch_size, world)
    again = peer.epoch(enough, batch_size, world, 7, 1)
    return float(
        sum(a != b for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=False))
    )


@check(cites=PAPER + ': "before each epoch … shuffle them"', unit="orders", limit=0)
def shuffles(peer: Guarded) -> float:
    """Another epoch and another seed give another order."""
    items = [i % 3 for i in range(96)]
    orders = [ids_of(peer.epoch(items, 4, 1, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    return float(3 - len({tuple(order) for order in orders}))


@check(cites=PAPER + ": catch-all, of one bucket's resolution", unit="% of batches", kind="choice")
def mixed_batches(peer: Guarded) -> Measured:
    """How many batches mix items of several buckets, of 5,000 items in 19 buckets on 8 ranks of 8."""
    count, batch_size, world = SURVEY
    items = _surveyed()
    ranks = peer.epoch(items, batch_size, world, 0, 0)
    batches = [ids for rank in ranks for _, ids in rank]
    mixed = sum(len({items[i] for i in ids}) > 1 for ids in batches)
    return Measured(100 * mixed / max(len(batches), 1), f"{mixed} of {len(batches)}; {count:,} items")


@check(cites="N §4.1.2 lets each rank draw for itself", unit="% of steps", kind="choice")
def equal_shapes(peer: Guarded) -> Measured:
    """At how many steps the ranks' batches differ in shape, so that the slowest is waited for; items as above."""
    _, batch_size, world = SURVEY
    ranks = peer.epoch(_surveyed(), batch_size, world, 0, 0)
    steps = list(zip(*([shape for shape, _ in rank] for rank in ranks), strict=False))
    equal = sum(len(set(shapes)) == 1 for shapes in steps)
    return Measured(
        100 * (1 - equal / max(len(steps), 1)),
        f"{equal} of {len(steps)} steps of equal shape on {world} ranks",
    )


def _surveyed() -> list[int]:
    """Buckets of 5,000 items, some of them common and some rare; the same in every run."""
    share = 1 / np.arange(1, 20)
    return np.random.default_rng(0).choice(19, SURVEY[0], p=share / share.sum()).tolist()
