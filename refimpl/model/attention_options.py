"""Optional changes to the UNet's self-attention for canvases other than the training size (N refs 4, 15; R)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from refimpl.checks import check_whole_numbers
from refimpl.errors import InputError
from refimpl.model.attention import LevelAttention, SpatialTransformer
from refimpl.model.blocks import Downsample, Upsample
from refimpl.model.unet import UNet


@dataclass(frozen=True)
class AttentionOptions:
    """Changes to self-attention; all are off by default, which leaves the UNet's output unchanged bit for bit."""

    train_side: int = 0
    """side of the square training canvas, in latent cells (128 for SDXL): scales the logits on others; 0 is off"""
    window: int = 0
    """how many latent cells away a position attends to, on either axis; 0 is the whole canvas"""

    def __post_init__(self) -> None:
        check_whole_numbers(self, least={"train_side": 0, "window": 0})


def set_attention(unet: UNet, options: AttentionOptions) -> None:
    """Apply the options to a UNet's self-attention from now on. Cross-attention to the text is unchanged.

    Raises InputError if train_side leaves a level with transformers fewer than two tokens.
    """
    off = options == AttentionOptions()
    for transformer, level in transformers(unet):
        transformer.level_attention = None if off else _at_level(options, level)


@contextmanager
def using_attention(unet: UNet, options: AttentionOptions) -> Iterator[None]:
    """`set_attention` for the duration of a `with` block, then restore what was set before. Raises as that does."""
    before = [(transformer, transformer.level_attention) for transformer, _ in transformers(unet)]
    try:
        set_attention(unet, options)
        yield
    finally:
        for transformer, attention in before:
            transformer.level_attention = attention


def _at_level(options: AttentionOptions, level: int) -> LevelAttention:
    """The options at a level whose cells are 2^level latent cells wide."""
    cell = 2**level
    train_tokens = _cells(options.train_side, cell) ** 2
    if options.train_side and train_tokens < 2:
        raise InputError(
            f"AttentionOptions.train_side = {options.train_side} latent cells is one token at level {level} of the "
            "UNet, whose entropy is always 0; give the side trained on, image side / 8"
        )
    return LevelAttention(train_tokens or None, _cells(options.window, cell) or None)


def _cells(latent_cells: int, cell: int) -> int:
    """The number of cells that cover that length: Downsample rounds up."""
    return math.ceil(latent_cells / cell)


def transformers(unet: UNet) -> Iterator[tuple[SpatialTransformer, int]]:
    """Every spatial transformer, and how many times its feature map was halved."""
    level = 0
    for stage in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        for layer in stage.children():
            if isinstance(layer, SpatialTransformer):
                yield layer, level
            level += isinstance(layer, Downsample) - isinstance(layer, Upsample)
