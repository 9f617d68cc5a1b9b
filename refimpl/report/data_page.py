"""A data set's survey as lines for the terminal and as one HTML page; tags and names are escaped as data."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from refimpl.data.bucket_sizes import Bucket
from refimpl.data.survey.plan_survey import PlannedEpoch
from refimpl.data.survey.survey import BIN_PIXELS, PERCENTILES, SHORT_EDGE, ClassSurvey, Survey, WeightSurvey
from refimpl.printable import printable
from refimpl.report import data_figures, figures
from refimpl.report.headlines.data_set import data_headlines
from refimpl.report.page import Markup, folded, image, page, paragraph, phrase, table
from refimpl.report.style import svg_bytes

BUCKETS = "buckets"  # heading of their table
BAR = 40  # characters of the longest bar in the terminal

# A sentence and the data in it, for the terminal (str.format) or for the page (phrase).
Phrase = Callable[..., str]
Part = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]  # heading, header, rows


def survey_lines(
    source: str, found: Survey, listed: int, plans: Sequence[PlannedEpoch] = (), no_plan: str = ""
) -> Iterator[str]:
    """The lines that `refimpl data check` prints. no_plan  why no plan could be made; empty where one was"""
    yield f"{found.images} images in {printable(source, kept='')}"
    yield from _summary(found)
    tables = [*_tables(found, listed, no_plan, str.format), *_plan_tables(plans, found.buckets)]
    for heading, header, rows in tables:
        yield ""
        yield heading
        yield from _aligned([header, *rows])


def weight_lines(source: str, found: WeightSurvey) -> Iterator[str]:
    """The lines that `refimpl data tags` prints."""
    yield f"{found.count} images in {printable(source, kept='')}; loss weights, mean 1:"
    most = max([1, *found.images])
    for low, high, count in zip(found.edges, found.edges[1:], found.images, strict=False):
        yield f"  {low:8.5g} – {high:<8.5g} {'█' * math.ceil(BAR * count / most):<{BAR}} {count}"
    for heading, header, rows in _weight_tables(found, str.format):
        yield ""
        yield heading
        yield from _aligned([header, *rows])


def survey_page(
    source: str, found: Survey, listed: int, plans: Sequence[PlannedEpoch] = (), no_plan: str = ""
) -> str:
    """The survey as a self-contained HTML page. Raises InputError when matplotlib is missing."""
    source = printable(source, kept="")
    density = data_figures.size_density(found.density, BIN_PIXELS, found.buckets)
    used = [place for place, count in enumerate(found.bucket_counts) if count] or range(len(found.buckets))
    histogram = figures.bucket_histogram(
        [found.buckets[place] for place in used],
        [found.bucket_counts[place] for place in used],
        found.mean_error,
    )
    errors = data_figures.aspect_errors(found.errors, found.mean_error)
    drawn = [
        (
            "Sizes",
            [
                _figure(
                    density, "images by height and width", "Height and width of the images, as in S Fig. 2."
                )
            ],
        ),
        (
            "Aspects",
            [_figure(histogram, "images in each bucket"), _figure(errors, "aspect errors of the images")],
        ),
    ]
    opening = [
        paragraph(f"{found.images} images in {source}"),
        paragraph(_summary(found)[0]),
    ]
    tables = [*_tables(found, listed, no_plan, phrase), *_plan_tables(plans, found.buckets)]
    headlines = data_headlines(found, listed, plans, no_plan)
    return page(f"Data set {source}", [*drawn, *_sections(tables)], opening, headlines)


def weight_page(source: str, found: WeightSurvey) -> str:
    """The weights as a self-contained HTML page. Raises InputError when matplotlib is missing."""
    source = printable(source, kept="")
    histogram = data_figures.weight_histogram(found.edges, found.images)
    drawn = [
        ("Loss weights", [_figure(histogram, "images by loss weight", "Images by loss weight (N §4.3).")])
    ]
    opening = [paragraph(f"{found.count} images in {source}")]
    return page(f"Tags of {source}", [*drawn, *_sections(_weight_tables(found, phrase))], opening)


def _sections(parts: Sequence[Part]) -> list[tuple[str, list[Markup]]]:
    return [
        (heading, _bucket_tables(header, rows) if heading == BUCKETS else [table(header, rows)])
        for heading, header, rows in parts
    ]


def _bucket_tables(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Markup]:
    """The buckets with images, and those without folded away."""
    used, empty = [row for row in rows if row[3]], [row for row in rows if not row[3]]
    shown = [table(header, used)] if used else []
    return [*shown, *([folded(f"{len(empty)} empty buckets", [table(header, empty)])] if empty else [])]


def _figure(figure: Any, alt: str, caption: str = "") -> Markup:
    return image(svg_bytes(figure), alt, caption, kind="svg+xml")


def _summary(found: Survey) -> list[str]:
    used = sum(count > 0 for count in found.bucket_counts)
    bad = sum(map(len, found.problems.values()))
    return [
        f"mean |aspect error|: {found.mean_error:.4f} (N §4.1.3: {figures.N_MEAN_ASPECT_ERROR}); "
        f"{used} of {len(found.buckets)} buckets used",
        f"left out: {bad}; pruned, too far from every bucket: {len(found.pruned)}",
        f"smaller than their bucket, and so upscaled: {found.small}; without a caption: {found.uncaptioned}",
        f"with an edge below {SHORT_EDGE} px: {found.short}, {found.short / max(found.images, 1):.2%} "
        f"(S Fig. 2: {figures.S_SHORT_SHARE:.0%})",
    ]


def _tables(found: Survey, listed: int, no_plan: str, words: Phrase) -> list[Part]:
    parts: list[Part] = []
    if no_plan:
        parts.append(("problem: plan, 1", ("reason",), [(f"no plan of epoch 0: {no_plan}",)]))
    for kind, problems in sorted(found.problems.items()):
        rows: list[tuple[Any, ...]] = [(words("{}: {}", bad.path, bad.reason),) for bad in problems[:listed]]
        parts.append(
            (f"problem: {kind}, {len(problems)}", ("file and reason",), [*rows, *_more(problems, listed)])
        )
    if found.uncaptioned:
        named: list[tuple[Any, ...]] = [(path,) for path in found.uncaptioned_paths[:listed]]
        if found.uncaptioned > len(named):
            named.append((f"and {found.uncaptioned - len(named)} more",))
        parts.append((f"without a caption, {found.uncaptioned}", ("file",), named))
    if found.pruned:
        rows = [(path, width, height, f"{error:.3f}") for path, width, height, error in found.pruned[:listed]]
        header = ("pruned", "width", "height", "aspect error")
        parts.append((f"pruned images, {len(found.pruned)}", header, [*rows, *_more(found.pruned, listed)]))
    if found.percentiles:
        header = ("percentile", *(f"{percent} %" for percent in PERCENTILES))
        rows = [(name, *(f"{value:.4g}" for value in values)) for name, values in found.percentiles.items()]
        parts.append(("sizes and aspects", header, rows))
    order = sorted(
        range(len(found.buckets)), key=lambda bucket: found.buckets[bucket][0] / found.buckets[bucket][1]
    )
    total = max(1, sum(found.bucket_counts))
    rows = [
        (width, height, f"{width / height:.3f}", found.bucket_counts[bucket],
         f"{found.bucket_counts[bucket] / total:.2%}")
        for bucket in order for width, height in [found.buckets[bucket]]
    ]  # fmt: skip
    parts.append((BUCKETS, ("width", "height", "aspect", "images", "share"), rows))
    return [*parts, *_class_tables(found.classes, words)]


def _plan_tables(plans: Sequence[PlannedEpoch], buckets: Sequence[Bucket]) -> list[Part]:
    if not plans:
        return []
    reports, modes = [each.report for each in plans], [each.mode for each in plans]
    rows: list[tuple[Any, ...]] = [
        ("steps", *(each.steps for each in reports)),
        ("images dropped", *(each.dropped.size for each in reports)),
        ("batches of leftovers from several buckets", *(f"{each.catch_all_share:.2%}" for each in reports)),
        ("ranks' time waiting for a step's largest shape", *(f"{each.idle_share:.2%}" for each in reports)),
    ]
    batches = [
        (width, height, *counts)
        for (width, height), counts in zip(
            buckets, zip(*(each.batches_per_bucket.tolist() for each in reports), strict=True), strict=True
        )
        if any(counts)
    ]
    parts: list[Part] = [
        ("plan of epoch 0, by mode", ("", *modes), rows),
        ("batches of epoch 0, by mode", ("width", "height", *modes), batches),
    ]
    for each in plans:
        if each.dropped:
            named: list[tuple[Any, ...]] = [(name,) for name in each.dropped]
            if each.report.dropped.size > len(named):
                named.append((f"and {each.report.dropped.size - len(named)} more",))
            parts.append((f"dropped in epoch 0, mode {each.mode}", ("id",), named))
    return parts


def _weight_tables(found: WeightSurvey, words: Phrase) -> list[Part]:
    parts: list[Part] = []
    for heading, images in (("heaviest images", found.heaviest), ("lightest images", found.lightest)):
        rows: list[tuple[Any, ...]] = [
            (f"{weight:.5g}", name, words("; ").join(_of_class(*each, words) for each in by_class.items()))
            for weight, name, by_class in images
        ]
        parts.append((heading, ("weight", "id", "tags"), rows))
    return [*parts, *_class_tables(found.classes, words)]


def _of_class(name: str, tags: Sequence[str], words: Phrase) -> str:
    return words("{}: " + ", ".join(["{}"] * len(tags)), name, *tags)


def _class_tables(classes: Sequence[ClassSurvey], words: Phrase) -> list[Part]:
    rows: list[tuple[Any, ...]] = [
        (each.name, each.distinct, each.uses, _ranked(each.most, words), _ranked(each.least, words))
        for each in classes
    ]
    return [("tags", ("class", "tags", "uses", "most frequent", "least frequent"), rows)] if rows else []


def _ranked(tags: Sequence[tuple[str, int]], words: Phrase) -> str:
    return words(", ").join(words("{} ({})", tag, count) for tag, count in tags)


def _more(entries: Sequence[object], listed: int) -> list[tuple[str]]:
    return [(f"and {len(entries) - listed} more",)] if len(entries) > listed else []


def _aligned(rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    cells = [[printable(str(cell), kept="") for cell in row] for row in rows]
    wide = max(map(len, cells))
    widths = [max(len(row[column]) for row in cells if len(row) == wide) for column in range(wide)]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield ("  " + "  ".join(padded)).rstrip()
