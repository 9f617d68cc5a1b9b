"""A stage's images, read and assigned to its buckets, and what is known of each before training (N §4.1.2, §4.3)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refimpl.data.buckets import assign_and_prune, pixel_budget_batch_sizes
from refimpl.data.config import DataConfig
from refimpl.data.demo.data_set import HELDOUT, TRAIN, write_demo_images
from refimpl.data.index.data_set import Index, read_source
from refimpl.data.loading.loader import ImageCache
from refimpl.data.scores import take_scores
from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.diffusion.philox import sample_id
from refimpl.errors import InputError
from refimpl.names import near_path
from refimpl.progress import Progress
from refimpl.run.config import Config, Stage, TrainConfig
from refimpl.text.config import TextConfig


@dataclass(frozen=True)
class StageData:
    """One stage's images, assigned to its buckets, and what is precomputed for each image."""

    stage: Stage
    index: Index
    buckets: list[tuple[int, int]]
    bucket_of: np.ndarray  # [N] int64
    draw_ids: Tensor  # [N] int64: refimpl.diffusion.philox.sample_id of each id
    tag_weights: Tensor  # [N] float32, mean 1
    scores: Tensor | None  # [N] float32: aesthetic scores, where the network is conditioned on them
    cache: ImageCache | None  # decoded images, where this process loads them itself


def write_demo_data(settings: DataConfig) -> None:
    """Draws the demonstration data set where `data.demo` asks for it and the folder does not exist.

    Raises InputError for a folder that is not there and not the demonstration's own, which is `train` beside the
    `heldout` of `data.heldout`: its name was probably mistyped.
    """
    folder = Path(settings.folder)
    if not settings.demo or folder.exists():
        return
    if (folder, folder.with_name(HELDOUT)) != (folder.with_name(TRAIN), Path(settings.heldout)):
        raise InputError(
            f"data.folder {settings.folder}: there is no such folder{near_path(folder)}; the demonstration's images "
            f"are drawn only where data.folder ends in {TRAIN} and data.heldout is {HELDOUT} beside it"
        )
    with Progress(None, "demo images", "images") as progress:

        def drawn(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.done)

        write_demo_images(folder.parent, progress=drawn)


def read_stage(
    config: Config, stage: Stage, quarantined: Mapping[str, str] | None = None, is_told: bool = True
) -> StageData:
    """Indexes a stage's folder, assigns its images to the stage's buckets and weights them by their tags.

    quarantined  id → reason, of images left out because they are known to be unusable
    is_told      whether the images that are left out or pruned are listed; one rank is enough
    Raises InputError when the stage names no folder, or its folder cannot be read.
    """
    data = config.data
    classes = tag_classes(data, config.text)
    index = read_source(folder_of(stage), classes, data.allow_missing, data.allow_outside)
    left_out = [str(bad) for bad in index.quarantined]
    index, known = _without(index, quarantined or {})
    left_out += known
    buckets = stage.buckets.sizes()
    limit = config.data.max_aspect_error or math.inf
    assigned = assign_and_prune(index.widths, index.heights, buckets, config.data.aspect_metric, limit)
    for line in left_out if is_told else ():
        tqdm.write(f"left out: {line}")
    for item in np.flatnonzero(assigned.pruned) if is_told else ():
        size = f"{index.widths[item]}×{index.heights[item]}"
        tqdm.write(
            f"pruned {index.paths[int(item)]}: {size} is {assigned.error[item]:.3f} from the nearest bucket"
        )
    kept = np.flatnonzero(~assigned.pruned)
    index, bucket_of = index.take(kept), assigned.index[kept]
    scores = None
    if config.text.vector == "score":
        index, values = take_scores(index, config.data.score_class, config.data.default_score)
        scores = torch.from_numpy(values)
    weights = np.ones(len(index))
    if config.tag_weights.enabled:
        settings = config.tag_weights
        counts = count_tags(index.tags, TagCounts(settings.beta, settings.least, settings.most))
        weights = dataset_weights(index.tags, counts)
    draw_ids = torch.tensor([sample_id(name) for name in index.ids], dtype=torch.int64)
    weight_table = torch.tensor(weights, dtype=torch.float32)
    images = ImageCache(config.data.cache_megabytes * 2**20) if config.data.cache_megabytes else None
    return StageData(stage, index, buckets, bucket_of, draw_ids, weight_table, scores, images)


def folder_of(stage: Stage) -> str:
    """The stage's folder of images. Raises InputError when it names none."""
    if not stage.folder:
        raise InputError("data.folder is empty; name a folder of images with .txt or .caption sidecars")
    return stage.folder


def tag_classes(settings: DataConfig, text: TextConfig) -> tuple[str, ...]:
    """The classes that captions are read with: those of the tags, and that of the score where it is a condition."""
    return (*settings.tag_classes, *([settings.score_class] if text.vector == "score" else []))


def rank_batch(
    training: TrainConfig, stage: Stage, buckets: list[tuple[int, int]], ranks: int
) -> int | np.ndarray:
    """Images of a rank in one optimizer step, or [n_buckets] of them where a pixel budget sets the batch.

    Raises InputError where the ranks do not have equally many micro-batches.
    """
    each, rest = divmod(training.micro_batches or ranks * training.accumulate, ranks)
    if rest or not each:
        raise InputError(
            f"{ranks} ranks do not share train.micro_batches {training.micro_batches} evenly; look at the plan of 1 "
            "rank: data.plan 'global' has the same steps on any number of them"
        )
    return micro_batch_images(training, stage, buckets) * each


def micro_batch_images(
    training: TrainConfig, stage: Stage, buckets: list[tuple[int, int]]
) -> int | np.ndarray:
    """Images of a micro-batch, or [n_buckets] of them where a pixel budget sets the batch."""
    if training.pixel_budget:
        return np.asarray(pixel_budget_batch_sizes(buckets, training.pixel_budget))
    return stage.batch_size


def images_at(training: TrainConfig, stage: Stage, bucket: tuple[int, int]) -> int:
    """Images of a micro-batch at a bucket (width, height)."""
    return int(np.max(micro_batch_images(training, stage, [bucket])))


def _without(index: Index, quarantined: Mapping[str, str]) -> tuple[Index, list[str]]:
    """The index without the images that are known to be unusable, and a line about each of these."""
    if not quarantined:
        return index, []
    known = [f"{name}: {quarantined[name]}" for name in index.ids if name in quarantined]
    return index.take([row for row, name in enumerate(index.ids) if name not in quarantined]), known
