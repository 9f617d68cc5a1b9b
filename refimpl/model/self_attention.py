"""Self-attention away from the training size: entropy scaling and neighbourhoods (N refs 4, 15; R).

A softmax over more tokens than in training is flatter, over fewer it is sharper. Jin et al. 2023 (N ref. 15, after
Chiang & Cholak 2022, N ref. 4) preserve its entropy by multiplying the logits by √(log_T N), for N tokens where
training had T. On very large canvases a position may attend to its neighbourhood only.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refimpl.model.dot_product import DotProduct, torch_choice

TILE = 16  # side of the squares of queries that share their keys; a mask is at most TILE²·(TILE + 2·radius)²


class SelfAttention(NamedTuple):
    """How the tokens of a feature map attend to each other, if not by plain attention.

    height, width  size of the feature map, whose tokens are in row-major order
    logit_scale    factor on q kᵀ / √d
    radius         how many rows and columns away a token attends to; None for the whole map
    """

    height: int
    width: int
    logit_scale: float = 1.0
    radius: int | None = None


def entropy_scale(tokens: int, train_tokens: int) -> float:
    """√(log_T N) for N ≥ 1 tokens and T ≥ 2 in training; exactly 1 if they are equal."""
    # Jin et al. 2023, §3.2: λ = √(log_T N / d), where √(1 / d) is the scale used in training
    return math.sqrt(math.log(tokens) / math.log(train_tokens))


def attend(
    q: Tensor, k: Tensor, v: Tensor, how: SelfAttention, dot_product: DotProduct = torch_choice
) -> Tensor:
    """softmax(s·q kᵀ / √d) v, for each token over its neighbourhood.

    q, k, v      [B, heads, height · width, d]        returns  as q
    dot_product  attention over the whole map; over neighbourhoods torch picks the kernel, as few take a mask
    Never materialises the matrix of all logits: a neighbourhood is computed in tiles, each with the keys near it,
    which takes height·width·(TILE + 2·radius)² products.
    """
    scale = how.logit_scale / math.sqrt(q.shape[-1])
    if how.radius is None:
        return dot_product(q, k, v, scale)
    q, k, v = (x.unflatten(2, (how.height, how.width)) for x in (q, k, v))
    rows = []
    for top in range(0, how.height, TILE):
        row = [_tile(q, k, v, (top, left), how.radius, scale) for left in range(0, how.width, TILE)]
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2).flatten(2, 3)


def _tile(q: Tensor, k: Tensor, v: Tensor, corner: tuple[int, int], radius: int, scale: float) -> Tensor:
    """The output [B, heads, ≤ TILE, ≤ TILE, d] of the tile of queries at a corner; q, k, v [B, heads, h, w, d]."""
    near: list[Tensor] = []  # per axis: which of the keys [b] each query [a] sees, [a, b]
    queries: list[slice] = []
    keys: list[slice] = []
    for size, start in zip(q.shape[2:4], corner, strict=True):
        stop = min(start + TILE, size)
        first, last = max(start - radius, 0), min(stop + radius, size)
        here = torch.arange(start, stop, device=q.device)
        there = torch.arange(first, last, device=q.device)
        near.append((here[:, None] - there).abs() <= radius)
        queries.append(slice(start, stop))
        keys.append(slice(first, last))
    of_rows, of_columns = near
    mask = (of_rows[:, None, :, None] & of_columns[None, :, None, :]).flatten(2, 3).flatten(0, 1)
    tile = q[:, :, queries[0], queries[1]]
    k, v = (x[:, :, keys[0], keys[1]].flatten(2, 3) for x in (k, v))
    out = F.scaled_dot_product_attention(tile.flatten(2, 3), k, v, attn_mask=mask, scale=scale)
    return out.unflatten(2, tile.shape[2:4])
