"""Transformer blocks of the UNet (S §2.1 and Tab. 1); a fused kernel never materialises the attention matrix."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from refimpl.model.blocks import LayerNorm, zeroed
from refimpl.model.config import Recompute
from refimpl.model.dot_product import DotProduct, torch_choice
from refimpl.model.projections import project
from refimpl.model.recompute import again, again_but_products, cheap_before
from refimpl.model.self_attention import SelfAttention, attend, entropy_scale
from refimpl.ops import Ops, load_ops

TRANSFORMER_NORM_EPS = 1e-6  # of the published network; its residual blocks use 1e-5


class Attention(nn.Module):
    """Multi-head attention softmax(q kᵀ / √d) v from `tokens` to `context`, or to themselves without one.

    tokens [B, n, channels]; context [B, m, context_dim]; returns [B, n, channels].
    """

    def __init__(self, channels: int, context_dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.dot_product: DotProduct = torch_choice  # another one is set by refimpl.train.placement
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(
        self, tokens: Tensor, context: Tensor | None = None, how: SelfAttention | None = None
    ) -> Tensor:
        """how  modifies self-attention; None is plain attention"""
        source = tokens if context is None else context
        return self.attend(self.to_q(tokens), self.to_k(source), self.to_v(source), how)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, how: SelfAttention | None = None) -> Tensor:
        """From the projections, q [B, n, channels] and k, v [B, m, channels], to the result."""
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        # softmax(q kᵀ / √d) v; a fused kernel, if the device has one, never materialises the n × m matrix
        heads = self.dot_product(q, k, v) if how is None else attend(q, k, v, how, self.dot_product)
        return self.to_out(heads.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, n, heads · d] → [B, heads, n, d]"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GEGLU(nn.Module):
    """Gated linear unit a · GELU(b) with (a, b) = W x + bias (Shazeer 2020, §2)."""

    ops: Ops = load_ops("reference")

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.geglu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU with four times the width, then a projection back: [B, n, channels] → [B, n, channels]."""

    def __init__(self, channels: int):
        super().__init__()
        # In the published keys, slot 1 is a dropout of probability 0.
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.after(nn.Identity(), x)

    def after(self, norm: nn.Module, x: Tensor, how: Recompute = "none") -> Tensor:
        """The feed-forward of norm(x)."""
        gate = self.net[0]
        assert isinstance(gate, GEGLU)
        packed = cheap_before(gate.proj, norm, x, how)
        return cheap_before(self.net[2], gate.ops.geglu, packed, how)


class TransformerBlock(nn.Module):
    """Pre-norm residual self-attention, cross-attention to the text, and feed-forward.

    tokens [B, n, channels]; context [B, m, context_dim]; how: modifies the self-attention; returns
    [B, n, channels].
    """

    activation_checkpointing: Recompute = "none"

    def __init__(self, channels: int, context_dim: int, head_dim: int):
        super().__init__()
        self.attn1 = Attention(channels, channels, head_dim)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_dim, head_dim)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def forward(self, tokens: Tensor, context: Tensor, how: SelfAttention | None = None) -> Tensor:
        if self.activation_checkpointing == "full" and torch.is_grad_enabled():
            return again(self._forward, tokens, context, how)
        return self._forward(tokens, context, how, self.activation_checkpointing)

    def _forward(
        self, tokens: Tensor, context: Tensor, how: SelfAttention | None, kept: Recompute = "none"
    ) -> Tensor:
        cheap = kept == "cheap" and torch.is_grad_enabled()
        q, k, v = again_but_products(self._projections, tokens) if cheap else self._projections(tokens)
        tokens = tokens + self.attn1.attend(q, k, v, how)
        q = cheap_before(self.attn2.to_q, self.norm2, tokens, kept)
        k, v = project(context, (self.attn2.to_k, self.attn2.to_v))
        tokens = tokens + self.attn2.attend(q, k, v)
        return tokens + self.ff.after(self.norm3, tokens, kept)

    def _projections(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """q, k and v of the self-attention."""
        return project(self.norm1(tokens), (self.attn1.to_q, self.attn1.to_k, self.attn1.to_v))


class LevelAttention(NamedTuple):
    """Changes to self-attention at one level of a UNet (`refimpl.model.attention_options`)."""

    train_tokens: int | None  # tokens of the feature map in training, to scale the logits; None leaves them
    radius: int | None  # farthest cells attended to; None for all

    def on(self, height: int, width: int) -> SelfAttention | None:
        """The self-attention for a feature map of this size; None if it is plain attention."""
        scale = 1.0 if self.train_tokens is None else entropy_scale(height * width, self.train_tokens)
        radius = None if self.radius is None or self.radius >= max(height, width) - 1 else self.radius
        return None if scale == 1 and radius is None else SelfAttention(height, width, scale, radius)


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the pixels of a feature map, with a residual connection.

    x [B, channels, h, w]; context [B, m, context_dim]; returns [B, channels, h, w].
    The last projection is initialised to zero, so a new block is the identity.
    """

    level_attention: LevelAttention | None = None

    def __init__(self, channels: int, context_dim: int, head_dim: int, depth: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim, head_dim) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, h·w, channels]
        tokens = self.proj_in(tokens)
        how = None if self.level_attention is None else self.level_attention.on(height, width)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, how)
        tokens = self.proj_out(tokens)
        return x + tokens.transpose(1, 2).unflatten(2, (height, width))
