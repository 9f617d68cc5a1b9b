"""Blocks of the autoencoder (S §2.4: the architecture of Rombach et al. 2022, App. E)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # of every group norm in the published autoencoder


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions with a skip connection: [B, in, H, W] → [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:  # a key of its own only where it exists
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, added to its input: [B, C, H, W] → the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """queries: how many are answered at once, which bounds a matrix of logits; all of them when None."""
        h = self.norm(x)
        q, k, v = (_pixels(conv(h)) for conv in (self.q, self.k, self.v))
        # softmax(q kᵀ / √C) v
        if queries is None:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(queries, 2)], 2)
        h = h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


def _pixels(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, 1 head, H·W, C]"""
    return x.flatten(2).transpose(1, 2).unsqueeze(1)


class Downsample(nn.Module):
    """3×3 convolution of stride 2, padded on the right and bottom only: [B, C, H, W] → [B, C, H/2, W/2]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3×3 convolution: [B, C, H, W] → [B, C, 2H, 2W]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, then a resize if `resize` names one; keys block.j, resize.conv.

    [B, in, H, W] → [B, out, H', W'], with H' and W' halved by "downsample" and doubled by "upsample".
    """

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, resize: str | None):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        self.resize = resize
        if resize == "downsample":
            self.downsample = Downsample(out_channels)
        elif resize == "upsample":
            self.upsample = Upsample(out_channels)

    def forward(self, h: Tensor) -> Tensor:
        for block in self.block:
            h = block(h)
        return self.get_submodule(self.resize)(h) if self.resize else h


class Middle(nn.Module):
    """Residual block, attention over all pixels, residual block: [B, C, H, W] → the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, h: Tensor, queries: int | None = None) -> Tensor:
        """queries: as in AttnBlock."""
        return self.block_2(self.attn_1(self.block_1(h), queries))
