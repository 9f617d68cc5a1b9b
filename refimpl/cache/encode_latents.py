"""A cache's latents: found, encoded where missing, and looked up, on any number of ranks (not from a paper).

Every rank sees the same folder, so it plans the same shards, and writes those whose number is its own modulo the
number of ranks. A shard is written whole or not at all, under a name derived from the keys of its entries. Rank 0
writes the lookup and then the manifest only when all shards are there. A run may therefore be killed at any moment
and continued by another.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from refimpl.cache.encode import Encoded, FittingEncoder, encode_units
from refimpl.cache.files import clean_folder, write_manifest, write_shard
from refimpl.cache.latents import KIND, MADE_FOR
from refimpl.cache.plan import (
    Bools,
    Held,
    Pictures,
    held_entries,
    known_contents,
    may_be_held,
    places,
    plan_units,
)
from refimpl.data.config import MAX_BAD_SHARE, Decoder
from refimpl.data.images.decode import BadImage
from refimpl.data.index.content import content, stamp
from refimpl.errors import InputError
from refimpl.progress import Progress
from refimpl.run.shared_work import gathered, shared_out
from refimpl.run.world import World
from refimpl.storage.store import (
    Int64s,
    listed,
    scan,
)


@dataclass(frozen=True)
class LatentOptions:
    """The options of `refimpl cache` that concern the latents."""

    crops: int
    flips: bool
    shard_bytes: int
    seed: int
    decoder: Decoder
    workers: int
    timeout: float  # seconds to wait for an image from them; 0 waits without end
    rehash: bool
    verify: bool
    made_for: dict[str, Any]  # configuration whose images these are, as a table; see refimpl.cache.made_for


def write_latents(
    out: Path,
    pictures: Pictures,
    encoding: dict[str, object],
    encoder: FittingEncoder,
    cell_bytes: int,
    factor: int,
    options: LatentOptions,
    world: World,
) -> dict[str, Any]:
    """Encodes those of the pictures that the cache lacks and finishes it; every rank calls this.

    encoding  from `refimpl.cache.latents.encoding_of`; cell_bytes, factor  as `plan_units` takes them
    returns   counts to print: images, entries, encoded, kept, quarantined, shards
    Raises InputError when more than 1 % of the images can't be used, when images change in the meantime, or when
    the disk is full; finished shards are kept.
    """
    folder = out / KIND
    world.on_main(lambda: clean_folder(folder, encoding, options.verify))
    stamps, gone = _stamps(pictures, world)
    shards, _ = scan(folder, encoding)
    held = held_entries(shards)
    contents, known = _contents(pictures, stamps, gone, held, options.rehash, world)
    where = places(pictures, contents, known, held, options.crops, options.flips)
    where[list(gone)] = 0  # nothing to encode
    units = plan_units(pictures, where, options.shard_bytes, cell_bytes, factor)
    world.barrier()  # all have scanned: from here on shards appear
    mine = units[world.rank :: world.size]
    bad = {row: error.reason for row, error in gone.items()}
    total = sum(len(unit.pictures) for unit in mine)
    with Progress(total, "latents", "entries", is_shown=world.is_main) as progress:
        for unit, encoded in zip(
            mine,
            encode_units(
                mine,
                pictures,
                encoder,
                options.flips,
                options.seed,
                options.decoder,
                options.workers,
                options.timeout,
            ),
            strict=True,
        ):
            for row, error in encoded.bad:
                tqdm.write(f"left out: {error}")
                bad[row] = error.reason
            _check_share(len(bad), len(pictures))
            write_unit(folder, encoding, encoded)
            progress.update(len(unit.pictures))
    for other in gathered(world, bad):
        bad |= other
    _check_share(len(bad), len(pictures))
    done = sum(len(unit.pictures) for unit in units)

    def finish() -> dict[str, Any]:
        counts = _finish(folder, pictures, stamps, contents, known, bad, encoding, options)
        lost = sum(len(unit.pictures[np.isin(unit.pictures, list(bad))]) for unit in units)
        return counts | {"encoded": done - lost, "quarantined": len(bad)}

    return world.on_main(finish)


def _check_share(bad: int, count: int) -> None:
    if bad > MAX_BAD_SHARE * count:
        raise InputError(
            f"{bad} of {count} images can't be encoded, more than {MAX_BAD_SHARE:.0%}; repair or remove them, the "
            "lines above name each; finished shards are kept"
        )


def _stamps(pictures: Pictures, world: World) -> tuple[Int64s, dict[int, BadImage]]:
    """Stamps [N, 2] of the image files, and the rows whose file can't be found."""

    def one(row: int) -> tuple[int, int] | BadImage:
        try:
            return stamp(pictures.sources[row])
        except BadImage as error:
            return error

    found = shared_out(world, range(len(pictures)), one)
    gone = {row: value for row, value in enumerate(found) if isinstance(value, BadImage)}
    stamps = [(0, 0) if isinstance(value, BadImage) else value for value in found]
    return np.array(stamps, np.int64).reshape(-1, 2), gone


