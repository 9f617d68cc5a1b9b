"""Batches of images from disk, the same for any number of worker processes (N §4.1.3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from refimpl.data.aspect_table import Bucket
from refimpl.data.crop import IntegerSource, SizeInts, cover, cover_and_crop, crop, flip
from refimpl.data.images import DEFAULT_ACCEPTED, WHITE, Accepted, BadImage, decode
from refimpl.data.index import Index
from refimpl.errors import InputError


class Draws(Protocol):
    """All randomness of loading, as functions of (sample id, visit); picklable when there are workers."""

    def crop_source(self, name: str, visit: int) -> IntegerSource:
        """What the crop is drawn from."""
        ...

    def is_flipped(self, name: str, visit: int) -> bool:
        """Whether the image is mirrored."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one bucket.

    images     [B, 3, H, W] uint8, sRGB
    size_ints  [B, 6] int64, rows of SizeInts
    items      [B] int64, rows of the Index
    bucket     (width, height)
    """

    images: torch.Tensor
    size_ints: torch.Tensor
    items: npt.NDArray[np.int64]
    bucket: Bucket


class ImageCache:
    """Images of a small data set, decoded and scaled to their buckets, up to `max_bytes` in all.

    Full, it keeps what it has: every epoch visits every image once, so replacing one would never pay. It lives
    in one process: pass it with workers = 0.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[Path, Bucket], tuple[Image.Image, tuple[int, int]]] = {}

    def covering(
        self, path: Path, bucket: Bucket, read: Callable[[], Image.Image]
    ) -> tuple[Image.Image, tuple[int, int]] | None:
        """The image scaled to cover `bucket`, and its own size; None for those too long to scale whole."""
        if (path, bucket) in self._kept:
            return self._kept[path, bucket]
        image = read()
        scaled = cover(image, bucket)
        if scaled is None:
            return None
        size = scaled.width * scaled.height * len(scaled.getbands())
        if self.bytes + size <= self.max_bytes:
            self._kept[path, bucket] = scaled, image.size
            self.bytes += size
        return scaled, image.size


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[Batch | BadImage]):
    index: Index
    batches: Sequence[tuple[Bucket, Sequence[int] | npt.NDArray[np.integer]]]
    visit: int
    draws: Draws
    background: tuple[int, int, int]
    accepted: Accepted
    cache: ImageCache | None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch | BadImage:
        """A batch, or the error as a value: raised in a worker it would lose its class on the way."""
        bucket, items = self.batches[step]
        try:
            loaded = [self._load(int(item), bucket) for item in items]
        except BadImage as error:
            return error
        images = torch.from_numpy(np.stack([np.asarray(image) for image, _ in loaded]))
        size_ints = torch.tensor([size_ints for _, size_ints in loaded], dtype=torch.int64)
        return Batch(images.permute(0, 3, 1, 2).contiguous(), size_ints, np.asarray(items, np.int64), bucket)

    def _load(self, item: int, bucket: Bucket) -> tuple[Image.Image, SizeInts]:
        name = self.index.ids[item]
        rng = self.draws.crop_source(name, self.visit)
        kept = (
            self.cache.covering(self.index.paths[item], bucket, lambda: self._read(item))
            if self.cache
            else None
        )
        cropped = crop(*kept, bucket, rng) if kept else cover_and_crop(self._read(item), bucket, rng)
        return flip(*cropped) if self.draws.is_flipped(name, self.visit) else cropped

    def _read(self, item: int) -> Image.Image:
        path, identifier = self.index.paths[item], self.index.ids[item]
        try:
            image = decode(path, self.background, self.accepted)
        except BadImage as error:
            raise BadImage(path, f"{error.reason} (id {identifier!r})") from error
        indexed = int(self.index.widths[item]), int(self.index.heights[item])
        if image.size != indexed:
            raise BadImage(
                path,
                f"now {image.width}x{image.height} pixels, but {indexed[0]}x{indexed[1]} when it was indexed (id "
                f"{identifier!r}); index the data set again",
            )
        return image


def load_batches(
    index: Index,
    batches: Sequence[tuple[Bucket, Sequence[int] | npt.NDArray[np.integer]]],
    visit: int,
    draws: Draws,
    workers: int = 0,
    background: tuple[int, int, int] = WHITE,
    accepted: Accepted = DEFAULT_ACCEPTED,
    cache: ImageCache | None = None,
) -> Iterator[Batch]:
    """Load, crop and, where drawn, mirror the images of each batch, in the order given.

    batches  of ((width, height) of the bucket, rows of the index)
    visit    how often the samples have been visited before, as `draws` counts it
    draws    all randomness: crop and flip of (id, visit)
    background, accepted  as `decode` takes them
    cache    keeps images for the next call
    workers  processes that load ahead; 0 loads here. The result is the same.
    Raises BadImage, with path and id, for an image that vanished, broke or changed since it was indexed, and
    InputError for negative workers or a cache with workers.
    """
    if workers < 0 or (workers and cache is not None):
        raise InputError(f"workers = {workers}: give 0 or more, and no image cache unless it is 0")
    data = _Batches(index, batches, visit, draws, background, accepted, cache)
    # Its own generator: DataLoader draws a seed for its workers, by default from torch's global state.
    loader = DataLoader(data, batch_size=None, num_workers=workers, generator=torch.Generator())
    return _raising(loader)


def _raising(loader: DataLoader[Batch | BadImage]) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, BadImage):
            raise batch
        yield batch
