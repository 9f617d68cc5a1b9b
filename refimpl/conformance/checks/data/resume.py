"""What a run that was stopped goes on with."""

from refimpl.conformance.check import check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.data.epoch import DRAWN, _enough
from refimpl.conformance.guarded import Guarded

CONTINUES = "a run that is stopped and resumed is the run that was not stopped"


@check(cites=CONTINUES, unit="batches", limit=0, needs="resume epoch", done=draws.batch_sizes, **DRAWN)
def goes_on(peer: Guarded, items: list[int], batch_size: int, world: int, done: int) -> float:
    """After a stop come exactly the batches that would have come without it, in their order."""
    enough = _enough(items, batch_size, world)
    whole = peer.epoch(enough, batch_size, world, 7, 1)
    done = min(done, len(whole[0]))
    rest = peer.resume(enough, batch_size, world, 7, 1, done)
    wrong = 0
    for rank, remaining in zip(whole, rest, strict=True):
        expected = rank[done:]
        wrong += abs(len(expected) - len(remaining))
        wrong += sum(a != b for a, b in zip(expected, remaining, strict=False))
    return float(wrong)


@check(cites=CONTINUES, unit="batches", limit=0, needs="resume epoch", **DRAWN)
def from_the_start(peer: Guarded, items: list[int], batch_size: int, world: int) -> float:
    """A run that was stopped before its first step has the whole epoch before it."""
    enough = _enough(items, batch_size, world)
    whole, rest = peer.epoch(enough, batch_size, world, 7, 1), peer.resume(enough, batch_size, world, 7, 1, 0)
    return float(sum(a != b for a, b in zip(whole, rest, strict=True)))


@check(cites=CONTINUES, unit="batches", limit=0, needs="resume epoch", **DRAWN)
def nothing_after_the_end(peer: Guarded, items: list[int], batch_size: int, world: int) -> float:
    """A run that was stopped at the end of an epoch has nothing of it left."""
    enough = _enough(items, batch_size, world)
    steps = len(peer.epoch(enough, batch_size, world, 7, 1)[0])
    return float(sum(len(rank) for rank in peer.resume(enough, batch_size, world, 7, 1, steps)))
