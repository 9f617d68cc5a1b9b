"""Keyed draws: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", §3.3).

Every draw of a sample is a pure function of (seed, sample id, visit, purpose), so it does not depend on
the batch, the rank, the device or the order in which samples are read. It takes two steps: `draw_key` hashes
the four into a two-word key, and the `keyed_*` functions generate blocks of four words in counter mode under
that key.

A word is a uint32; tensors hold it in int64, as torch supports little arithmetic on unsigned integers. The
counter of block j of a key is (j low, j high, stream, 0):

    stream 0  normals of the noise        stream 2  uniforms        stream 4  halves of words
    stream 1  normals of the offset noise stream 3  integers
"""

import hashlib
import math
import operator
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

from refimpl.diffusion.offset_noise import offset_noise
from refimpl.errors import InputError

WORD = 0xFFFFFFFF  # a mask and the largest word
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al., table 2
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in units of 2^-32
ROUNDS = 10

NOISE_STREAM, OFFSET_STREAM, UNIFORM_STREAM, INTEGER_STREAM, HALF_STREAM = range(5)

Words = TypeVar("Words", int, Tensor)


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


def _philox(
    c0: Words, c1: Words, c2: Words, c3: Words, k0: Words, k1: Words
) -> tuple[Words, Words, Words, Words]:
    """Ten rounds on four counter words and two key words, for Python integers and tensors alike."""
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: four words from a counter under a key.

    counter  [..., 4]  int64 holding uint32        key  [..., 2]  int64 holding uint32
    returns  [..., 4]  int64 holding uint32; leading dimensions broadcast, bits above the 32nd are ignored
    Raises InputError on another dtype or last dimension. Source: Salmon et al. 2011, §3.3.
    """
    _check_words("counter", counter, 4)
    _check_words("key", key, 2)
    words = _philox(*(counter & WORD).unbind(-1), *(key & WORD).unbind(-1))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def sample_id(name: str) -> int:
    """Signed 64-bit id of a sample: the first 8 bytes (little endian) of blake2b of its UTF-8 name.

    Bytes of a file name that are not UTF-8 (Python's surrogate escapes) are hashed as they are.
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def draw_key(seed: int, ids: Tensor, visit: Tensor | int, purpose: Purpose | int) -> Tensor:
    """The two-word key of each sample's draw.

    The first two words of Philox of the counter (id low, id high, visit, purpose) under the key (seed low,
    seed high).

    seed     -2^63 to 2^64 - 1            ids      [B]  int64, see `sample_id`
    visit    [B] int64 or an int, 0 to 2^32 - 1: how often the sample was seen before (the epoch)
    returns  [B, 2]  int64 holding uint32, on the device of ids
    Raises InputError when a value does not fit its words, ValueError when purpose is not a Purpose.
    """
    return draw_keys(seed, ids, visit, (purpose,))[0]


def draw_keys(seed: int, ids: Tensor, visit: Tensor | int, purposes: Sequence[Purpose | int]) -> Tensor:
    """The keys that `draw_key` gives for each purpose, [P, B, 2], at about the price of one.

    The arguments, the errors and the bits are those of `draw_key`.
    """
    seed_words = _seed_words(seed)
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise InputError(f"ids must be int64 of shape [B], got {ids.dtype} of shape {list(ids.shape)}")
    visits = torch.as_tensor(visit, device=ids.device)
    if visits.dtype != torch.int64 or (visits.ndim and visits.shape != ids.shape):
        raise InputError(
            f"visit must be an integer or int64 of ids' shape {list(ids.shape)}, "
            f"got {visits.dtype} of shape {list(visits.shape)}"
        )
    if bool(((visits < 0) | (visits > WORD)).any()):
        raise InputError(f"visit must lie in 0 to 2^32 - 1, got {visits.tolist()}")
    kinds = torch.tensor([Purpose(purpose) for purpose in purposes], device=ids.device)[:, None]
    words = (ids & WORD, (ids >> 32) & WORD, visits, kinds)
    counter = torch.stack(torch.broadcast_tensors(*words), dim=-1)
    return philox4x32(counter, torch.tensor(seed_words, device=ids.device))[..., :2]


def draw_key_of(seed: int, sample: int, visit: int, purpose: Purpose | int) -> tuple[int, int]:
    """`draw_key` of one sample on plain integers, for the loader's processes: the same two words.

    sample  see `sample_id`; the other arguments and the errors are those of `draw_key`
    """
    seed_words, sample, visit = _seed_words(seed), operator.index(sample), operator.index(visit)
    if not 0 <= visit <= WORD:
        raise InputError(f"visit must lie in 0 to 2^32 - 1, got {visit}")
    words = _philox(sample & WORD, (sample >> 32) & WORD, visit, int(Purpose(purpose)), *seed_words)
    return words[0], words[1]


def keyed_normal(key: Tensor, shape: Sequence[int], offset: float = 0.0) -> Tensor:
    """Unit normal noise from each key, with offset noise (S §2.5) when offset is not 0.

    Element e of a sample, in the order of a contiguous [C, H, W], is lane e % 4 of block e // 4.
    Offset noise adds offset · z[b, c], where z is one more normal per (sample, channel).

    key      [B, 2]  int64 holding uint32        shape  (C, H, W)
    returns  [B, C, H, W]  float32, computed in float64
    Raises InputError on a shape that is not three sizes ≥ 0, a wrong key, or an offset that is not finite.
    """
    _check_key(key)
    if len(shape) != 3 or any(size < 0 for size in shape):
        raise InputError(f"shape must be (C, H, W) with sizes of at least 0, got {tuple(shape)}")
    if not math.isfinite(offset):
        raise InputError(f"offset must be finite, got {offset}: S uses 0.05, and 0 switches it off")
    channels, height, width = map(operator.index, shape)
    noise = _normals(key, channels * height * width, NOISE_STREAM).view(len(key), channels, height, width)
    if offset != 0:
        noise = offset_noise(noise, _normals(key, channels, OFFSET_STREAM), offset)
    return noise.float()


def keyed_uniform(key: Tensor, n: int) -> Tensor:
    """n uniforms from each key, strictly inside (0, 1): (word + 1/2) / 2^32.

    key  [B, 2]  int64 holding uint32        returns  [B, n]  float64
    Raises InputError on a wrong key or a negative n.
    """
    _check_key(key)
    return _open_unit(_words(key, n, UNIFORM_STREAM))


def keyed_halves(key: Tensor, n: int, first: int = 0) -> Tensor:
    """n integers of 16 random bits from each key, from number `first` on: each word's low half, then its high one.

    key      [B, 2]  int64 holding uint32        first  a multiple of 8, the halves of a block
    returns  [B, n]  int64, 0 to 65535
    Raises InputError on a wrong key, a negative n, or a `first` that begins no block.
    """
    _check_key(key)
    if first < 0 or first % 8:
        raise InputError(f"first {first} must be a multiple of 8, the halves in a block of four words")
    words = _words(key, -(-n // 2), HALF_STREAM, first // 8)
    return torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(1)[:, :n]


class KeyedIntegers:
    """A sequence of integers from one key; stands in for a numpy Generator.

    Every call consumes the next word of the integer stream (and, with probability below
    (high - low) / 2^32, one more, so that the result is unbiased: Lemire 2019, algorithm 5).

    key  [2]  uint32 values: a tensor or a pair of ints
    """

    def __init__(self, key: Tensor | Sequence[int]):
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
        return _philox(block & WORD, block >> 32, INTEGER_STREAM, 0, *self._key)[lane]


def _seed_words(seed: int) -> tuple[int, int]:
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed} does not fit 64 bits: take one from -2^63 to 2^64 - 1")
    return seed & WORD, (seed >> 32) & WORD


def _normals(key: Tensor, n: int, stream: int) -> Tensor:
    """Unit normals [B, n] in float64, by Box–Muller on pairs of words."""
    pairs = -(-n // 2)
    words = _words(key, 2 * pairs, stream).reshape(len(key), pairs, 2)
    u = _open_unit(words[..., 0].contiguous())  # contiguous: one code path, so the same bits in any batch
    phi = 2 * math.pi * (words[..., 1].contiguous().double() / 2**32)
    r = torch.sqrt(-2 * torch.log(u))
    return torch.stack([r * torch.cos(phi), r * torch.sin(phi)], dim=-1).view(len(key), 2 * pairs)[:, :n]


def _words(key: Tensor, n: int, stream: int, first_block: int = 0) -> Tensor:
    """n words [B, n] of each key's stream, beginning with a block."""
    if n < 0:
        raise InputError(f"cannot draw {n} numbers")
    block = torch.arange(first_block, first_block - (-n // 4), device=key.device)
    counter = torch.stack(
        [block & WORD, block >> 32, torch.full_like(block, stream), torch.zeros_like(block)], dim=-1
    )
    words = philox4x32(counter, key[:, None, :])
    return words.reshape(len(key), 4 * len(block))[:, :n]


def _open_unit(words: Tensor) -> Tensor:
    return (words.double() + 0.5) / 2**32


def _check_key(key: Tensor) -> None:
    _check_words("key", key, 2)
    if key.ndim != 2:
        raise InputError(f"key must have shape [B, 2], got {list(key.shape)}")


def _check_words(name: str, words: Tensor, last: int) -> None:
    if words.dtype != torch.int64 or words.ndim == 0 or words.shape[-1] != last:
        raise InputError(
            f"{name} must be int64 of shape [..., {last}], got {words.dtype} of shape {list(words.shape)}"
        )
