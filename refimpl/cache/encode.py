"""Images to cached latents: read once, cropped K times, encoded in batches that fit in memory (after R)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refimpl.cache.plan import Pictures, Unit
from refimpl.data.bucket_sizes import Bucket
from refimpl.data.config import Decoder
from refimpl.data.crop import cover, cover_and_crop, crop, flip
from refimpl.data.images.decode import WHITE, BadImage, decode
from refimpl.data.images.fast_jpeg import decode_fast
from refimpl.data.index.content import content, stamp
from refimpl.data.loading.workers import begin_worker, delivered, start_method
from refimpl.errors import OUT_OF_MEMORY, InputError
from refimpl.latents.pixels import from_pixels
from refimpl.latents.vae import VAE
from refimpl.run.visit_draws import VisitDraws
from refimpl.storage.store import DTYPES

BACKGROUND = WHITE  # the same as in the training loader


class FittingEncoder:
    """The autoencoder's posterior mean of uint8 images, in batches as large as `batch_pixels` and memory allow.

    vae           in float32; moved to the device and cast to `dtype`
    dtype         "float32" (without TF32) or "bfloat16"
    tile          px, as `VAE.encode` takes it; 0 for off
    batch_pixels  most px in one batch; halved, permanently, whenever memory does not suffice
    """

    def __init__(self, vae: VAE, device: torch.device, dtype: str, tile: int, batch_pixels: int) -> None:
        self._vae = vae.to(device, DTYPES[dtype])
        self._device, self._dtype, self._tile = device, DTYPES[dtype], tile or None
        self.batch_pixels = batch_pixels

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 → [B, C, h, w] on the CPU, in the dtype given.

        Raises InputError when there is not enough memory for a single image.
        """
        parts, done = [], 0
        pixels = images.shape[2] * images.shape[3]
        while done < len(images):
            limit = max(1, self.batch_pixels // pixels)
            batch = images[done : done + limit]
            try:
                parts.append(self._encode(batch))
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise InputError(
                        f"not enough memory to encode one image of {images.shape[3]}x{images.shape[2]}; use --tile, "
                        f"such as 64 ({str(error).splitlines()[0] if str(error) else 'out of memory'})"
                    ) from error
                self.batch_pixels = len(batch) // 2 * pixels
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            done += len(batch)
        return torch.cat(parts)

    def _encode(self, batch: Tensor) -> Tensor:
        x = from_pixels(batch.to(self._device))
        tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            latents = self._vae.encode(x, self._tile)
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
        return latents.to("cpu", self._dtype)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


@dataclass(frozen=True, eq=False)
class _Crops:
    """One image's crops for a unit, as a loader process returns them."""

    images: Tensor  # [M, 3, H, W] uint8
    size_ints: Tensor  # [M, 6] int32
    content: tuple[int, int]
    stamp: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Jobs(Dataset["_Crops | BadImage"]):
    """Every image of the units, with the variants of it to encode."""

    pictures: Pictures
    jobs: Sequence[tuple[int, Bucket, tuple[int, ...]]]  # row, bucket, variants
    flips: bool
    draws: VisitDraws
    decoder: Decoder

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> "_Crops | BadImage":
        """The crops, or the error as a value: an error raised in a worker would lose its class on the way."""
        row, bucket, variants = self.jobs[number]
        try:
            return self._crops(row, bucket, variants)
        except BadImage as error:
            return error

    def _crops(self, row: int, bucket: Bucket, variants: tuple[int, ...]) -> "_Crops":
        source, name = self.pictures.sources[row], self.pictures.ids[row]
        before = stamp(source)
        key = content(source)
        pixels = decode_fast(source, BACKGROUND) if self.decoder == "fast" else decode(source, BACKGROUND)
        size = pixels.size if isinstance(pixels, Image.Image) else pixels.shape[1::-1]
        if tuple(size) != tuple(self.pictures.sizes[row].tolist()):
            width, height = self.pictures.sizes[row]
            raise BadImage(
                source,
                f"now {size[0]}x{size[1]} pixels, but {width}x{height} when it was indexed (id {name!r}); "
                "index the data set again",
            )
        if stamp(source) != before:
            raise BadImage(source, f"it changed while it was read (id {name!r}); run the command again")
        scaled = cover(pixels, bucket) if isinstance(pixels, Image.Image) else None  # once for all crops
        images, size_ints = [], []
        for variant in variants:
            number, mirrored = divmod(variant, 1 + self.flips)
            rng = self.draws.crop_source(name, number)
            if isinstance(pixels, Image.Image):
                cropped = crop(scaled, size, bucket, rng) if scaled else cover_and_crop(pixels, bucket, rng)
                picture, ints = np.asarray(cropped[0]), cropped[1]
            else:
                picture, ints = cover_and_crop(pixels, bucket, rng, "torch")
            picture, ints = flip(picture, ints) if mirrored else (picture, ints)
            images.append(picture)
            size_ints.append(ints)
        crops = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return _Crops(crops, torch.tensor(size_ints, dtype=torch.int32), key, before)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A finished unit: the tensors of its shard, and what could not be encoded."""

    bucket: Bucket
    tensors: dict[str, Tensor]  # see refimpl.cache.latents; empty when every image is bad
    bad: list[tuple[int, BadImage]]  # row of Pictures, reason


def encode_units(
    units: Sequence[Unit],
    pictures: Pictures,
    encoder: FittingEncoder,
    flips: bool,
    seed: int,
    decoder: Decoder,
    workers: int,
    timeout: float = 0.0,
) -> Iterator[Encoded]:
    """Encodes the units in the order given, decoding each image once per unit.

    seed     seeds the crops: crop k of an image is the one that training with this seed sees at its visit k
    decoder  "pillow" or "fast", as `refimpl.data.loading.loader.load_batches` takes it
    workers  processes that decode and crop ahead; 0 to do so in this process
    timeout  seconds to wait for an image from them; 0 waits without end
    Raises InputError when a single image does not fit in memory; LostProcess when one of the processes has ended, or
    none has delivered in time.
    """
    jobs, per_unit = [], []
    for unit in units:
        rows, starts = np.unique(unit.pictures, return_index=True)
        variants = np.split(unit.variants, starts[1:])
        jobs += [(int(row), unit.bucket, tuple(map(int, v))) for row, v in zip(rows, variants, strict=True)]
        per_unit.append(len(rows))
    data = _Jobs(pictures, jobs, flips, VisitDraws(seed, flips), decoder)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=begin_worker,
        multiprocessing_context=start_method(workers),
    )
    loaded = delivered(loader, timeout)
    jobs_left = iter(jobs)
    for unit, count in zip(units, per_unit, strict=True):
        parts, bad = _Parts(encoder), []
        for _ in range(count):
            crops, (row, _, _) = next(loaded), next(jobs_left)
            if isinstance(crops, BadImage):
                bad.append((row, crops))
            else:
                parts.add(crops)
        yield Encoded(unit.bucket, parts.tensors(unit, pictures, 1 + flips, [row for row, _ in bad]), bad)


class _Parts:
    """The rows of one unit, encoded whenever a batch is full."""

    def __init__(self, encoder: FittingEncoder) -> None:
        self._encoder = encoder
        self._waiting: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._size_ints: list[Tensor] = []
        self._contents: list[tuple[int, int]] = []
        self._stamps: list[tuple[int, int]] = []

    def add(self, crops: _Crops) -> None:
        self._waiting.append(crops.images)
        self._size_ints.append(crops.size_ints)
        self._contents += [crops.content] * len(crops.images)
        self._stamps += [crops.stamp] * len(crops.images)
        if sum(images[:, 0].numel() for images in self._waiting) >= self._encoder.batch_pixels:
            self._encode()

    def _encode(self) -> None:
        if self._waiting:
            self._latents.append(self._encoder(torch.cat(self._waiting)))
            self._waiting = []

    def tensors(self, unit: Unit, pictures: Pictures, flips: int, bad: list[int]) -> dict[str, Tensor]:
        self._encode()
        if not self._latents:
            return {}
        good = ~np.isin(unit.pictures, bad)
        rows, variants = unit.pictures[good], unit.variants[good]
        return {
            "latents": torch.cat(self._latents),
            "size_ints": torch.cat(self._size_ints),
            "entries": torch.from_numpy(np.stack(np.divmod(variants, flips), 1)),
            "sample_ids": torch.from_numpy(pictures.sample_ids[rows]),
            "contents": torch.tensor(self._contents, dtype=torch.int64),
            "stamps": torch.tensor(self._stamps, dtype=torch.int64),
        }
