"""Text states encoded once and read by memory map (not from a paper; the towers are frozen, S Tab. 1).

A caption's key is (encoding, SHA-256 of the caption). Text dropout is drawn at every visit, and never cached.

Tensors of a shard of n captions that fill c chunks each:
    context [n, 77·c, D]   float32 or bfloat16
    pooled [n, P]
    captions [n, 2]        int64: first 16 bytes of the caption's SHA-256
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refimpl.data.loading.transfer import onto
from refimpl.storage.store import Int64s, Store, find_rows, open_store
from refimpl.text.cleaning import cleaning_identity
from refimpl.text.states import TextStates
from refimpl.text.towers import Towers

KIND = "text"


def text_encoding(towers: Towers, pooling: str, dtype: str) -> dict[str, object]:
    """Everything that a cached caption's states depend on besides the caption."""
    tokenizer, encoder_l, encoder_g = towers
    state = hashlib.sha256()
    for encoder in filter(None, (encoder_l, encoder_g)):
        for name, value in sorted(encoder.state_dict().items()):
            plain = value.detach().cpu().contiguous()
            state.update(f"{name} {list(plain.shape)} {plain.dtype}\n".encode())
            state.update(plain.flatten().view(torch.uint8).numpy().data)
    special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_l_id, tokenizer.pad_g_id)
    vocabulary = repr((special, sorted(tokenizer.clip.get_vocab().items()))).encode()
    return {
        "kind": KIND,
        "towers": state.hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary).hexdigest(),
        "pooling": pooling,
        "dtype": dtype,
        **cleaning_identity(tokenizer.clean),
    }


def caption_keys(captions: Sequence[str]) -> Int64s:
    """[N, 2] first 16 bytes of each caption's SHA-256, little-endian."""
    digests = b"".join(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16] for text in captions
    )
    return np.frombuffer(digests, "<i8").reshape(-1, 2).astype(np.int64)


@dataclass(frozen=True, eq=False)
class TextCache:
    """A finished cache of text states; the lookup ascends in the first half of the keys."""

    store: Store

    def rows(self, captions: Sequence[str]) -> Int64s:
        """[N] lookup row of each caption, −1 where it is not cached."""
        keys, table = caption_keys(captions), self.store.lookup["captions"]
        return find_rows(table[:, 0], table[:, 1:], keys[:, 0], keys[:, 1:])

    def states(self, row: int) -> tuple[Tensor, Tensor]:
        """Context [77·c, D] and pooled state [P]: views of the mapped file."""
        shard, place = self.store.place(row)
        return shard.tensors["context"][place], shard.tensors["pooled"][place]


def open_text(folder: Path) -> TextCache | None:
    """The text states of a cache folder; None where it was written without them.

    Raises InputError when they are unfinished, damaged, or of another version.
    """
    return TextCache(open_store(folder / KIND)) if (folder / KIND).is_dir() else None


class CachedTextStates:
    """Stands in for refimpl.text.states.TextStates: reads what is cached, and uses `towers` for other prompts."""

    def __init__(self, cache: TextCache, towers: TextStates, device: torch.device):
        self.cache, self._towers, self._device = cache, towers, device
        self._empty, _ = cache.states(int(cache.rows([""])[0]))

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77·n, D] and pooled state [B, P], float32, n the largest chunk count of these prompts.

        If all prompts are cached in float32, the bits are those that the towers give.
        """
        rows = self.cache.rows(prompts)
        if (rows < 0).any():
            return self._towers(prompts)
        states = [self.cache.states(row) for row in rows.tolist()]
        length, chunk = max(len(context) for context, _ in states), len(self._empty)
        parts = [
            part
            for context, _ in states
            for part in (context, *[self._empty] * ((length - len(context)) // chunk))
        ]
        context = torch.cat(parts).view(len(states), length, -1)
        pooled = torch.stack([pooled for _, pooled in states])
        return onto(self._device, context).float(), onto(self._device, pooled).float()

    def null(self, kind: str) -> tuple[Tensor, Tensor]:
        """The null condition, as from `TextStates.null`."""
        return self._towers.null(kind)
