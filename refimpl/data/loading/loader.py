"""Batches of images from disk, the same for any number of worker processes (N §4.1.3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from refimpl.data.bucket_sizes import Bucket
from refimpl.data.config import Decoder
from refimpl.data.crop import IntegerSource, SizeInts, cover, cover_and_crop, crop, flip
from refimpl.data.images.archives import ImageSource
from refimpl.data.images.decode import WHITE, BadImage, decode
from refimpl.data.images.fast_jpeg import check_fast, decode_fast
from refimpl.data.index.data_set import Index
from refimpl.data.loading.workers import begin_worker, delivered, start_method
from refimpl.errors import InputError

Decoded = TypeVar("Decoded", Image.Image, npt.NDArray[np.uint8])
Batches = Sequence[tuple[Bucket, Sequence[int] | npt.NDArray[np.integer]]]  # (bucket, rows of the index)
Loaded = tuple[int, npt.NDArray[np.uint8], SizeInts]  # row of the index, [H, W, 3], its integers
SUBSTITUTES_TRIED = 16  # bad images in a row, of one bucket, after which something else is wrong


class Draws(Protocol):
    """All randomness of loading, as functions of (sample id, visit); must be picklable if there are workers."""

    def crop_source(self, name: str, visit: int) -> IntegerSource:
        """Source of the crop's random integers."""
        ...

    def is_flipped(self, name: str, visit: int) -> bool:
        """Whether the image is mirrored."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one bucket.

    images     [B, 3, H, W] uint8, sRGB
    size_ints  [B, 6] int64, one SizeInts per image
    items      [B] int64, rows of the Index whose images these are
    planned    [B] int64, rows that were planned; they differ from `items` where a bad image was replaced
    bucket     (width, height)
    bad        the bad images that were replaced or tried as substitutes, each with its reason
    """

    images: torch.Tensor
    size_ints: torch.Tensor
    items: npt.NDArray[np.int64]
    planned: npt.NDArray[np.int64]
    bucket: Bucket
    bad: tuple[BadImage, ...] = ()

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for asynchronous copies to a GPU; called by torch's DataLoader."""
        return replace(self, images=self.images.pin_memory(), size_ints=self.size_ints.pin_memory())


@dataclass(frozen=True, eq=False)
class SameBucket:
    """Substitutes for a bad image: the images of its bucket that follow it by row, wrapping around to the first.

    bucket_of  [N]  bucket of each row of the index
    A function of the data set alone, so it does not depend on workers, ranks or batches.
    """

    bucket_of: npt.NDArray[np.integer]

    def __call__(self, item: int) -> list[int]:
        """Rows to try, in order."""
        rows = np.flatnonzero(self.bucket_of == self.bucket_of[item])
        after = int(np.searchsorted(rows, item)) + 1
        return np.roll(rows, -after)[:-1][:SUBSTITUTES_TRIED].tolist()


