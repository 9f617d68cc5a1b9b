"""Latents encoded once, by bucket, K crops of an image, mirrored ones beside them (ours; N §4.1.2, App. B).

An entry's key is (encoding, bucket, id, SHA-256 of the image file, crop number, mirrored). Latents are the
posterior's mean, unscaled, so that scale and shift can change without encoding again.

Tensors of a shard of n rows:
    latents [n, C, h, w]   float32 or bfloat16
    size_ints [n, 6]       int32, see refimpl.data.crop.SizeInts
    entries [n, 2]         int64: crop number, 1 where mirrored
    sample_ids [n]         int64: refimpl.diffusion.philox.sample_id of the id
    contents [n, 2]        int64: first 16 bytes of the image file's SHA-256
    stamps [n, 2]          int64: the file's size in bytes and its modification time in ns
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refimpl.data.aspect_table import Bucket
from refimpl.data.index import Index
from refimpl.data.loader import Draws
from refimpl.errors import InputError
from refimpl.latents.store import Int64s, Store, open_store
from refimpl.latents.vae import VAE

KIND = "latents"
RESAMPLING = "pillow-lanczos"  # of refimpl.data.crop; another filter would need another name


def encoding_of(
    vae: VAE, dtype: str, tile: int, seed: int, background: tuple[int, int, int]
) -> dict[str, object]:
    """Everything a cached latent depends on, beside the image, its bucket, and the crop's number.

    vae    in float32; only its encoder counts, so a finetuned decoder (S §2.4) leaves a cache valid
    dtype  float32 or bfloat16: of the networks' arithmetic and of the stored latents
    tile   px, as `VAE.encode` takes it; 0 for off
    seed   of the crops
    """
    return {
        "kind": KIND,
        "encoder": encoder_fingerprint(vae),
        "dtype": dtype,
        "tile": tile,
        "seed": seed,
        "background": list(background),
        "resampling": RESAMPLING,
    }


def encoder_fingerprint(vae: VAE) -> str:
    """SHA-256 of the weights between picture and latent, taken as float32."""
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
    first_row: dict[Bucket, tuple[int, int]]  # bucket → first and last + 1 of its rows
    quarantined: dict[str, str]  # id → reason, of images that could not be encoded

    def rows_of(self, bucket: Bucket) -> slice:
        """The lookup rows of a bucket's images; none for a bucket that the cache does not know."""
        return slice(*self.first_row.get(bucket, (0, 0)))

    def entry(self, row: int, crop: int, mirrored: bool) -> tuple[Tensor, Tensor]:
        """Latent [C, h, w] and size_ints [6] of an image's entry: views of the mapped file."""
        number = crop * (1 + self.flips) + mirrored
        lookup = self.store.lookup
        shard = self.store.shard(int(lookup["shards"][row, number]))
        place = int(lookup["rows"][row, number])
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
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: the manifest of its latents lacks {error}; run `refimpl cache` again"
        ) from error


@dataclass(frozen=True, eq=False)
class CachedLatents:
    """A cache seen from an index: which lookup row belongs to each of its images."""

    cache: LatentCache
    rows: Int64s  # [N]


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """Latents of one bucket, in the place of refimpl.data.loader.Batch.

    latents    [B, C, h, w]  unscaled, in the dtype they are stored in
    size_ints  [B, 6] int64, rows of SizeInts
    items      [B] int64, rows of the Index
    bucket     (width, height)
    """

    latents: Tensor
    size_ints: Tensor
    items: npt.NDArray[np.int64]
    bucket: Bucket


def read_batches(
    cached: CachedLatents,
    index: Index,
    batches: Sequence[tuple[Bucket, Sequence[int] | npt.NDArray[np.integer]]],
    visit: int,
    draws: Draws,
) -> Iterator[LatentBatch]:
    """The latents of each batch, in the order given; arguments as `refimpl.data.loader.load_batches` takes them.

    A visit shows crop number `visit` mod K, mirrored where `draws` says so.
    """
    cache = cached.cache
    for bucket, items in batches:
        entries = [
            cache.entry(
                int(cached.rows[item]), visit % cache.crops, draws.is_flipped(index.ids[int(item)], visit)
            )
            for item in items
        ]
        yield LatentBatch(
            torch.stack([latent for latent, _ in entries]),
            torch.stack([size_ints for _, size_ints in entries]).long(),
            np.asarray(items, np.int64),
            bucket,
        )
