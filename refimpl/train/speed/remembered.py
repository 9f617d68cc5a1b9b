"""Data sets so small that a run remembers them: decoded images and encoded captions, after the first epoch."""

from refimpl.run.config import Config
from refimpl.run.stage import StageData

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
