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

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.diffusion.offset_noise import offset_noise
from refimpl.diffusion.philox_words import (
    HALF_STREAM,
    NOISE_STREAM,
    OFFSET_STREAM,
    UNIFORM_STREAM,
    WORD,
    Purpose,
    philox_rounds,
    seed_words,
)
from refimpl.diffusion.philox_words import KeyedIntegers as KeyedIntegers
from refimpl.diffusion.philox_words import draw_key_of as draw_key_of
from refimpl.diffusion.philox_words import sample_id as sample_id
from refimpl.errors import InputError


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: four words from a counter under a key.

    counter  [..., 4]  int64 holding uint32        key  [..., 2]  int64 holding uint32
    returns  [..., 4]  int64 holding uint32; leading dimensions broadcast, bits above the 32nd are ignored
    Raises InputError on another dtype or last dimension. Source: Salmon et al. 2011, §3.3.
    """
    _check_words("counter", counter, 4)
    _check_words("key", key, 2)
    words = philox_rounds(*(counter & WORD).unbind(-1), *(key & WORD).unbind(-1))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


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
    seeds = seed_words(seed)
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
    return philox4x32(counter, torch.tensor(seeds, device=ids.device))[..., :2]


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
