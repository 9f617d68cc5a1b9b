"""Latents encoded once, by bucket: K crops of an image and their mirror images (not from a paper; N §4.1.2, App. B).

An entry's key is (encoding, bucket, id, SHA-256 of the image file, crop number, mirrored). Latents are the
posterior's mean, unscaled, so that the scale and shift can change without encoding again.

Tensors of a shard of n rows:
    latents [n, C, h, w]   float32 or bfloat16
    size_ints [n, 6]       int32, see refimpl.data.crop.SizeInts
    entries [n, 2]         int64: crop number, 1 where mirrored
    sample_ids [n]         int64: refimpl.diffusion.philox.sample_id of the id
    contents [n, 2]        int64: first 16 bytes of the image file's SHA-256
    stamps [n, 2]          int64: the file's size in bytes and its modification time in ns
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refimpl.data.bucket_sizes import Bucket
from refimpl.data.config import Decoder
from refimpl.data.crop import IntegerSource
from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import Batch, Batches, Draws
from refimpl.errors import InputError
from refimpl.latents.vae import VAE
from refimpl.storage.store import Int64s, Store, open_store

KIND = "latents"
MADE_FOR = "made_for"  # the manifest's table of the configuration whose images were encoded


def encoding_of(
    vae: VAE, dtype: str, tile: int, seed: int, background: tuple[int, int, int], decoder: Decoder
) -> dict[str, object]:
    """Everything a cached latent depends on besides the image, its bucket, and the crop's number.

    vae    in float32; only its encoder counts, so a finetuned decoder (N §4.4) leaves a cache valid
    dtype  float32 or bfloat16: the dtype of the network's arithmetic and of the stored latents
    tile   px, as `VAE.encode` takes it; 0 for off. Tiles were once blended, under a plain number: those differ
    seed   seed of the crops
    background, decoder  as `refimpl.data.loading.loader.load_batches` takes them
    """
    return {
        "kind": KIND,
        "encoder": encoder_fingerprint(vae),
        "dtype": dtype,
        "tile": f"{tile} rows" if tile else 0,
        "seed": seed,
        "background": list(background),
        "decoder": decoder,
    }


def encoder_fingerprint(vae: VAE) -> str:
    """SHA-256 of the weights that turn an image into a latent, in float32."""
    state = hashlib.sha256(repr(vae.config).encode())
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            plain = value.detach().to("cpu", torch.float32).contiguous()
            state.update(f"{name} {list(plain.shape)}\n".encode())
            state.update(plain.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


@dataclass(frozen=True, eq=False)
class LatentCache:
    """A finished cache of latents, open for reading.

    The lookup's rows are images by bucket, ascending in sample id within one; each has crops · (1 or 2) entries,
    numbered crop · (2 where mirrored ones are held, else 1) + mirrored.
    """

    store: Store
    crops: int
    flips: bool
    first_row: dict[Bucket, tuple[int, int]]  # bucket → its first row, and its last row + 1
    quarantined: dict[str, str]  # id → reason, of images that could not be encoded
    made_for: dict[str, Any]  # see refimpl.cache.made_for; empty where the cache was written without it

    def rows_of(self, bucket: Bucket) -> slice:
        """The lookup rows of a bucket's images; none for a bucket that the cache does not know."""
        return slice(*self.first_row.get(bucket, (0, 0)))

    def entry(self, row: int, crop: int, mirrored: bool) -> tuple[Tensor, Tensor]:
        """Latent [C, h, w] and size_ints [6] of an image's entry: views of the mapped file."""
        number = crop * (1 + self.flips) + mirrored
        shard, place = self.store.place((row, number))
        return shard.tensors["latents"][place], shard.tensors["size_ints"][place]


def open_latents(folder: Path) -> LatentCache:
    """Opens the latents of a cache folder.

    Raises InputError when they are absent, unfinished, damaged, or of another version.
    """
    store = open_store(folder / KIND)
    details = store.manifest.details
    try:
        return LatentCache(
            store,
            int(details["crops"]),
            bool(details["flips"]),
            {(int(w), int(h)): (int(first), int(last)) for w, h, first, last in details["buckets"]},
            {str(name): str(reason) for name, reason in details["quarantined"]},
            dict(details.get(MADE_FOR, {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: the manifest of its latents lacks {error}; run `refimpl cache` again"
        ) from error


@dataclass(frozen=True, eq=False)
class CachedLatents:
    """A cache as seen from an index: the lookup row of each of its images, in the image's own bucket."""

    cache: LatentCache
    rows: Int64s  # [N]
    buckets: Sequence[Bucket]
    bucket_of: npt.NDArray[np.integer]  # [N]


@dataclass(frozen=True, eq=False)
class LatentBatch(Batch):
    """A batch of the loader whose images were encoded beforehand and so are empty, [B, 3, 0, 0].

    latents  [B, C, h, w]  unscaled, in the dtype they are stored in
    """

    latents: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class _RepeatedCrops:
    """Draws that cycle through K crops, as the cache does."""

    draws: Draws
    crops: int

    def crop_source(self, name: str, visit: int) -> IntegerSource:
        return self.draws.crop_source(name, visit % self.crops)

    def is_flipped(self, name: str, visit: int) -> bool:
        return self.draws.is_flipped(name, visit)


def read_batches(
    cached: CachedLatents,
    index: Index,
    batches: Batches,
    visit: int,
    draws: Draws,
    load: Callable[[Batches, Draws], Iterator[Batch]],
) -> Iterator[Batch]:
    """The latents of each batch, in the order given; the arguments are those of the loader's `load_batches`.

    A visit shows crop number `visit` mod K, mirrored where `draws` says so.
    load     loads batches of images. A plan's catch-all batch shows images in a bucket other than their own, for
             which they have no latents, so it comes as images, with the same crops
    returns  LatentBatch, and the loader's Batch for catch-all batches
    """
    cache = cached.cache
    own = [
        all(cached.buckets[cached.bucket_of[item]] == bucket for item in items) for bucket, items in batches
    ]
    others = [batch for batch, is_own in zip(batches, own, strict=True) if not is_own]
    loaded = load(others, _RepeatedCrops(draws, cache.crops)) if others else iter(())
    for (bucket, items), is_own in zip(batches, own, strict=True):
        if not is_own:
            yield next(loaded)
            continue
        entries = [
            cache.entry(
                int(cached.rows[item]), visit % cache.crops, draws.is_flipped(index.ids[int(item)], visit)
            )
            for item in items
        ]
        rows = np.asarray(items, np.int64)
        yield LatentBatch(
            images=torch.empty(len(rows), 3, 0, 0, dtype=torch.uint8),
            size_ints=torch.stack([size_ints for _, size_ints in entries]).long(),
            items=rows,
            planned=rows,
            bucket=bucket,
            latents=torch.stack([latent for latent, _ in entries]),
        )
