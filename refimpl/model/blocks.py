"""Convolutional blocks of the UNet (S §2.1; the residual block of Dhariwal & Nichol 2021, §3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.model.config import Recompute
from refimpl.model.recompute import again, cheap_before
from refimpl.ops import Ops, load_ops


def zeroed(module: nn.Module) -> nn.Module:
    """Sets all parameters of the module to 0 and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def norm_silu_conv(ops: Ops, layers: nn.Sequential, x: Tensor, how: Recompute = "none") -> Tensor:
    """A GroupNorm, its SiLU and the convolution at the end of `layers`; the backend computes the first two as one."""
    norm = layers[0]
    assert isinstance(norm, nn.GroupNorm)

    def norm_silu(x: Tensor) -> Tensor:
        return ops.group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)

    return cheap_before(layers[-1], norm_silu, x, how)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension, by a backend's operation."""

    ops: Ops = load_ops("reference")

    def forward(self, input: Tensor) -> Tensor:
        return self.ops.layer_norm(input, self.weight, self.bias, self.eps)


class ResBlock(nn.Module):
    """Two 3×3 convolutions with the embedding added between them, and a skip connection.

    x [B, in, h, w]; emb [B, emb_dim], after its SiLU; returns [B, out, h, w].
    The second convolution is initialised to zero, so a new block is just its skip connection.
    """

    activation_checkpointing: Recompute = "none"
    ops: Ops = load_ops("reference")

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, groups: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        # In the published keys, slot 0 is a SiLU: it is the same for every block, so the UNet applies it once.
        self.emb_layers = nn.Sequential(nn.Identity(), nn.Linear(emb_dim, out_channels))
        last = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        # In the published keys, slot 2 is a dropout of probability 0.
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, out_channels), nn.SiLU(), nn.Identity(), last)
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        how = self.activation_checkpointing
        if how == "full" and torch.is_grad_enabled():
            return again(self._forward, x, emb)
        return self._forward(x, emb, how)

    def _forward(self, x: Tensor, emb: Tensor, how: Recompute = "none") -> Tensor:
        h = norm_silu_conv(self.ops, self.in_layers, x, how)
        h = h + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + norm_silu_conv(self.ops, self.out_layers, h, how)


class Downsample(nn.Module):
    """3×3 convolution of stride 2: [B, C, h, w] → [B, C, ⌈h/2⌉, ⌈w/2⌉]."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour resize to `size`, then a 3×3 convolution: [B, C, h, w] → [B, C, *size].

    The size is that of the skip connection to be concatenated, so odd sizes are restored exactly. The resized tensor,
    four times the input, is not kept: the backward pass resizes again. On the CPU, which has the memory, it is kept.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        def resize(x: Tensor) -> Tensor:
            return F.interpolate(x, size=size, mode="nearest")

        return cheap_before(self.conv, resize, x, "none" if x.device.type == "cpu" else "cheap")
