"""Which latents a cache still lacks, and which shards will hold them, given what is there (not from a paper)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from refimpl.data.bucket_sizes import Bucket
from refimpl.data.images.archives import ImageSource
from refimpl.errors import InputError
from refimpl.run.stage import StageData
from refimpl.storage.shards import Shard
from refimpl.storage.store import Int64s, find_rows

SIZE_INTS_BYTES = 24
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images to be encoded, each once for every bucket it is trained in; by bucket, then by sample id.

    ids, sources [N]; sample_ids [N] int64; bucket_of [N] int64, into `buckets`
    sizes [N, 2] int64  (width, height) that the index gives
    """

    ids: list[str]
    sources: list[ImageSource]
    sample_ids: Int64s
    bucket_of: Int64s
    sizes: Int64s
    buckets: list[Bucket]

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, bucket: int) -> slice:
        """The rows of one bucket."""
        return slice(*np.searchsorted(self.bucket_of, [bucket, bucket + 1]).tolist())


def pictures_of(stages: Sequence[StageData]) -> Pictures:
    """The images of all stages; one that two stages show in the same bucket is taken once.

    Raises InputError when there are none, or when two ids of one bucket have the same 64-bit sample id.
    """
    if not any(len(data.index) for data in stages):
        raise InputError("there is nothing to encode: every image was pruned; raise data.max_aspect_error")
    buckets = sorted({(width, height) for data in stages for width, height in data.buckets})
    number = {bucket: i for i, bucket in enumerate(buckets)}
    counts = [len(data.index) for data in stages]
    stage_of = np.repeat(np.arange(len(stages)), counts)
    item_of = np.concatenate([np.arange(count) for count in counts])
    bucket_of = np.concatenate([np.array([number[b] for b in d.buckets])[d.bucket_of] for d in stages])
    sample_ids = np.concatenate([data.draw_ids.numpy() for data in stages])
    order = np.lexsort((stage_of, sample_ids, bucket_of))

    def name_and_source(row: int) -> tuple[str, ImageSource]:
        index, item = stages[stage_of[row]].index, int(item_of[row])
        return index.ids[item], index.paths[item]

    same = (np.diff(sample_ids[order]) == 0) & (np.diff(bucket_of[order]) == 0)  # the same as the one before
    kept = np.ones(len(order), bool)
    for place in (np.flatnonzero(same) + 1).tolist():
        name, source = name_and_source(order[place])
        before = place
        while before and same[before - 1]:
            before -= 1
            other, other_source = name_and_source(order[before])
            if other != name:
                raise InputError(f"the ids {other!r} and {name!r} have the same hash; rename one of them")
            if str(other_source) == str(source):
                kept[place] = False
    order = order[kept]
    both = [name_and_source(row) for row in order]
    sizes = np.concatenate([np.stack((d.index.widths, d.index.heights), 1) for d in stages])
    return Pictures(
        ids=[name for name, _ in both],
        sources=[source for _, source in both],
        sample_ids=sample_ids[order],
        bucket_of=bucket_of[order],
        sizes=sizes[order],
        buckets=buckets,
    )


@dataclass(frozen=True, eq=False)
class Held:
    """The entries of all shards of one encoding, by bucket, and within a bucket ascending in sample id.

    columns of `table[bucket]`, [M, 8] int64: sample id, crop, mirrored, two of content, two of stamp, place;
    place = shard number · 2³² + row in it
    """

    shards: list[Shard]
    table: dict[Bucket, Int64s]

    def of(self, bucket: Bucket) -> Int64s:
        """The bucket's table."""
        return self.table.get(bucket, np.empty((0, 8), np.int64))


def held_entries(shards: Sequence[Shard]) -> Held:
    """Reads the small columns of the shards that `refimpl.storage.store.scan` found."""
    parts: dict[Bucket, list[Int64s]] = {}
    for number, shard in enumerate(shards):
        columns = shard.tensors
        count = len(columns["sample_ids"])
        place = (number << 32) + torch.arange(count)
        rows = [columns[name] for name in ("entries", "contents", "stamps")]
        table = torch.cat((columns["sample_ids"][:, None], *rows, place[:, None]), dim=1)
        width, height = map(int, shard.metadata["group"].split("x"))
        parts.setdefault((width, height), []).append(table.numpy())
    tables = {bucket: np.concatenate(tables) for bucket, tables in parts.items()}
    return Held(list(shards), {bucket: t[np.argsort(t[:, 0], kind="stable")] for bucket, t in tables.items()})


