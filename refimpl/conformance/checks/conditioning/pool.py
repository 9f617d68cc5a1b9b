"""The pooled state of a prompt of several chunks (N §4.2)."""

import torch

from refimpl.conformance.check import Measured, check
from refimpl.conformance.checks import draws
from refimpl.conformance.checks.exact import FLOAT32, largest, unit_noise
from refimpl.conformance.guarded import Guarded

PAPER = "N §4.2"


def _states(counts: list[int]) -> list[torch.Tensor]:
    return [unit_noise(number, count, 8).float() for number, count in enumerate(counts)]


@check(cites=PAPER, unit="state", limit=FLOAT32)
def of_one_chunk(peer: Guarded) -> float:
    """The pooled state of a prompt of one chunk is that chunk's."""
    states = _states([1])
    return largest((peer.pool(states) - states[0]).abs())


@check(cites="a prompt's condition is its own", unit="state", limit=FLOAT32, counts=draws.chunk_counts)
def batch_independent(peer: Guarded, counts: list[int]) -> float:
    """A prompt's pooled state is the same alone and beside longer prompts."""
    states = _states(counts)
    alone = torch.cat([peer.pool([state]) for state in states])
    return largest((peer.pool(states) - alone).abs())


@check(cites=PAPER + ": the mean of the chunks", unit="state", kind="choice")
def of_several(peer: Guarded) -> Measured:
    """How the states of three chunks become one: their mean, as N has it, or the first."""
    states = _states([3])
    found = peer.pool(states)[0]
    kinds = {"mean": states[0].mean(0), "first": states[0][0], "last": states[0][-1]}
    errors = {kind: largest((found - value).abs()) for kind, value in kinds.items()}
    nearest = min(errors, key=lambda kind: errors[kind])
    return Measured(errors["mean"], nearest if errors[nearest] <= FLOAT32 else "another rule")
