"""A data set in numbers, as training would see it, before any training (N §4.1.2, §4.1.3; S Fig. 2)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.data.bucket_sizes import Bucket, Metric
from refimpl.data.buckets import assign_and_prune
from refimpl.data.images.archives import Packed
from refimpl.data.images.decode import BadImage
from refimpl.data.index.columns import Ids, TagLists
from refimpl.data.index.data_set import Index, index_of
from refimpl.data.index.index_file import FILES, Table
from refimpl.data.index.record import hashed
from refimpl.data.tags import TagCounts, count_tags, dataset_weights

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
BIN_PIXELS = 32  # side of a bin of the size density
MOST_BINS = 128  # of each axis; larger sides share the last one
WEIGHT_BINS = 16  # of the histogram of the loss weights
SHORT_EDGE = 256  # px; S Fig. 2 counts the images with an edge below it

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassSurvey:
    """Tags of one class: how many there are, and the most and least frequent with their numbers of images."""

    name: str
    distinct: int
    uses: int
    most: list[tuple[str, int]]
    least: list[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Survey:
    """A data set in numbers.

    percentiles  of width, height, megapixels and aspect (width / height), at PERCENTILES
    density      [bins, bins]  number of images by height (rows) and width (columns), in bins of BIN_PIXELS
    uncaptioned  number of images with no caption or an empty one; uncaptioned_paths lists the first few
    problems     files that can't be used, by kind
    mean_error   mean |bucket aspect − image aspect| of the images kept, as N reports it; nan if none are kept
    errors       [N]  the same for each image kept
    pruned       (path, width, height, aspect error in the chosen metric) of the images too far from every bucket
    small        number of images smaller than their bucket, which training upscales; small_paths lists the first few,
                 with their sizes
    short        number of images with an edge below SHORT_EDGE, as S Fig. 2 counts them: of all, also those pruned
    extreme      number of images kept in the narrowest or the widest bucket; extreme_paths lists the first few
    """

    images: int
    uncaptioned: int
    uncaptioned_paths: list[str]
    percentiles: dict[str, list[float]]
    density: npt.NDArray[np.int64]
    problems: dict[str, list[BadImage]]
    buckets: list[Bucket]
    bucket_counts: list[int]
    mean_error: float
    errors: Numbers
    pruned: list[tuple[str, int, int, float]]
    small: int
    small_paths: list[str]
    short: int
    extreme: int
    extreme_paths: list[str]
    classes: list[ClassSurvey]


def survey(
    table: Table,
    buckets: Sequence[Bucket],
    metric: Metric = "log",
    max_log_error: float = math.inf,
    listed: int = 5,
) -> Survey:
    """Survey a whole data set; nothing but the table is read.

    listed  how many of each class's most and least frequent tags, and of the images without a caption, to name
    Raises InputError as `buckets.assign_and_prune` does.
    """
    index = index_of(table)
    widths, heights = index.widths, index.heights
    assigned = assign_and_prune(widths, heights, buckets, metric, max_log_error)
    kept = ~assigned.pruned
    across, down = np.array(buckets, np.int64).T
    chosen = assigned.index[kept]
    errors = np.abs(across[chosen] / down[chosen] - widths[kept] / heights[kept])
    small = (widths[kept] < across[chosen]) | (heights[kept] < down[chosen])
    aspects = across / down
    extreme = np.isin(aspects[chosen], [aspects.min(), aspects.max()])
    problems: dict[str, list[BadImage]] = {}
    for bad in index.quarantined:
        problems.setdefault(bad.kind, []).append(bad)
    pruned = [
        (os.fspath(index.paths[row]), int(widths[row]), int(heights[row]), float(assigned.error[row]))
        for row in np.flatnonzero(assigned.pruned).tolist()
    ]
    uncaptioned = np.flatnonzero(np.diff(table.arrays["caption.ends"], prepend=0) == 0)
    return Survey(
        images=len(index),
        uncaptioned=len(uncaptioned),
        uncaptioned_paths=[os.fspath(index.paths[row]) for row in uncaptioned[:listed].tolist()],
        percentiles=_percentiles(widths, heights),
        density=_density(widths, heights),
        problems=problems,
        buckets=list(buckets),
        bucket_counts=np.bincount(chosen, minlength=len(buckets)).tolist(),
        mean_error=float(errors.mean()) if errors.size else math.nan,
        errors=errors,
        pruned=pruned,
        small=int(small.sum()),
        small_paths=_sized(index, np.flatnonzero(kept)[small][:listed]),
        short=int((np.minimum(widths, heights) < SHORT_EDGE).sum()),
        extreme=int(extreme.sum()),
        extreme_paths=_sized(index, np.flatnonzero(kept)[extreme][:listed]),
        classes=classes(count_tags(index.tags, TagCounts()), listed),
    )


def _sized(index: Index, rows: npt.NDArray[np.int64]) -> list[str]:
    """The images' paths, with their sizes."""
    return [
        f"{os.fspath(index.paths[row])} ({index.widths[row]} × {index.heights[row]} px)"
        for row in rows.tolist()
    ]


