"""Noise as a function of (seed, sample, visit), which no batch and no number of ranks changes."""

import math

from refimpl.conformance.check import check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import largest
from refimpl.conformance.guarded import Guarded

DEFINITION = "the adapter's claim: keyed noise is a function of its key"
SHAPE = (4, 4, 4)


@check(cites=DEFINITION, unit="elements", limit=0, seed=draws.seeds, visit=draws.timesteps)
def repeats(peer: Guarded, seed: int, visit: int) -> float:
    """The same seed, sample and visit give the same bits."""
    first = peer.keyed(seed, [3, 5], visit, SHAPE)
    return float((first != peer.keyed(seed, [3, 5], visit, SHAPE)).sum())


@check(cites=DEFINITION, unit="elements", limit=0, seed=draws.seeds, ids=draws.chunk_counts)
def batch_independent(peer: Guarded, seed: int, ids: list[int]) -> float:
    """A sample's noise is the same alone and in any batch."""
    together = peer.keyed(seed, ids, 0, SHAPE)
    return float(
        sum(int((peer.keyed(seed, [i], 0, SHAPE)[0] != together[n]).sum()) for n, i in enumerate(ids))
    )


@check(cites=DEFINITION, unit="pairs", limit=0, seed=draws.seeds)
def distinct(peer: Guarded, seed: int) -> float:
    """Another seed, sample or visit gives other noise."""
    first = peer.keyed(seed, [3], 0, SHAPE)
    others = [
        peer.keyed(seed + 1, [3], 0, SHAPE),
        peer.keyed(seed, [4], 0, SHAPE),
        peer.keyed(seed, [3], 1, SHAPE),
    ]
    return float(sum(bool((first == other).any()) for other in others))


@check(cites="S §2.5: noise is standard normal", unit="standard errors", limit=5, seed=draws.seeds)
def standard_normal(peer: Guarded, seed: int) -> float:
    """The noise has mean 0 and variance 1, within five standard errors of 256 values."""
    noise = peer.keyed(seed, [0, 1, 2, 3], 0, SHAPE).flatten()
    error = 1 / math.sqrt(len(noise))
    return max(abs(float(noise.mean())) / error, abs(float(noise.var()) - 1) / (error * math.sqrt(2)))


@check(cites="S §2.5: noise of one sample says nothing about another's", unit="correlation", limit=0.5)
def uncorrelated(peer: Guarded) -> float:
    """The noises of different samples do not correlate."""
    noise = peer.keyed(0, list(range(8)), 0, SHAPE).flatten(1)
    correlation = (noise @ noise.T / noise.shape[1]).fill_diagonal_(0)
    return largest(correlation.abs())
