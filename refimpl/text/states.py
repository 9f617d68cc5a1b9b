"""Captions → text states, each caption encoded once while it is remembered (the towers are frozen)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl.text.conditioning import chunk_counts, encode_prompts
from refimpl.text.config import Towers


class TextStates:
    """encode_prompts with a memory of the `capacity` captions used last."""

    def __init__(self, towers: Towers, pooling: str, capacity: int):
        self._towers, self._pooling, self._capacity = towers, pooling, capacity
        self._known: OrderedDict[tuple[str, int], tuple[Tensor, Tensor]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77·n, D] and pooled state [B, P], n the largest chunk count of these prompts.

        Every caption is encoded by itself, so remembering it changes no bit. Raises as `encode_prompts` does.
        """
        chunks = max(chunk_counts(prompts, self._towers[0]))
        states = [self._states(prompt, chunks) for prompt in prompts]
        return torch.cat([context for context, _ in states]), torch.cat([pooled for _, pooled in states])

    def _states(self, prompt: str, chunks: int) -> tuple[Tensor, Tensor]:
        key = (prompt, chunks)
        if key not in self._known:
            self._known[key] = encode_prompts([prompt], *self._towers, pooling=self._pooling, chunks=chunks)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]
