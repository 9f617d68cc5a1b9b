"""A run's report.html: one self-contained page made from plain numbers and images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refimpl.data.demo.photographs import Licence
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.report import figures, pictures
from refimpl.report.noised_image import noised_image
from refimpl.report.page import (
    SCRIPTS,
    Headline,
    Markup,
    charts,
    folded,
    image,
    image_grid,
    page,
    paragraph,
    table,
    verdict,
)
from refimpl.report.style import svg_bytes
from refimpl.storage.atomic import replaced_file

COLUMNS = 8  # of a grid that doesn't say how many it wants
Section = tuple[str, list[Markup]]


@dataclass(frozen=True)
class Criterion:
    """One target that the run had to reach."""

    name: str
    measured: str | float
    wanted: str
    passed: bool


@dataclass(frozen=True)
class Grid:
    """Images of one kind, each with its caption."""

    title: str
    images: Sequence[Any]  # uint8 [H, W, 3] each, sizes may differ
    captions: Sequence[str]
    note: str = ""
    columns: int | None = None


@dataclass(frozen=True)
class ReportContent:
    """The content of a report, as plain data. A part that is left out (None or empty) has no section."""

    title: str
    summary: Sequence[str] = ()  # paragraphs
    headlines: Sequence[Headline] = ()  # what matters most, and what to do next
    criteria: Sequence[Criterion] = ()
    series: Mapping[str, Any] = field(default_factory=dict)  # curves by name, as `embedded_series` gives them
    samples: Sequence[Grid] = ()
    buckets: Sequence[tuple[int, int]] = ()  # (width, height)
    bucket_counts: Sequence[int] = ()
    mean_aspect_error: float = float("nan")
    schedules: tuple[NoiseSchedule, NoiseSchedule] | None = None  # as published, with zero terminal SNR
    noised: Image.Image | None = None  # the picture that N Fig. 1 is drawn with; needs schedules
    latents_before: tuple[Any, Any] | None = None  # mean[C], std[C] as encoded
    latents_after: tuple[Any, Any] | None = None  # mean[C], std[C] standardised
    latents_reference: tuple[Any, Any] | None = None  # N Fig. 8
    weights: Mapping[str, Any] = field(default_factory=dict)  # policy → weight[T]
    weights_note: str = ""  # which policy trained, and why
    originals: Sequence[Any] = ()  # uint8 [H, W, 3], held out
    reconstructions: Sequence[Any] = ()  # the same through the VAE
    psnr: Sequence[float] = ()  # dB, one for each original
    environment: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)  # stage → seconds
    licences: Sequence[Licence] = ()


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(figure: Any, alt: str, caption: str = "") -> Markup:
    return image(svg_bytes(figure), alt, caption, kind="svg+xml")


def _criteria(content: ReportContent) -> Section:
    rows = [(c.name, _number(c.measured), c.wanted, verdict(c.passed)) for c in content.criteria]
    reached = sum(criterion.passed for criterion in content.criteria)
    line = paragraph(f"{reached} of {len(rows)} criteria reached.")
    return "Criteria", [line, table(("criterion", "measured", "wanted", "result"), rows)]


def _grid(grid: Grid) -> Markup:
    shown = [pictures.as_picture(each) for each in grid.images]
    if not shown or len(shown) != len(grid.captions):
        raise InputError(
            f"{len(shown)} images and {len(grid.captions)} labels: give one label for each image"
        )
    caption = f"{grid.title}. {grid.note}" if grid.note else grid.title
    cells = [(pictures.png(picture), label) for picture, label in zip(shown, grid.captions, strict=True)]
    return image_grid(cells, caption, grid.columns or min(COLUMNS, len(cells)))


def _buckets(content: ReportContent) -> Section:
    drawn = figures.bucket_histogram(content.buckets, content.bucket_counts, content.mean_aspect_error)
    line = paragraph(
        f"{sum(content.bucket_counts)} images in {sum(count > 0 for count in content.bucket_counts)} of "
        f"{len(content.buckets)} buckets; mean aspect error {content.mean_aspect_error:.4f} "
        f"(N's data set: {figures.N_MEAN_ASPECT_ERROR})."
    )
    return "Buckets", [line, _figure(drawn, "images in each bucket")]


def _schedule(content: ReportContent, plain: NoiseSchedule, zero_terminal: NoiseSchedule) -> Section:
    caption = "N Fig. 5: the published schedule stops short of pure noise; rescaled, it reaches σ = ∞."
    drawn = figures.schedule_figure(plain, zero_terminal)
    parts = [_figure(drawn, "noise level against timestep, two schedules", caption)]
    if content.noised is not None:
        caption = (
            "N Fig. 1: at σ = 14.6, where the published schedule ends, the lowest frequencies of a 512 × 512 "
            "image are still there; at σ = ∞ they are gone."
        )
        drawn = noised_image(content.noised, plain, zero_terminal)
        parts.append(_figure(drawn, "an image under increasing noise", caption))
    return "Schedule", parts


def _latents(content: ReportContent, before: tuple[Any, Any], after: tuple[Any, Any]) -> Section:
    drawn = figures.latent_statistics(before, after, content.latents_reference)
    tables = [("encoded", before), ("standardised", after)]
    if content.latents_reference is not None:
        tables.append(("N Fig. 8", content.latents_reference))
    rows = [
        (label, symbol, *(f"{value:.4f}" for value in np.asarray(values, dtype=np.float64)))
        for label, moments in tables
        for symbol, values in zip("μσ", moments, strict=True)
    ]
    header = ("latents", "", *(f"channel {number}" for number in range(len(rows[0]) - 2)))
    return "Latent statistics", [_figure(drawn, "mean and std of each latent channel"), table(header, rows)]


def _weights(content: ReportContent) -> Section:
    parts = [paragraph(content.weights_note)] if content.weights_note else []
    return "Loss weight by timestep", [
        *parts,
        _figure(figures.weight_mass(content.weights), "weight by timestep"),
    ]


def _reconstructions(content: ReportContent) -> Section:
    counts = {len(content.originals), len(content.reconstructions), len(content.psnr)}
    if len(counts) > 1:
        raise InputError(
            f"{len(content.originals)} originals, {len(content.reconstructions)} reconstructions and "
            f"{len(content.psnr)} PSNR values: give one of each for every image"
        )
    pairs = zip(content.originals, content.reconstructions, strict=True)
    images = [pictures.above(original, rebuilt) for original, rebuilt in pairs]
    grid = Grid("Held-out images, each above its VAE reconstruction", images,
                [f"{psnr:.1f} dB" for psnr in content.psnr])  # fmt: skip
    mean = float(np.mean(content.psnr))
    return "VAE reconstructions", [paragraph(f"Mean PSNR of those shown: {mean:.2f} dB."), _grid(grid)]


def _sections(content: ReportContent) -> list[Section]:
    sections: list[Section] = []
    if content.criteria:
        sections.append(_criteria(content))
    if content.samples:
        sections.append(("Samples", [_grid(grid) for grid in content.samples]))
    if content.series:
        sections.append(("Curves", [charts()]))
    if content.buckets:
        sections.append(_buckets(content))
    if content.schedules is not None:
        sections.append(_schedule(content, *content.schedules))
    if content.latents_before is not None and content.latents_after is not None:
        sections.append(_latents(content, content.latents_before, content.latents_after))
    if content.weights:
        sections.append(_weights(content))
    if content.originals:
        sections.append(_reconstructions(content))
    if content.environment:
        inside = table(("what", "value"), content.environment.items())
        sections.append(("Environment", [folded("Versions and machine", [inside])]))
    if content.timings:
        rows = [*content.timings.items(), ("together", sum(content.timings.values()))]
        seconds = [(stage, f"{time:.1f}") for stage, time in rows]
        sections.append(("Timings", [table(("stage", "seconds"), seconds)]))
    if content.licences:
        rows = [(each.name, each.author, each.licence, each.source) for each in content.licences]
        header = ("photograph", "author", "licence", "source")
        sections.append(
            ("Licences of the photographs", [folded(f"{len(rows)} photographs", [table(header, rows)])])
        )
    return sections


def render_report(content: ReportContent) -> str:
    """The report as one HTML page.

    Raises InputError when parts that belong together differ in length, and when matplotlib is missing.
    """
    opening = [paragraph(line) for line in content.summary]
    scripts, data = (
        (SCRIPTS, {"name": content.title, "series": content.series}) if content.series else ((), None)
    )
    return page(content.title, _sections(content), opening, content.headlines, scripts, data)


def write_report(path: str | os.PathLike[str], content: ReportContent) -> Path:
    """Write the report; the file appears whole or not at all. Raises as `render_report` does."""
    path = Path(path)
    markup = render_report(content).encode("utf-8", "backslashreplace")  # file names may hold surrogates
    with replaced_file(path, make_folder=True) as temporary:
        temporary.write_bytes(markup)
    return path
