"""Philox4x32-10 on plain integers (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", §3.3).

No torch is loaded: the loader's processes draw crops by this, and so does who only shows them. By the same rounds
`refimpl.diffusion.philox` draws on tensors; it says what the counters are.
"""

import hashlib
import operator
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

from refimpl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WORD = 0xFFFFFFFF  # a mask and the largest word
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al., table 2
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in units of 2^-32
ROUNDS = 10

NOISE_STREAM, OFFSET_STREAM, UNIFORM_STREAM, INTEGER_STREAM, HALF_STREAM = range(5)

Words = TypeVar("Words", int, "Tensor")


class Purpose(IntEnum):
    """What a draw is for: draws for one sample and visit with different purposes are independent."""

    NOISE = 0
    TIMESTEP = 1
    CAPTION_DROPOUT = 2
    CROP = 3
    FLIP = 4
    TAG_SHUFFLE = 5
    INIT_NOISE = 6  # the first noise of a sampler
    REFINER_NOISE = 7  # what a refiner is given to take away again (SDEdit)
    LORA_DROPOUT = 8  # components of the adapters' rank that an image goes without
    TAG_DROPOUT = 9
    ROUNDING = (
        10  # of a parameter's new value; its sample is the parameter's name, its visit the optimizer step
    )


def _multiply(multiplier: int, word: Words) -> tuple[Words, Words]:
    """High and low words of a 32 × 32 bit product, computed in halves so that int64 never overflows."""
    low = multiplier * (word & 0xFFFF)
    high = multiplier * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox_rounds(
    c0: Words, c1: Words, c2: Words, c3: Words, k0: Words, k1: Words
) -> tuple[Words, Words, Words, Words]:
    """Ten rounds on four counter words and two key words, for Python integers and tensors alike."""
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def sample_id(name: str) -> int:
    """Signed 64-bit id of a sample: the first 8 bytes (little endian) of blake2b of its UTF-8 name.

    Bytes of a file name that are not UTF-8 (Python's surrogate escapes) are hashed as they are.
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def draw_key_of(seed: int, sample: int, visit: int, purpose: Purpose | int) -> tuple[int, int]:
    """`draw_key` of one sample on plain integers, for the loader's processes: the same two words.

    sample  see `sample_id`; the other arguments and the errors are those of `draw_key`
    """
    seeds, sample, visit = seed_words(seed), operator.index(sample), operator.index(visit)
    if not 0 <= visit <= WORD:
        raise InputError(f"visit must lie in 0 to 2^32 - 1, got {visit}")
    words = philox_rounds(sample & WORD, (sample >> 32) & WORD, visit, int(Purpose(purpose)), *seeds)
    return words[0], words[1]


class KeyedIntegers:
    """A sequence of integers from one key; stands in for a numpy Generator.

    Every call consumes the next word of the integer stream (and, with probability below
    (high - low) / 2^32, one more, so that the result is unbiased: Lemire 2019, algorithm 5).

    key  [2]  uint32 values: a tensor or a pair of ints
    """

    def __init__(self, key: "Tensor | Sequence[int]"):
        words = [int(word) for word in key]
        if len(words) != 2 or not all(0 <= word <= WORD for word in words):
            raise InputError(f"key must be two words, each in 0 to 2^32 - 1, got {words}")
        self._key = (words[0], words[1])
        self._taken = 0

    def integers(self, low: int, high: int | None = None) -> int:
        """A uniform integer in [low, high), or in [0, low) when high is not given.

        Raises InputError when the range is empty or wider than 2^32.
        """
        low, high = (0, low) if high is None else (low, high)
        low, high = operator.index(low), operator.index(high)  # numpy's integers would overflow below
        span = high - low
        if not 0 < span <= WORD + 1:
            raise InputError(f"cannot draw an integer from [{low}, {high}): it must hold 1 to 2^32 integers")
        while True:
            product = self._next_word() * span
            if product & WORD >= (WORD + 1) % span:
                return low + (product >> 32)

    def _next_word(self) -> int:
        block, lane = divmod(self._taken, 4)
        self._taken += 1
        return philox_rounds(block & WORD, block >> 32, INTEGER_STREAM, 0, *self._key)[lane]


def seed_words(seed: int) -> tuple[int, int]:
    """The two words of a seed. Raises InputError where it does not fit 64 bits."""
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed} does not fit 64 bits: take one from -2^63 to 2^64 - 1")
    return seed & WORD, (seed >> 32) & WORD