def known_contents(pictures: Pictures, stamps: Int64s, held: Held) -> tuple[Int64s, Bools]:
    """Contents of the images whose file is, by its stamp, the one that an entry was made from.

    stamps [N, 2]    returns contents [N, 2], and known [N]
    """
    contents, known = np.zeros((len(pictures), 2), np.int64), np.zeros(len(pictures), bool)
    for number, bucket in enumerate(pictures.buckets):
        rows, table = pictures.rows_of(number), held.of(bucket)
        found = find_rows(table[:, 0], table[:, 5:7], pictures.sample_ids[rows], stamps[rows])
        known[rows] = found >= 0
        contents[rows][found >= 0] = table[found[found >= 0], 3:5]
    return contents, known


def may_be_held(pictures: Pictures, stamps: Int64s, held: Held) -> Bools:
    """[N] whether an entry was made from a file of the same length, which may only have been touched since."""
    result = np.zeros(len(pictures), bool)
    for number, bucket in enumerate(pictures.buckets):
        rows, table = pictures.rows_of(number), held.of(bucket)
        result[rows] = find_rows(table[:, 0], table[:, 5:6], pictures.sample_ids[rows], stamps[rows, :1]) >= 0
    return result


def places(pictures: Pictures, contents: Int64s, known: Bools, held: Held, crops: int, flips: bool) -> Int64s:
    """[N, crops · (1 + flips)] where each entry lies, as in Held; −1 where it is not held."""
    variants = np.array([(k, f) for k in range(crops) for f in range(1 + flips)], np.int64)
    result = np.full((len(pictures), len(variants)), -1, np.int64)
    for number, bucket in enumerate(pictures.buckets):
        rows, table = pictures.rows_of(number), held.of(bucket)
        for column, variant in enumerate(variants):
            wanted = np.concatenate(
                [np.broadcast_to(variant, (rows.stop - rows.start, 2)), contents[rows]], 1
            )
            found = find_rows(table[:, 0], table[:, 1:5], pictures.sample_ids[rows], wanted)
            there = (found >= 0) & known[rows]
            result[rows, column][there] = table[found[there], 7]
    return result


@dataclass(frozen=True, eq=False)
class Unit:
    """What one shard will hold: entries of one bucket, with those of an image next to one another.

    pictures [M] rows of Pictures; variants [M] crop · (1 + flips) + mirrored
    """

    bucket: Bucket
    pictures: Int64s
    variants: Int64s


def plan_units(
    pictures: Pictures, where: Int64s, shard_bytes: int, cell_bytes: int, factor: int
) -> list[Unit]:
    """Cuts what is not held into shards.

    where       as returned by `places`
    cell_bytes  bytes of one latent cell; factor  pixels per cell and side

    The cuts are made in the list of all entries, held or not, so a run that was killed, with any number of
    ranks, leaves the next one exactly the shards that it would have written itself. When a group is partly
    held, as when single images have changed, what it lacks is merged with what its neighbours lack.
    """
    units: list[Unit] = []
    variants = where.shape[1]
    for number, bucket in enumerate(pictures.buckets):
        rows = pictures.rows_of(number)
        entry = bucket[0] * bucket[1] // factor**2 * cell_bytes + SIZE_INTS_BYTES
        group = max(1, shard_bytes // (entry * variants))  # images
        partial: list[Int64s] = []
        for first in range(rows.start, rows.stop, group):
            last = min(first + group, rows.stop)
            lacking = np.argwhere(where[first:last] < 0) + np.array([first, 0])
            if len(lacking) == (last - first) * variants:
                units.append(_unit(bucket, lacking))
            elif len(lacking):
                partial.append(lacking)
        rest = np.concatenate(partial) if partial else np.empty((0, 2), np.int64)
        size = group * variants
        units += [_unit(bucket, rest[i : i + size]) for i in range(0, len(rest), size)]
    return units


def _unit(bucket: Bucket, entries: Int64s) -> Unit:
    return Unit(bucket, entries[:, 0].copy(), entries[:, 1].copy())
