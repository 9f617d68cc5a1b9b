"""Data sets so small that a run remembers them: decoded images and encoded captions, after the first epoch."""

from dataclasses import replace

import numpy as np

from refimpl.run.config import Config
from refimpl.run.stage import StageData, micro_batch_images
from refimpl.train.batches.shares import micro_batches

COLOURS = 3  # bytes of a pixel in the cache of decoded images


def is_remembered(config: Config, data: StageData) -> bool:
    """Whether most steps find their images decoded and their captions encoded, as the first epoch's do not."""
    width, height = max(data.buckets, key=lambda size: size[0] * size[1])
    if (
        data.cache is None
        or config.data.workers
        or len(data.index) * width * height * COLOURS > data.cache.max_bytes
    ):
        return False
    changes = config.data.varies_captions or config.text.is_trained  # then no caption's states are ever kept
    return changes or len(set(data.index.captions)) <= config.text.cached_prompts


def some_of(config: Config, data: StageData, steps: int) -> StageData:
    """The images of so many steps, evenly spaced in the data set; all where there are no more."""
    images = (
        steps
        * micro_batches(config.train, 1)
        * int(np.max(micro_batch_images(config.train, data.stage, data.buckets)))
    )
    if images >= len(data.index):
        return data
    rows = np.linspace(0, len(data.index) - 1, images).astype(np.int64)
    return replace(
        data,
        index=data.index.take(rows),
        bucket_of=data.bucket_of[rows],
        draw_ids=data.draw_ids[rows],
        tag_weights=data.tag_weights[rows],
        scores=None if data.scores is None else data.scores[rows],
    )
