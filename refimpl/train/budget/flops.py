"""Floating-point operations of a training step, from shapes alone (S Tab. 1).

A product of matrices [m, k] and [k, n] is 2·m·k·n operations, and so is what a convolution computes. The gradient of
each has two products of that size: one for its input, unless nothing before it is trained, and one for its weights.
Norms, activations and sums are left out, as is usual: they take time by their memory traffic.
These are the operations that the step needs, not those that a run performs: what fused attention and activation
checkpointing compute again does not count (the "model FLOPs" of Chowdhery et al. 2022, "PaLM", §4.1 and App. B).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from refimpl.model.config import UNetConfig
from refimpl.run.config import Config
from refimpl.text.tokenizer import ROW_TOKENS


class Product(NamedTuple):
    """A matrix product or convolution."""

    flops: int
    """Operations for one image in the forward pass."""
    has_weights: bool = True
    """Whether a factor is a weight; in attention, both depend on the image and need a gradient."""
    needs_input_gradient: bool = True
    """Whether something before it is trained."""

    def backward(self, trains_weights: bool) -> int:
        """Operations for one image in the backward pass."""
        if not self.has_weights:
            return 2 * self.flops
        return self.flops * (trains_weights + self.needs_input_gradient)


def forward_flops(config: UNetConfig, height: int, width: int, tokens: int = ROW_TOKENS) -> int:
    """Operations of the UNet's forward pass for one image.

    height, width  of the latents, in cells      tokens  of the text that cross-attention reads
    """
    return sum(product.flops for product in _products(config, height, width, tokens))


def step_flops(
    config: UNetConfig, height: int, width: int, tokens: int = ROW_TOKENS, trains_weights: bool = True
) -> int:
    """Operations of the UNet's forward and backward pass for one image: 20.23e12 for SDXL at 1024².

    height, width   of the latents, in cells     tokens  of the text that cross-attention reads
    trains_weights  False where only adapters or an embedding are trained: gradients pass through the network, but
                    the weights need none (what the trained part itself adds is left out)
    """
    products = list(_products(config, height, width, tokens))
    return sum(product.flops + product.backward(trains_weights) for product in products)


def bucket_flops(config: Config, bucket: tuple[int, int]) -> int:
    """`step_flops` of a run for one image of a bucket (width, height), px, whose caption fits one row of tokens."""
    width, height = (side // config.vae.factor for side in bucket)
    trains_weights = not (config.lora.rank or config.image_prompt.folder)
    return step_flops(config.unet, height, width, trains_weights=trains_weights)


def _products(config: UNetConfig, height: int, width: int, tokens: int) -> Iterator[Product]:
    """Every product of `UNet.forward`, in order."""
    emb_dim = 4 * config.channels
    for features in (config.channels, config.vector_dim):
        yield Product(2 * features * emb_dim, needs_input_gradient=False)
        yield Product(2 * emb_dim * emb_dim)
    sizes = [(height, width)]
    for _ in config.channel_mult[1:]:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    cells = [h * w for h, w in sizes]
    levels = list(zip(config.widths, config.transformer_depth, cells, strict=True))

    channels = config.channels
    yield Product(2 * 9 * config.in_channels * channels * cells[0], needs_input_gradient=False)
    skips = [channels]
    for level, (out, depth, area) in enumerate(levels):
        if level > 0:
            yield Product(2 * 9 * channels * channels * area)
            skips.append(channels)
        for _ in range(config.res_blocks):
            yield from _block(channels, out, emb_dim, area)
            yield from _transformer(config, out, depth, area, tokens)
            channels = out
            skips.append(channels)

    yield from _block(channels, channels, emb_dim, cells[-1])
    yield from _transformer(config, channels, config.middle_depth, cells[-1], tokens)
    yield from _block(channels, channels, emb_dim, cells[-1])

    for level, (out, depth, area) in reversed(list(enumerate(levels))):
        for _ in range(config.res_blocks + 1):
            yield from _block(channels + skips.pop(), out, emb_dim, area)
            yield from _transformer(config, out, depth, area, tokens)
            channels = out
        if level > 0:  # the upsampled map is convolved at the next level's size
            yield Product(2 * 9 * channels * channels * cells[level - 1])
    yield Product(2 * 9 * channels * config.out_channels * cells[0])


def _block(channels: int, out: int, emb_dim: int, area: int) -> Iterator[Product]:
    """A residual block."""
    yield Product(2 * 9 * channels * out * area)
    yield Product(2 * emb_dim * out)
    yield Product(2 * 9 * out * out * area)
    if channels != out:
        yield Product(2 * channels * out * area)


def _transformer(config: UNetConfig, channels: int, depth: int, area: int, tokens: int) -> Iterator[Product]:
    """A spatial transformer of `depth` blocks."""
    if depth == 0:
        return
    square = 2 * channels * channels * area
    yield Product(square)  # proj_in
    for _ in range(depth):
        yield Product(4 * square)  # self-attention: q, k, v and the output
        yield Product(2 * 2 * channels * area * area, has_weights=False)  # q kᵀ and its product with v
        yield Product(2 * square)  # cross-attention: q and the output
        yield Product(2 * 2 * config.context_dim * channels * tokens, needs_input_gradient=False)  # k, v
        yield Product(2 * 2 * channels * area * tokens, has_weights=False)
        yield Product(12 * square)  # feed-forward: channels → 8 · channels, gated, 4 · channels → channels
    yield Product(square)  # proj_out
