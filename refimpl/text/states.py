"""Captions → text states, with a cache of recent captions while the towers are frozen."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.text.conditioning import chunk_counts, encode_prompts, null_condition
from refimpl.text.towers import Towers


class TextStates:
    """encode_prompts with an LRU cache of `capacity` captions.

    trained  the towers are being trained: nothing is cached, and gradients flow into them
    """

    def __init__(self, towers: Towers, pooling: str, capacity: int, trained: bool = False):
        self._towers, self._pooling, self._capacity, self._trained = towers, pooling, capacity, trained
        self._known: OrderedDict[tuple[str, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._nulls: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77·n, D] and pooled state [B, P], where n is the largest chunk count of these prompts.

        Every caption is encoded by itself, so caching it changes no bit. Raises as `encode_prompts` does.
        """
        if self._trained:
            return encode_prompts(prompts, *self._towers, pooling=self._pooling)
        chunks = max(chunk_counts(prompts, self._towers[0]))
        with torch.no_grad():
            states = [self._states(prompt, chunks) for prompt in prompts]
        return torch.cat([context for context, _ in states]), torch.cat([pooled for _, pooled in states])

    def null(self, kind: str) -> tuple[Tensor, Tensor]:
        """`null_condition` of these towers; if they are trained, the empty prompt is encoded anew on each call."""
        if self._trained and kind == "empty":
            return null_condition(kind, *self._towers)
        if kind not in self._nulls:
            with torch.no_grad():
                self._nulls[kind] = null_condition(kind, *self._towers)
        return self._nulls[kind]

    def _states(self, prompt: str, chunks: int) -> tuple[Tensor, Tensor]:
        key = (prompt, chunks)
        if key not in self._known:
            self._known[key] = encode_prompts([prompt], *self._towers, pooling=self._pooling, chunks=chunks)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]
