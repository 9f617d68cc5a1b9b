"""Shapes of networks, and LoRAs of their layers."""

import math

import torch
from hypothesis import strategies as st

from refimpl.latents.vae import VAEConfig
from refimpl.model.unet import UNetConfig
from tests.strategies.values import latents

# --- networks ---


@st.composite
def unet_configs(draw: st.DrawFn, size_features: int = 48) -> UNetConfig:
    """Small UNets: one to three levels, transformers on any of them, arbitrary widths and depths.

    As in diffusers, the oracle, the first multiplier is 1, and the middle is as deep as the last level if that
    has transformers.
    """
    groups, head_dim = draw(st.sampled_from(((1, 2), (2, 6), (3, 3), (4, 8), (5, 10))))
    unit = math.lcm(groups, head_dim, 2)
    levels = draw(st.integers(1, 3))
    middle = draw(st.integers(1, 2))
    depths = draw(st.lists(st.integers(0, 2), min_size=levels - 1, max_size=levels - 1))
    return UNetConfig(
        in_channels=draw(st.integers(1, 5)),
        out_channels=draw(st.integers(1, 5)),
        channels=unit * draw(st.integers(1, 2)),
        channel_mult=(1, *draw(st.lists(st.integers(1, 3), min_size=levels - 1, max_size=levels - 1))),
        transformer_depth=(*depths, draw(st.sampled_from((0, middle)))),
        middle_depth=middle,
        res_blocks=draw(st.integers(1, 3)),
        head_dim=head_dim,
        context_dim=draw(st.integers(1, 13)),
        vector_dim=size_features + draw(st.integers(1, 9)),
        groups=groups,
    )


@st.composite
def vae_configs(draw: st.DrawFn) -> VAEConfig:
    """Small autoencoders: one to four levels, arbitrary widths."""
    groups = draw(st.sampled_from((1, 2, 3, 4)))
    levels = draw(st.integers(1, 4))
    return VAEConfig(
        image_channels=draw(st.integers(1, 4)),
        latent_channels=draw(st.integers(1, 5)),
        channels=groups * draw(st.integers(1, 3)),
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        res_blocks=draw(st.integers(1, 2)),
        groups=groups,
    )


# --- LoRA ---


LORA_ALPHAS = (1e-30, 0.5, 1.0, 16.0, 1e30)  # extremes included: only alpha / rank · up · down has a size


def lora_alphas() -> st.SearchStrategy[float]:
    """Positive and finite in float32."""
    return st.sampled_from(LORA_ALPHAS) | st.floats(2.0**-10, 2.0**10, width=32)


@st.composite
def layers_to_adapt(draw: st.DrawFn) -> tuple[torch.nn.Linear | torch.nn.Conv2d, torch.Tensor]:
    """A float64 Linear or Conv2d of any geometry, and an input for it; the batch may be empty."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    wide, out = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        x = draw(latents((draw(st.integers(0, 3)), draw(st.integers(1, 4)), 1, wide)))
        return torch.nn.Linear(wide, out, bias).double(), draw(st.sampled_from((x, x[:, 0], x[:, 0, 0])))
    conv = torch.nn.Conv2d(
        wide,
        out,
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        bias=bias,
        padding_mode=draw(st.sampled_from(("zeros", "circular"))),
    ).double()
    sides = (draw(st.integers(5, 8)), draw(st.integers(5, 8)))
    return conv, draw(latents((draw(st.integers(0, 3)), wide, *sides)))


def lora_targets() -> st.SearchStrategy[tuple[str, ...]]:
    """Patterns that every SDXL-shaped UNet with a transformer on its last level has modules for."""
    patterns = (
        "*.attn1.to_q",
        "*.attn2.*",
        "*.transformer_blocks.*",
        "*.ff.net.2",
        "*.proj_*",
        "*.in_layers.2",
        "*.emb_layers.1",
        "*_blocks.*.0.out_layers.3",
        "time_embed.[02]",
        "label_emb.*",
        "input_blocks.0.0",
        "out.2",
        "*",
    )
    return st.lists(st.sampled_from(patterns), min_size=1, max_size=4).map(tuple)


def sides() -> st.SearchStrategy[int]:
    """A side of a latent: 1, odd, divisible by 2 at every level, or only once."""
    return st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 12, 13))