class ImageCache:
    """Images of a small data set, decoded and scaled to cover their buckets, up to `max_bytes` in total.

    Once full, it evicts nothing: every epoch visits every image once, so eviction would never pay. It lives in one
    process: use it with workers = 0.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[ImageSource, Bucket], tuple[Image.Image, tuple[int, int]]] = {}

    def covering(
        self, path: ImageSource, bucket: Bucket, read: Callable[[], Image.Image]
    ) -> tuple[Image.Image, tuple[int, int]] | None:
        """The image scaled to cover `bucket`, and its original size; None if it is too elongated to scale whole."""
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
    batches: Batches
    visit: int
    draws: Draws
    background: tuple[int, int, int]
    cache: ImageCache | None
    substitutes: Callable[[int], Sequence[int]] | None
    decoder: Decoder

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch | BadImage:
        """A batch, or the error as a value: an exception raised in a worker would lose its class in transit."""
        bucket, items = self.batches[step]
        bad: list[BadImage] = []
        try:
            loaded = [self._load_or_substitute(int(item), bucket, bad) for item in items]
        except BadImage as error:
            return error
        images = torch.from_numpy(np.stack([image for _, image, _ in loaded]))
        return Batch(
            images.permute(0, 3, 1, 2).contiguous(),
            torch.tensor([size_ints for _, _, size_ints in loaded], dtype=torch.int64),
            np.array([item for item, _, _ in loaded], np.int64),
            np.asarray(items, np.int64),
            bucket,
            tuple(bad),
        )

    def _load_or_substitute(self, planned: int, bucket: Bucket, bad: list[BadImage]) -> Loaded:
        """The planned image or its substitute, with the planned one's crop and flip; adds the bad ones to `bad`."""
        name = self.index.ids[planned]
        try:
            return planned, *self._load(planned, name, bucket)
        except BadImage as error:
            found = [error]
        for item in self.substitutes(planned) if self.substitutes else ():
            try:
                loaded = self._load(item, name, bucket)
            except BadImage as error:
                found.append(error)
            else:
                bad += found
                return item, *loaded
        raise found[0]

    def _load(self, item: int, drawn_as: str, bucket: Bucket) -> tuple[npt.NDArray[np.uint8], SizeInts]:
        rng = self.draws.crop_source(drawn_as, self.visit)
        if self.decoder == "fast":
            cropped = cover_and_crop(self._read(item, decode_fast), bucket, rng, "torch")
        else:
            image, size_ints = self._crop_by_pillow(item, bucket, rng)
            cropped = np.asarray(image), size_ints
        return flip(*cropped) if self.draws.is_flipped(drawn_as, self.visit) else cropped

    def _crop_by_pillow(self, item: int, bucket: Bucket, rng: IntegerSource) -> tuple[Image.Image, SizeInts]:
        if self.cache:
            kept = self.cache.covering(self.index.paths[item], bucket, lambda: self._read(item, decode))
            if kept:
                return crop(*kept, bucket, rng)
        return cover_and_crop(self._read(item, decode), bucket, rng)

    def _read(self, item: int, decoder: Callable[..., Decoded]) -> Decoded:
        path, identifier = self.index.paths[item], self.index.ids[item]
        try:
            image = decoder(path, self.background)
        except BadImage as error:
            raise BadImage(path, f"{error.reason} (id {identifier!r})", error.kind) from error
        found = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        indexed = int(self.index.widths[item]), int(self.index.heights[item])
        if found != indexed:
            reason = (
                f"it is now {found[0]}x{found[1]} pixels, but was {indexed[0]}x{indexed[1]} when it was indexed (id "
                f"{identifier!r}); index the data set again"
            )
            raise BadImage(path, reason, "changed")
        return image


def load_batches(
    index: Index,
    batches: Batches,
    visit: int,
    draws: Draws,
    workers: int = 0,
    background: tuple[int, int, int] = WHITE,
    cache: ImageCache | None = None,
    substitutes: Callable[[int], Sequence[int]] | None = None,
    decoder: Decoder = "pillow",
    pinned: bool = False,
    timeout: float = 0.0,
) -> Iterator[Batch]:
    """Load, crop and randomly flip the images of each batch, in the order given.

    batches  pairs of ((width, height) of the bucket, rows of the index)
    visit    how many times the samples have been visited before, as `draws` counts visits
    draws    all randomness: crop and flip as functions of (id, visit)
    background  as for `decode`
    cache    keeps images for the next call
    workers  processes that load ahead; 0 loads in this process. The result is the same.
    substitutes  row → rows to try instead, in order, if an image has vanished, broken or changed since it was
             indexed (`SameBucket`); must be picklable. Crop and flip remain those of the planned image. Without
             it, or if all of them are bad too, such an image is an error.
    decoder  "pillow", or "fast": JPEG by simplejpeg and Lanczos by torch, within 2 levels of Pillow's resampling
    pinned   put the batches into page-locked memory, for asynchronous copies to a GPU
    timeout  seconds to wait for a batch from the workers; 0 waits without end
    Raises BadImage, with path and id, for a bad image, and InputError for negative workers, a cache combined with
    workers or with the fast decoder, and a fast decoder that is not installed; LostProcess when a
    worker is killed, or no batch comes within the time-out.
    """
    if workers < 0 or (workers and cache is not None):
        raise InputError(f"workers = {workers}: give 0 or more, and use an image cache only with 0 workers")
    if decoder == "fast":
        check_fast()
        if cache is not None:
            raise InputError("the image cache holds images scaled by Pillow: use it with decoder = 'pillow'")
    data = _Batches(index, batches, visit, draws, background, cache, substitutes, decoder)
    # A generator of its own: DataLoader draws a seed for its workers, by default from torch's global state.
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
        pin_memory=pinned,
        worker_init_fn=begin_worker,
        multiprocessing_context=start_method(workers),
    )
    return _raising(delivered(loader, timeout))


def _raising(batches: Iterator[Batch | BadImage]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, BadImage):
            raise batch
        yield batch
