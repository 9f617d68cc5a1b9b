"""Figures of pictures and of what is known about them: buckets, tags, sizes, latents, JPEG, image prompts."""

import io

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from refimpl.data.bucket_sizes import PRESETS
from refimpl.data.buckets import assign
from refimpl.data.tags import TagCounts
from refimpl.latents.image_quality import blockiness, psnr, ssim
from refimpl.latents.pixels import from_pixels
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.report.figures import bucket_histogram, latent_table
from refimpl.report.noised_image import example_image
from refimpl.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, styled
from refimpl.text.image_tower import PIXEL_MEAN, PIXEL_STD, clip_pixels
from refimpl.text.sinusoid import sinusoidal_features

QUALITIES = (5, 10, 20, 40, 60, 80, 90, 95)  # of JPEG
JPEG_SIDE = 256  # px
TOWER_SIDE = 224  # px, of OpenCLIP ViT-bigG
PORTRAIT = (832, 1216)  # width and height, px


def figure_8() -> Figure:
    """The table of N Fig. 8."""
    return latent_table(NOVELAI_ANIME.mean, NOVELAI_ANIME.std)


def buckets() -> Figure:
    """2,000 images of uniformly drawn sizes in the buckets `novelai_v3`."""
    widths, heights = np.random.default_rng(0).integers(640, 2049, (2, 2000))
    sizes = PRESETS["novelai_v3"]
    index, error = assign(widths, heights, sizes)
    counts = np.bincount(index, minlength=len(sizes))
    used = np.flatnonzero(counts)
    return bucket_histogram([sizes[i] for i in used], counts[used].tolist(), float(error.mean()))


@styled
def tag_weights() -> Figure:
    """The factor of a tag against how often it was counted."""
    figure, (axes,) = new_figure(3.4)
    images = np.unique(np.geomspace(1, 100_000, 200).astype(int))
    for beta, colour in ((0.25, ORANGE), (0.5, BLUE), (1.0, VERMILION)):
        counts = TagCounts(beta=beta)
        for count in images:
            counts.add("general", str(count), int(count))
        axes.plot(
            images, [counts.weight({"general": [str(n)]}) for n in images], color=colour, label=f"β = {beta}"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="images with the tag", ylabel="loss weight", title="Rare tags weigh more, within limits")
    axes.legend()
    return figure


@styled
def size_features() -> Figure:
    """The features of a size, 256 for each of the six integers."""
    figure, (axes,) = new_figure(3.0)
    sizes = torch.arange(0, 2049, 16, dtype=torch.float64)
    axes.imshow(
        sinusoidal_features(sizes).T.numpy(),
        aspect="auto",
        extent=(0, 2048, 256, 0),
        cmap="PuOr",
        interpolation="nearest",
    )
    axes.grid(visible=False)
    axes.set(
        xlabel="size in pixels", ylabel="feature", title="256 features of one integer: cosines, then sines"
    )
    return figure


@styled
def jpeg_measures() -> Figure:
    """PSNR, SSIM and blockiness of a drawn landscape saved as JPEG, by quality."""
    image = example_image(JPEG_SIDE)
    original = _values(image)
    restored = [_values(_as_jpeg(image, quality)) for quality in QUALITIES]
    figure, panels = new_figure(3.0, 1, 3)
    series = (
        ("PSNR (dB)", [float(psnr(each, original)) for each in restored], BLUE),
        ("SSIM", [float(ssim(each, original)) for each in restored], GREEN),
        ("Blockiness", [float(blockiness(each)) for each in restored], VERMILION),
    )
    for axes, (name, values, colour) in zip(panels, series, strict=True):
        axes.plot(QUALITIES, values, marker=".", color=colour)
        axes.set(xlabel="JPEG quality", title=name)
    panels[2].axhline(float(blockiness(original)), color=GREY, linewidth=0.8, linestyle="--")
    return figure


@styled
def image_prompt() -> Figure:
    """A portrait, and what CLIP's image tower is given of it."""
    width, height = PORTRAIT
    left = (height - width) // 2
    image = example_image(height).crop((left, 0, left + width, height))
    seen = clip_pixels(_values(image), TOWER_SIDE)[0]
    mean, std = torch.tensor((PIXEL_MEAN, PIXEL_STD)).view(2, 3, 1, 1)
    figure, panels = new_figure(3.4, 1, 2)
    panels[0].imshow(image)
    for edge in ((height - width) / 2, (height + width) / 2):
        panels[0].axhline(edge, color="white", linewidth=1, linestyle="--")
    panels[1].imshow((seen * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
    titles = f"An image, {width}×{height} px", f"What the tower is given, {TOWER_SIDE}×{TOWER_SIDE} px"
    for axes, title in zip(panels, titles, strict=True):
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[], title=title)
    return figure


def _values(image: Image.Image) -> torch.Tensor:
    """Pixels [1, 3, H, W] in −1 … 1."""
    return from_pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)
