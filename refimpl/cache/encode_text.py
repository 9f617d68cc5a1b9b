"""A cache's text states: every caption encoded once, on any number of ranks, like the latents (not from a paper)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refimpl.cache.files import clean_folder, write_manifest, write_shard
from refimpl.cache.text_states import KIND, caption_keys
from refimpl.progress import Progress
from refimpl.run.shared_work import shared_out
from refimpl.run.world import World
from refimpl.storage.shards import Shard
from refimpl.storage.store import DTYPES, Int64s, find_rows, scan
from refimpl.text.conditioning import chunk_counts, encode_prompts
from refimpl.text.tokenizer import ROW_TOKENS
from refimpl.text.towers import Towers

CAPTIONS_PER_CALL = 64


def write_text(
    out: Path,
    captions: Sequence[str],
    towers: Towers,
    encoding: dict[str, Any],
    shard_bytes: int,
    rows_per_call: int | None,
    verify: bool,
    world: World,
) -> dict[str, int]:
    """Encodes the captions that the cache lacks, and the empty caption if it lacks that; every rank calls this.

    encoding       from `refimpl.cache.text_states.text_encoding`
    rows_per_call  as `encode_prompts` takes it: None gives the same bits as training without a cache
    returns        counts to print: captions, encoded, shards
    Raises InputError when the disk is full; finished shards are kept.
    """
    folder = out / KIND
    world.on_main(lambda: clean_folder(folder, encoding, verify))
    distinct = sorted({"", *captions})
    keys = caption_keys(distinct)
    order = np.argsort(keys[:, 0], kind="stable")
    keys, distinct = keys[order], [distinct[i] for i in order]
    shards, _ = scan(folder, encoding)
    table = _held(shards)
    found = find_rows(table[:, 0], table[:, 1:2], keys[:, 0], keys[:, 1:])
    chunks = np.where(found >= 0, table[found, 2], 0) if len(table) else np.zeros(len(keys), np.int64)
    lacking = np.flatnonzero(found < 0).tolist()
    counts = shared_out(world, lacking, lambda row: chunk_counts([distinct[row]], towers[0])[0])
    chunks[lacking] = counts
    units = _units(chunks, found, shard_bytes, _caption_bytes(towers, str(encoding["dtype"])))
    world.barrier()  # all have scanned: from here on shards appear
    mine = units[world.rank :: world.size]
    total = sum(len(rows) for _, rows in mine)
    with Progress(total, "text", "captions", is_shown=world.is_main) as progress:
        for count, rows in mine:
            texts = [distinct[row] for row in rows]
            tensors = _encode(texts, count, towers, encoding, rows_per_call)
            tensors["captions"] = torch.from_numpy(keys[rows])
            write_shard(folder, KIND, str(count), encoding, tensors, keys[rows].tobytes())
            progress.update(len(rows))
    world.barrier()

    def finish() -> int:
        shards, _ = scan(folder, encoding)
        table = _held(shards)
        places = table[find_rows(table[:, 0], table[:, 1:2], keys[:, 0], keys[:, 1:]), 3]
        used, shard_of = np.unique(places >> 32, return_inverse=True)
        lookup = {
            "captions": keys,
            "shards": shard_of.astype(np.int32),
            "rows": (places & 0xFFFFFFFF).astype(np.int32),
        }
        write_manifest(folder, encoding, [shards[number] for number in used.tolist()], lookup, {})
        return len(used)

    return {"captions": len(keys), "encoded": len(lacking), "shards": world.on_main(finish)}


def _held(shards: Sequence[Shard]) -> Int64s:
    """[M, 4] both halves of the key, chunks, place (shard · 2³² + row); ascending in the first."""
    parts = [np.empty((0, 4), np.int64)]
    for number, shard in enumerate(shards):
        keys = shard.tensors["captions"].numpy()
        chunks = np.full(len(keys), shard.tensors["context"].shape[1] // ROW_TOKENS)
        parts.append(np.column_stack((keys, chunks, (number << 32) + np.arange(len(keys)))))
    table = np.concatenate(parts)
    return table[np.argsort(table[:, 0], kind="stable")]


def _units(chunks: Int64s, found: Int64s, shard_bytes: int, chunk_bytes: int) -> list[tuple[int, Int64s]]:
    """(chunks, rows) of each shard to write; cut as `plan_units` does, so that a killed run's shards still fit."""
    units: list[tuple[int, Int64s]] = []
    for count in np.unique(chunks).tolist():
        rows = np.flatnonzero(chunks == count)
        size = max(1, shard_bytes // (count * chunk_bytes))
        partial = [np.empty(0, np.int64)]
        for first in range(0, len(rows), size):
            group = rows[first : first + size]
            lacking = group[found[group] < 0]
            if len(lacking) == len(group):
                units.append((count, group))
            else:
                partial.append(lacking)
        rest = np.concatenate(partial)
        units += [(count, rest[i : i + size]) for i in range(0, len(rest), size)]
    return units


def _caption_bytes(towers: Towers, dtype: str) -> int:
    """Bytes of one chunk's context; the pooled state is small in comparison."""
    channels = sum(tower.config.hidden_size for tower in filter(None, towers[1:]))
    return ROW_TOKENS * channels * DTYPES[dtype].itemsize


@torch.no_grad()
def _encode(
    texts: list[str], chunks: int, towers: Towers, encoding: dict[str, Any], rows_per_call: int | None
) -> dict[str, torch.Tensor]:
    pooling, dtype = str(encoding["pooling"]), DTYPES[str(encoding["dtype"])]
    contexts, pooled = [], []
    for first in range(0, len(texts), CAPTIONS_PER_CALL):
        part = texts[first : first + CAPTIONS_PER_CALL]
        context, state = encode_prompts(
            part, *towers, pooling=pooling, chunks=chunks, rows_per_call=rows_per_call
        )
        contexts.append(context.to("cpu", dtype))
        pooled.append(state.to("cpu", dtype))
    return {"context": torch.cat(contexts), "pooled": torch.cat(pooled)}