def _contents(
    pictures: Pictures, stamps: Int64s, gone: dict[int, BadImage], held: Held, rehash: bool, world: World
) -> tuple[Int64s, Bools]:
    """Contents of the images for which an entry may exist: known by their stamp, or else by their hash."""
    contents, known = known_contents(pictures, stamps, held)
    touched = may_be_held(pictures, stamps, held) & (~known | rehash)
    touched[list(gone)] = False
    rows = np.flatnonzero(touched)

    def one(row: int) -> tuple[int, int] | None:
        try:
            return content(pictures.sources[row])
        except BadImage:
            return None  # encoding will report it

    for row, value in zip(rows, shared_out(world, rows.tolist(), one), strict=True):
        known[row] = value is not None
        contents[row] = value or (0, 0)
    return contents, known


def write_unit(folder: Path, encoding: dict[str, Any], encoded: Encoded) -> None:
    """Writes a unit's shard, named after the keys of its entries; nothing for a unit without entries."""
    if not encoded.tensors:
        return
    group = f"{encoded.bucket[0]}x{encoded.bucket[1]}"
    keys = (encoded.tensors[name] for name in ("sample_ids", "entries", "contents"))
    write_shard(folder, KIND, group, encoding, encoded.tensors, b"".join(k.numpy().tobytes() for k in keys))


def _finish(
    folder: Path,
    pictures: Pictures,
    stamps: Int64s,
    contents: Int64s,
    known: Bools,
    bad: dict[int, str],
    encoding: dict[str, Any],
    options: LatentOptions,
) -> dict[str, Any]:
    """Looks the entries up and writes the lookup and the manifest."""
    shards, _ = scan(folder, encoding)
    held = held_entries(shards)
    fresh_contents, fresh = known_contents(pictures, stamps, held)
    contents = np.where(known[:, None], contents, fresh_contents)
    where = places(pictures, contents, known | fresh, held, options.crops, options.flips)
    complete: Bools = np.all(where >= 0, axis=1)
    complete[list(bad)] = False
    rows = np.flatnonzero(complete)
    bounds = np.searchsorted(pictures.bucket_of[rows], np.arange(len(pictures.buckets) + 1)).tolist()
    spans = itertools.pairwise(bounds)
    used, shard_of = np.unique(where[rows] >> 32, return_inverse=True)
    lookup = {
        "sample_ids": pictures.sample_ids[rows],
        "contents": contents[rows],
        "stamps": stamps[rows],
        "shards": shard_of.reshape(where[rows].shape).astype(np.int32),
        "rows": (where[rows] & 0xFFFFFFFF).astype(np.int32),
    }
    details = {
        "crops": options.crops,
        "flips": options.flips,
        "buckets": [[*bucket, *span] for bucket, span in zip(pictures.buckets, spans, strict=True)],
        "quarantined": [[pictures.ids[row], reason] for row, reason in sorted(bad.items())],
        MADE_FOR: options.made_for,
    }  # fmt: skip
    write_manifest(folder, encoding, [shards[number] for number in used.tolist()], lookup, details)
    changed = [pictures.ids[row] for row in np.flatnonzero(~complete) if row not in bad]
    if changed:
        raise InputError(
            f"{len(changed)} images changed while they were encoded: {listed(changed)}; run the command again"
        )
    return {"images": len(rows), "entries": where[rows].size, "shards": len(used)}
