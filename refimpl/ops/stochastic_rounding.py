"""Stochastic rounding of float32 to bfloat16 (Gupta et al. 2015, "Deep learning with limited numerical precision").

A weight kept in bfloat16 has 8 significant bits. An update of less than half of its last one is lost in rounding to
nearest, every time; rounded at random, up with the probability of the fraction that is cut off, it arrives in
expectation (§3 there). The draws are keyed: an element's depends on (seed, step, parameter, place in it) alone, so a
run that is continued rounds as the one that never stopped, on any device and in any memory format.
"""

import torch
from torch import Tensor

from refimpl.diffusion.philox import Purpose, draw_key_of, keyed_halves, sample_id
from refimpl.errors import InputError

CUT = 16  # bits by which float32's significand is longer than bfloat16's
AT_ONCE = 2**22  # elements whose draws are held together, 8 bytes each and some ten copies of that


def rounding_key(seed: int, step: int, parameter: str) -> tuple[int, int]:
    """The key of a parameter's rounding in an optimizer step.

    step  from 1 to 2^32 − 1        parameter  its name, in the whole model
    """
    return draw_key_of(seed, sample_id(parameter), step, Purpose.ROUNDING)


def round_stochastically(x: Tensor, key: tuple[int, int]) -> Tensor:
    """Each element rounded to one of the two bfloat16 values next to it, in expectation the element itself.

    x        float32, of any shape        key  of `rounding_key`
    returns  bfloat16, contiguous in the order of x's indices; element e takes number e of the key's halves
    What bfloat16 represents stays as it is, and so do infinities and NaN. Beyond its largest value the neighbour is
    infinite.
    Raises InputError on another dtype.
    """
    flat, words = x.contiguous().flatten(), torch.tensor([key], device=x.device)
    rounded = torch.empty(flat.shape, dtype=torch.bfloat16, device=x.device)
    for first in range(0, len(flat), AT_ONCE):
        some = flat[first : first + AT_ONCE]
        rounded[first : first + AT_ONCE] = round_by(some, keyed_halves(words, len(some), first)[0])
    return rounded.view(x.shape)


def round_by(x: Tensor, draws: Tensor) -> Tensor:
    """Rounds up in magnitude where the draw and the fraction that is cut off are together at least 1.

    x      float32        draws  integers of x's shape, 0 to 65535: uniform, they make the result unbiased
    """
    if x.dtype != torch.float32:
        raise InputError(f"stochastic rounding takes float32, not {x.dtype}")
    bits = x.view(torch.int32)  # ordered by magnitude, apart from the sign
    up = (bits + draws.to(torch.int32)) >> CUT << CUT  # a carry goes on into the exponent, as it should
    return torch.where(x.isfinite(), up.view(torch.float32), x).to(torch.bfloat16)
