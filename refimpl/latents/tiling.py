"""The autoencoder one layer after another, each over strips of rows: the whole picture's result in less memory.

Not from a paper. Tiles that pass through the whole network one by one are another network: a group norm takes its
statistics from one tile, and attention sees no other. Here every layer is finished before the next begins. A 3×3
convolution is given the row above and the row below its strip, so its rows are those of the whole picture; a group
norm's mean and variance are merged over all strips, in float64; the middle works at the latents' resolution and is
applied whole, but its attention answers some of the queries at a time, each with all of the keys. What is left to
differ is the order in which sums are rounded.

Memory: between layers lie the maps of one residual block, its input and its output, and nothing else of the
picture's size. That is at most 2 · channels values per pixel while encoding and 3 · channels while decoding, where
the last level begins with twice the channels: 1 KiB and 1.5 KiB per pixel for SDXL's autoencoder in float32. What a
layer needs beside them, such as activations and a convolution's columns, is the size of a strip. There is no
gradient: blocks overwrite their own maps.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.latents.vae_blocks import Level, Middle, ResnetBlock
from refimpl.latents.welford import merge_moments

QUERIES = 1024  # pixels of the latents that attention answers at once: their logits are 4 KiB for each pixel of them
Layer = Callable[[Tensor, int], Tensor]  # a map and the rows of a strip → the next map


def encode_in_strips(
    conv_in: nn.Conv2d, levels: Iterable[nn.Module], mid: Middle, norm: nn.GroupNorm, conv_out: nn.Conv2d,
    images: Tensor, rows: int,
) -> Tensor:  # fmt: skip
    """The encoder of these layers: [B, 3, H, W] → [B, 2 · latent, H/f, W/f]; rows as in `in_strips`, and even."""
    layers = [_convolved(conv_in), *_of_levels(levels), _whole(mid), _normed(norm, conv_out)]
    return _through(layers, images, rows)


def decode_in_strips(
    conv_in: nn.Conv2d, mid: Middle, levels: Iterable[nn.Module], norm: nn.GroupNorm, conv_out: nn.Conv2d,
    latents: Tensor, rows: int,
) -> Tensor:  # fmt: skip
    """The decoder of these layers: [B, latent, h, w] → [B, 3, f·h, f·w]; rows as in `in_strips`."""
    layers = [_convolved(conv_in), _whole(mid), *_of_levels(levels), _normed(norm, conv_out)]
    return _through(layers, latents, rows)


def spans(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """The strips of a map: first row, and last row + 1."""
    return ((first, min(first + rows, height)) for first in range(0, height, rows))


def in_strips(
    function: Callable[[Tensor], Tensor], x: Tensor, rows: int, halo: int, up: int = 1, down: int = 1
) -> Tensor:
    """`function` of a map, applied to one strip after another.

    x         [B, C, H, W], with down dividing H, rows and halo
    function  [B, C, n · down, W] → [B, D, n · up, W']; a row of its result depends on its own row of x and on at most
              `halo` rows of x on each side of it; outside of what it is given it assumes what it assumes outside x
    rows      of x in a strip
    returns   [B, D, H · up / down, W'], what function(x) is
    """
    height, out = x.shape[2], None
    for first, last in spans(height, rows):
        above, below = min(halo, first), min(halo, height - last)
        part = function(x[:, :, first - above : last + below])
        part = part[:, :, above * up // down : part.shape[2] - below * up // down]
        if out is None:  # the channels, the width and the dtype are the function's to choose
            out = part.new_empty((*part.shape[:2], height * up // down, part.shape[3]))
        out[:, :, first * up // down : last * up // down] = part
    assert out is not None  # a map has rows
    return out


def group_scale_shift(norm: nn.GroupNorm, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """What a group norm multiplies a map [B, C, H, W] by and adds to it: [B, C, 1, 1] each, float32 or wider."""
    count, mean, m2 = 0, x.new_zeros((), dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
    for first, last in spans(x.shape[2], rows):
        values = x[:, :, first:last].double().unflatten(1, (norm.num_groups, -1)).flatten(2)
        own = values.mean(2)
        deviations = (values - own[:, :, None]).square().sum(2)
        count, mean, m2 = merge_moments(count, mean, m2, values.shape[2], own, deviations)
    rstd = torch.rsqrt(m2 / count + norm.eps).repeat_interleave(x.shape[1] // norm.num_groups, 1)
    scale = rstd * norm.weight.double()
    shift = norm.bias.double() - mean.repeat_interleave(x.shape[1] // norm.num_groups, 1) * scale
    wide = torch.promote_types(x.dtype, torch.float32)
    return scale[:, :, None, None].to(wide), shift[:, :, None, None].to(wide)


def residual_in_strips(block: ResnetBlock, x: Tensor, rows: int) -> Tensor:
    """A residual block's output, written over its own map between the convolutions; x is not changed."""
    h = _normed(block.norm1, block.conv1)(x, rows)
    second = _activated(block.norm2, block.conv2, h, rows)
    above = h[:, :, :0]  # the row above the strip, as it was before it was overwritten
    for first, last in spans(x.shape[2], rows):
        part = torch.cat([above, h[:, :, first : last + 1]], 2)
        start = above.shape[2]
        above = h[:, :, last - 1 : last].clone()
        residual = second(part)[:, :, start : start + last - first]
        skip = x[:, :, first:last]
        if hasattr(block, "nin_shortcut"):
            skip = block.nin_shortcut(skip)
        h[:, :, first:last] = skip + residual
    return h


def _through(layers: Iterable[Layer], x: Tensor, rows: int) -> Tensor:
    """One layer after another; nothing but the map between two of them is kept."""
    for layer in layers:
        x = layer(x, rows)
    return x


def _of_levels(levels: Iterable[nn.Module]) -> Iterator[Layer]:
    for level in levels:
        assert isinstance(level, Level)
        for block in level.block:
            assert isinstance(block, ResnetBlock)
            yield partial(residual_in_strips, block)
        if level.resize == "downsample":  # two rows above, where one would do, keep the start even
            yield partial(in_strips, level.downsample, halo=2, down=2)
        elif level.resize == "upsample":
            yield partial(in_strips, level.upsample, halo=1, up=2)


def _convolved(convolution: nn.Conv2d) -> Layer:
    return partial(in_strips, convolution, halo=1)


def _whole(mid: Middle) -> Layer:
    return lambda x, rows: mid(x, QUERIES)


def _normed(norm: nn.GroupNorm, convolution: nn.Conv2d) -> Layer:
    return lambda x, rows: in_strips(_activated(norm, convolution, x, rows), x, rows, halo=1)


def _activated(
    norm: nn.GroupNorm, convolution: nn.Conv2d, x: Tensor, rows: int
) -> Callable[[Tensor], Tensor]:
    """Group norm with the statistics of all of x, SiLU, 3×3 convolution: a function of a strip."""
    scale, shift = group_scale_shift(norm, x, rows)
    return lambda part: convolution(F.silu((part * scale + shift).to(part.dtype)))
