"""The UNet of SDXL and its refiner (S §2.1, §2.5, Tab. 1), under the keys of the published single file."""

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refimpl.checks import check_choice
from refimpl.errors import InputError
from refimpl.model.attention import GEGLU, SpatialTransformer, TransformerBlock
from refimpl.model.blocks import Downsample, LayerNorm, ResBlock, Upsample, norm_silu_conv, zeroed
from refimpl.model.casts import cast_once
from refimpl.model.config import Recompute, UNetConfig
from refimpl.model.embeddings import EmbeddingMLP
from refimpl.ops import Ops, load_ops
from refimpl.text.sinusoid import sinusoidal_features


class Stage(nn.Sequential):
    """One numbered entry of the published block lists: layers in order, each called with the inputs it takes."""

    def forward(self, h: Tensor, emb: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """h [B, C, h, w]; emb [B, E]; context [B, n, D]; size: the (h, w) that an Upsample resizes to."""
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            elif isinstance(layer, Upsample):
                h = layer(h, size)
            else:
                h = layer(h)
        return h


class UNet(nn.Module):
    """Predicts v (or eps or x0, whichever it was trained on) from noisy latents.

    config                    shape of the network
    activation_checkpointing  what the residual and transformer blocks compute again in the backward pass instead of
                              keeping it (`refimpl.model.recompute`): less memory, the same gradients

    Initialised as the published network was: PyTorch's defaults, except that the last convolution of each
    residual block, the last projection of each transformer and the output convolution are zero. A new UNet
    returns exactly zero.
    """

    ops: Ops = load_ops("reference")

    def __init__(self, config: UNetConfig, activation_checkpointing: Recompute = "none"):
        super().__init__()
        self.config = config
        emb_dim = 4 * config.channels
        self.time_embed = EmbeddingMLP(config.channels, emb_dim)
        self.label_emb = nn.Sequential(EmbeddingMLP(config.vector_dim, emb_dim))

        def res(in_channels: int, out_channels: int) -> ResBlock:
            return ResBlock(in_channels, out_channels, emb_dim, config.groups)

        def transformer(width: int, depth: int) -> list[nn.Module]:
            if depth == 0:
                return []
            return [SpatialTransformer(width, config.context_dim, config.head_dim, depth, config.groups)]

        width = config.channels
        skips = [width]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))])
        levels = list(zip(config.widths, config.transformer_depth, strict=True))
        for level, (level_width, depth) in enumerate(levels):
            if level > 0:
                self.input_blocks.append(Stage(Downsample(width)))
                skips.append(width)
            for _ in range(config.res_blocks):
                self.input_blocks.append(Stage(res(width, level_width), *transformer(level_width, depth)))
                width = level_width
                skips.append(width)

        self.middle_block = Stage(
            res(width, width), *transformer(width, config.middle_depth), res(width, width)
        )

        self.output_blocks = nn.ModuleList()
        for level, (level_width, depth) in reversed(list(enumerate(levels))):
            for block in range(config.res_blocks + 1):
                up = [Upsample(level_width)] if level > 0 and block == config.res_blocks else []
                self.output_blocks.append(
                    Stage(res(width + skips.pop(), level_width), *transformer(level_width, depth), *up)
                )
                width = level_width

        last = zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(config.groups, width), nn.SiLU(), last)
        self.set_activation_checkpointing(activation_checkpointing)

    def set_activation_checkpointing(self, how: Recompute) -> None:
        """What the blocks compute again: none, cheap or full. Raises InputError on another word."""
        check_choice("UNet.activation_checkpointing", str(how), get_args(Recompute))
        for module in self.modules():
            if isinstance(module, ResBlock | TransformerBlock):
                module.activation_checkpointing = how

    def set_ops(self, ops: Ops) -> None:
        """Compute the blocks with the operations of a backend (`refimpl.ops.load_ops`); at first, the reference's."""
        for module in self.modules():
            if isinstance(module, GEGLU | LayerNorm | ResBlock | UNet):
                module.ops = ops

    def forward(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """Prediction for noisy latents.

        x        [B, in_channels, h, w]   any h, w ≥ 1
        t        [B]                      timesteps 0..999, integer, float32 or float64; may be fractional
        context  [B, n, context_dim]      text states, n ≥ 1
        vector   [B, vector_dim]          pooled text state and size features
        returns  [B, out_channels, h, w]  in x's dtype

        Inputs are cast to the weights' dtype, t after its sinusoid. Raises InputError for other shapes and dtypes.
        """
        self._check(x, t, context, vector)
        dtype = next(self.parameters()).dtype
        context = cast_once(context.to(dtype))
        emb = self.time_embed(sinusoidal_features(t, self.config.channels).to(dtype))
        emb = emb + self.label_emb(vector.to(dtype))
        emb = F.silu(emb)  # the first step of every residual block's emb_layers

        h = x.to(dtype)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            h = stage(h, emb, context, h.shape[2:])
            skips.append(h)
        h = self.middle_block(h, emb, context, h.shape[2:])
        for stage in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            next_size = skips[-1].shape[2:] if skips else h.shape[2:]
            h = stage(h, emb, context, next_size)
        return norm_silu_conv(self.ops, self.out, h).to(x.dtype)

    def _check(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> None:
        """Checks shapes against the config, and for floating-point dtypes (t's is checked by the sinusoid)."""
        config = self.config
        batch = x.shape[0] if x.ndim else 0
        wanted = {
            "x": (x, (batch, config.in_channels, "h", "w")),
            "t": (t, (batch,)),
            "context": (context, (batch, "n", config.context_dim)),
            "vector": (vector, (batch, config.vector_dim)),
        }
        for name, (tensor, shape) in wanted.items():
            fits = tensor.ndim == len(shape) and all(
                size >= 1 if isinstance(want, str) else size == want
                for size, want in zip(tensor.shape, shape, strict=True)
            )
            if not fits:
                needed = ", ".join(map(str, shape))
                raise InputError(f"UNet.forward: {name} has shape {list(tensor.shape)}, must be [{needed}]")
            if name != "t" and not tensor.is_floating_point():
                raise InputError(f"UNet.forward: {name} has dtype {tensor.dtype}, must be floating-point")