def _percentiles(widths: npt.NDArray[np.int64], heights: npt.NDArray[np.int64]) -> dict[str, list[float]]:
    values = {
        "width (px)": widths,
        "height (px)": heights,
        "megapixels": widths * heights / 1e6,
        "aspect": widths / heights,
    }
    return {name: np.percentile(array, PERCENTILES).tolist() for name, array in values.items() if array.size}


def _density(widths: npt.NDArray[np.int64], heights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    row = np.minimum(heights // BIN_PIXELS, MOST_BINS - 1)
    column = np.minimum(widths // BIN_PIXELS, MOST_BINS - 1)
    return np.bincount(row * MOST_BINS + column, minlength=MOST_BINS**2).reshape(MOST_BINS, MOST_BINS)


def classes(counts: TagCounts, listed: int) -> list[ClassSurvey]:
    """The tag classes sorted by name, each with its most and least frequent tags; ties are sorted by name."""
    found = []
    for name, tags in sorted(counts.counts.items()):
        ranked = sorted(tags.items(), key=lambda pair: (-pair[1], pair[0]))
        least = sorted(ranked, key=lambda pair: (pair[1], pair[0]))[:listed]
        found.append(ClassSurvey(name, len(ranked), sum(tags.values()), ranked[:listed], least))
    return found


@dataclass(frozen=True, eq=False)
class WeightSurvey:
    """Loss weights of a data set (N §4.3; the formula is not from a paper).

    edges, images  [bins + 1], [bins]  histogram of the weights, with bins of equal width on a log scale
    heaviest, lightest  (weight, id, tags by class) of the images with the highest and lowest weights, extremes first
    """

    count: int
    edges: list[float]
    images: list[int]
    heaviest: list[tuple[float, str, dict[str, tuple[str, ...]]]]
    lightest: list[tuple[float, str, dict[str, tuple[str, ...]]]]
    classes: list[ClassSurvey]


def weight_survey(table: Table, counts: TagCounts, listed: int = 5) -> WeightSurvey:
    """Add a data set's tags to `counts`, weight every image, and list the extremes; ties are sorted by id."""
    tags, ids = TagLists(table), Ids(table)
    weights = dataset_weights(tags, count_tags(tags, counts))
    if not len(weights):
        return WeightSurvey(0, [1.0, 1.0], [0], [], [], [])
    low, high = float(weights.min()), float(weights.max())
    edges = np.geomspace(low, high, WEIGHT_BINS + 1) if high > low * (1 + 1e-9) else np.array([low, high])
    places = np.clip(np.searchsorted(edges, weights, side="right") - 1, 0, len(edges) - 2)

    def extremes(keys: Numbers) -> list[tuple[float, str, dict[str, tuple[str, ...]]]]:
        return [
            (float(weights[row]), ids[row], tags[row])
            for row in np.argsort(keys, kind="stable")[:listed].tolist()
        ]

    return WeightSurvey(
        count=len(weights),
        edges=edges.tolist(),
        images=np.bincount(places, minlength=len(edges) - 1).tolist(),
        heaviest=extremes(-weights),
        lightest=extremes(weights),
        classes=classes(counts, listed),
    )


def changed_files(table: Table) -> list[BadImage]:
    """Images that vanished or changed since they were indexed: by size, and by SHA-256 if the index has hashes."""
    index: Index = index_of(table)
    sizes, hashes = table.arrays["size"], table.arrays.get("sha256")
    plain = np.array([container[0] == FILES for container in table.facts["containers"]], bool)
    problems = []
    for row in range(len(index)):
        source = table.path
        try:
            source = index.paths[row]
            if plain[table.arrays["container"][row]]:
                found = os.stat(source).st_size
                if found != sizes[row]:
                    reason = f"it has {found} bytes, but had {sizes[row]} when it was indexed; index it again"
                    raise BadImage(source, reason, "changed")
            elif isinstance(source, Packed):
                source.open().close()
            if hashes is not None and hashed(source) != hashes[row].tobytes():
                raise BadImage(
                    source, "its SHA-256 is not the one that was indexed; index it again", "changed"
                )
        except BadImage as error:
            problems.append(error)
        except FileNotFoundError:
            problems.append(BadImage(source, "there is no such file", "missing"))
        except OSError as error:
            problems.append(BadImage(source, str(error.strerror or error), "changed"))
    return problems
