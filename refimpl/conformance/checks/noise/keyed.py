"""Noise as a function of (seed, sample, visit), which no batch and no number of ranks changes."""

import math

import torch
from torch import Tensor

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import largest
from refimpl.conformance.guarded import Guarded

DEFINITION = "the adapter's claim: keyed noise is a function of its key"
SHAPE = (4, 4, 4)
SURVEY = (16, (4, 256, 256))  # samples, and the shape of each: 2^22 numbers
FEW = 4  # of these samples, compared to those of another visit and seed
NEIGHBOURS = ((0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0))
STANDARD_ERRORS = 5.0  # that a statistic may be off


def worst_moment(noise: Tensor) -> float:
    """How far mean, variance, skewness and kurtosis are from a standard normal's, in standard errors.

    noise  of any shape, in any number of parts along its first axis
    """
    powers, count = torch.zeros(4, dtype=torch.float64), noise.numel()
    for part in noise:
        x = part.double()
        x2 = x.square()
        powers += torch.stack([x.sum(), x2.sum(), (x2 * x).sum(), x2.square().sum()])
    mean, second, third, fourth = powers / count
    variance = second - mean**2
    skewness = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 - 3
    errors = torch.stack([mean, variance - 1, skewness, kurtosis])
    return largest(errors.abs() / (torch.tensor([1.0, 2.0, 6.0, 24.0]) / count).sqrt())


def correlation(a: Tensor, b: Tensor) -> float:
    """|sample correlation| in standard errors, of the values or of their squares, whichever is the larger."""
    found = []
    for x, y in ((a, b), (a.square(), b.square())):
        x, y = x.flatten() - x.mean(), y.flatten() - y.mean()
        found.append((x * y).sum() / (x.norm() * y.norm()) * math.sqrt(x.numel()))
    return largest(torch.stack(found).abs())


@check(cites=DEFINITION, unit="elements", limit=0, seed=draws.seeds, visit=draws.timesteps)
def repeats(peer: Guarded, seed: int, visit: int) -> float:
    """The same seed, sample and visit give the same bits."""
    first = peer.keyed(seed, [3, 5], visit, SHAPE)
    return float((first != peer.keyed(seed, [3, 5], visit, SHAPE)).sum())


@check(
    cites=DEFINITION,
    unit="elements",
    limit=0,
    seed=draws.seeds,
    ids=draws.sample_ids,
    shape=draws.noise_shapes,
)
def batch_independent(peer: Guarded, seed: int, ids: list[int], shape: tuple[int, int, int]) -> float:
    """A sample's noise is the same alone and in any batch."""
    together = peer.keyed(seed, ids, 0, shape)
    return float(
        sum(int((peer.keyed(seed, [i], 0, shape)[0] != together[n]).sum()) for n, i in enumerate(ids))
    )


@check(cites=DEFINITION, unit="pairs", limit=0, seed=draws.seeds)
def distinct(peer: Guarded, seed: int) -> float:
    """Another seed, sample or visit gives other noise."""
    first = peer.keyed(seed, [3], 0, SHAPE)
    others = [
        peer.keyed(seed + 1, [3], 0, SHAPE),
        peer.keyed(seed, [4], 0, SHAPE),
        peer.keyed(seed, [3 + 2**32], 0, SHAPE),
        peer.keyed(seed, [3], 1, SHAPE),
    ]
    return float(sum(bool((first == other).any()) for other in others))


def _surveyed(peer: Guarded, samples: int = SURVEY[0], seed: int = 0, visit: int = 0) -> Tensor:
    return peer.keyed(seed, list(range(samples)), visit, SURVEY[1])


@check(cites="S §2.5: noise is standard normal", unit="standard errors", limit=STANDARD_ERRORS)
def standard_normal(peer: Guarded) -> float:
    """The noise has the mean, variance, skewness and kurtosis of a standard normal, in 2^22 numbers."""
    return worst_moment(_surveyed(peer))


@check(
    cites="S §2.5: noise of one place says nothing about another's",
    unit="standard errors",
    limit=STANDARD_ERRORS,
)
def uncorrelated(peer: Guarded) -> Measured:
    """Noise does not correlate with its neighbours', another sample's, visit's or seed's, nor do the squares."""
    noise = _surveyed(peer)
    errors = {str(shift): correlation(noise, noise.roll(shift, dims=(0, 1, 2, 3))) for shift in NEIGHBOURS}
    for name, other in (("visit", _surveyed(peer, FEW, visit=1)), ("seed", _surveyed(peer, FEW, seed=1))):
        errors[name] = correlation(noise[:FEW], other)
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return Measured(errors[worst], f"{errors[worst]:.1f} standard errors: {worst}")
