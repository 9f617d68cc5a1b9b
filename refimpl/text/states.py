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

        The captions that the cache lacks are encoded together, in calls of a fixed number of rows: which they are
        changes no bit of any, so neither does caching them. Raises as `encode_prompts` does.
        """
        if self._trained:
            return encode_prompts(prompts, *self._towers, pooling=self._pooling)
        chunks = max(chunk_counts(prompts, self._towers[0]))
        states = {p: self._known[p, chunks] for p in prompts if (p, chunks) in self._known}
        lacking = [prompt for prompt in dict.fromkeys(prompts) if prompt not in states]
        if lacking:
            with torch.no_grad():
                fresh = encode_prompts(lacking, *self._towers, pooling=self._pooling, chunks=chunks)
            states |= zip(lacking, zip(*(state.split(1) for state in fresh), strict=True), strict=True)
            if lacking == list(prompts):
                self._keep(prompts, chunks, states)
                return fresh
        self._keep(prompts, chunks, states)
        context, pooled = zip(*(states[prompt] for prompt in prompts), strict=True)
        return torch.cat(context), torch.cat(pooled)

    def null(self, kind: str) -> tuple[Tensor, Tensor]:
        """`null_condition` of these towers; if they are trained, the empty prompt is encoded anew on each call."""
        if self._trained and kind == "empty":
            return null_condition(kind, *self._towers)
        if kind not in self._nulls:
            with torch.no_grad():
                self._nulls[kind] = null_condition(kind, *self._towers)
        return self._nulls[kind]

    def _keep(self, prompts: Sequence[str], chunks: int, states: dict[str, tuple[Tensor, Tensor]]) -> None:
        for prompt in prompts:
            self._known[prompt, chunks] = states[prompt]
            self._known.move_to_end((prompt, chunks))
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
