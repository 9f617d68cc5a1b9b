"""Figures of the UNet: weights and operations by level, and attention on other canvases (S §2.1; N refs 4, 15)."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from refimpl.diffusion.philox import draw_key, keyed_normal
from refimpl.diffusion.philox_words import Purpose
from refimpl.model.attention import SpatialTransformer
from refimpl.model.config import UNetConfig
from refimpl.model.self_attention import entropy_scale
from refimpl.model.unet import UNet
from refimpl.report.style import BLUE, GREY, VERMILION, new_figure, styled
from refimpl.text.tokenizer import ROW_TOKENS

CANVAS = 128  # cells a side of the latents of 1024² px
KINDS = ("residual blocks and convolutions", "transformers")
CELL = 32  # px a side of a token of SDXL's lowest level
TRAINED = 1024  # px a side
SIDES = (512, 768, 1024, 1536, 2048, 3072, 4096)  # px
SPREAD = 3.0  # standard deviation of the logits that are drawn
QUERIES = 64


def shares_by_level(config: UNetConfig) -> tuple[np.ndarray, np.ndarray]:
    """Parameters, and operations of a forward pass at 1024² px, of each level's blocks: [levels, KINDS] each.

    The middle counts as the lowest level. Embeddings and the last convolution are on no level and are left out.
    """
    with torch.device("meta"):
        unet = UNet(config)
        inputs = (
            torch.empty(1, config.in_channels, CANVAS, CANVAS),
            torch.empty(1),
            torch.empty(1, ROW_TOKENS, config.context_dim),
            torch.empty(1, config.vector_dim),
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*inputs)
    counts = counter.get_flop_counts()
    per, last = config.res_blocks + 1, len(config.widths) - 1
    stages = [(f"input_blocks.{n}", n // per) for n in range(len(unet.input_blocks))]
    stages += [("middle_block", last)]
    stages += [(f"output_blocks.{n}", last - n // per) for n in range(len(unet.output_blocks))]
    parameters, operations = np.zeros((2, last + 1, len(KINDS)))
    for stage, level in stages:
        for name, module in unet.get_submodule(stage).named_children():
            kind = int(isinstance(module, SpatialTransformer))
            parameters[level, kind] += sum(each.numel() for each in module.parameters())
            operations[level, kind] += sum(counts[f"UNet.{stage}.{name}"].values())
    return parameters, operations


@styled
def network_levels() -> Figure:
    """Parameters and operations of SDXL's UNet by level."""
    config = UNetConfig.sdxl()
    figure, panels = new_figure(3.6, 1, 2)
    titles = "Parameters (millions)", "Operations of a pass at 1024² px (TFLOP)"
    names = [
        f"{CANVAS >> level}² cells,\n{width} channels,\ndepth {depth}"
        for level, (width, depth) in enumerate(zip(config.widths, config.transformer_depth, strict=True))
    ]
    for axes, values, unit, title in zip(panels, shares_by_level(config), (1e6, 1e12), titles, strict=True):
        below = np.zeros(len(names))
        for kind, colour in enumerate((GREY, BLUE)):
            axes.bar(
                np.arange(len(names)), values[:, kind] / unit, 0.6, below, color=colour, label=KINDS[kind]
            )
            below += values[:, kind] / unit
        axes.set_xticks(np.arange(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.set_title(title)
    panels[0].legend(loc="upper left")
    return figure


def mean_entropy(tokens: int, scale: float) -> float:
    """Entropy in nats of the softmax over normal logits of deviation SPREAD · scale, averaged over queries."""
    key = draw_key(0, torch.arange(QUERIES), 0, Purpose.NOISE)
    logits = SPREAD * keyed_normal(key, (1, 1, tokens)).flatten(1).double()
    log_share = (scale * logits).log_softmax(1)
    return float(-(log_share.exp() * log_share).sum(1).mean())


@styled
def attention_entropy() -> Figure:
    """How far the entropy of attention moves from the training size's, without and with the scale."""
    tokens = [(side // CELL) ** 2 for side in SIDES]
    trained = (TRAINED // CELL) ** 2
    at_training = mean_entropy(trained, 1.0)
    figure, (axes,) = new_figure(3.4)
    series = (
        ("plain logits", [1.0] * len(tokens), GREY),
        ("scaled logits", [entropy_scale(n, trained) for n in tokens], VERMILION),
    )
    for name, scales, colour in series:
        moved = [mean_entropy(n, scale) - at_training for n, scale in zip(tokens, scales, strict=True)]
        axes.plot(SIDES, moved, marker=".", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIDES, [str(side) for side in SIDES])
    axes.minorticks_off()
    axes.set(
        xlabel="side of the canvas (px)",
        ylabel="entropy less that at 1024² (nats)",
        title=f"The scale keeps attention sharper on {SIDES[-1]}² px, and wider on {SIDES[0]}² px",
    )
    axes.legend()
    return figure
