"""Removes from a finished cache what its manifest does not name: other images, other settings (not from a paper).

Files that have not the name of a shard or a lookup are the user's own, and stay.

A shard of which only some rows are still in use is written again with these alone. The order makes it safe to be
killed: new shards first, then the lookup and the manifest that name them, then what nothing names is deleted. At
every moment the manifest names whole shards only, and another run takes up what was left.
"""

from pathlib import Path

import numpy as np
import torch

from refimpl.cache.files import write_manifest, write_shard
from refimpl.storage.shards import Shard, map_shard, verify_shard
from refimpl.storage.store import LOOKUP, Int64s, Store, open_store, shard_files

KEYS = {"latents": ("sample_ids", "entries", "contents"), "text": ("captions",)}
"""Kind → the columns of a shard that tell its entries apart, and after which it is named."""


def prune(folder: Path) -> dict[str, int]:
    """Removes what the cache of one kind holds beside its manifest; the folder's name is the kind.

    returns  counts to print: pruned_files, those deleted or written again; pruned_bytes
    Raises InputError when the cache is unfinished, its lookup is damaged, or a shard is that has to be written again.
    """
    store = open_store(folder)
    before = _sizes(folder)
    shards, places = _compacted(store, folder)
    if [shard.path for shard in shards] != [folder / name for name in store.manifest.shards]:
        numbers = store.lookup["shards"]
        rows = [
            places[number][row] for number, row in zip(numbers.flat, store.lookup["rows"].flat, strict=True)
        ]
        lookup = {**store.lookup, "rows": np.array(rows, np.int32).reshape(numbers.shape)}
        write_manifest(folder, store.manifest.encoding, shards, lookup, store.manifest.details)
    manifest = open_store(folder).manifest
    gone = [name for name in _sizes(folder) if name not in (*manifest.shards, manifest.lookup)]
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    freed = sum(before.values()) - sum(_sizes(folder).values())
    return {"pruned_files": len(gone), "pruned_bytes": freed}


def _sizes(folder: Path) -> dict[str, int]:
    """Name → bytes of all shards and lookups in the folder; of a link, its own."""
    files = [*shard_files(folder), *folder.glob(f"{LOOKUP}*.safetensors")]
    return {path.name: path.lstat().st_size for path in files}


def _compacted(store: Store, folder: Path) -> tuple[list[Shard], list[Int64s]]:
    """The manifest's shards without the rows that nothing uses; and for each, where its former rows are now."""
    numbers, rows = (store.lookup[name].reshape(-1) for name in ("shards", "rows"))
    shards, places = [], []
    if not bool(((numbers >= 0) & (numbers < len(store.manifest.shards)) & (rows >= 0)).all()):
        raise store.lost()
    for number in range(len(store.manifest.shards)):
        shard, used = store.shard(number), np.unique(rows[numbers == number]).astype(np.int64)
        count = len(next(iter(shard.tensors.values())))
        if used.size and used[-1] >= count:
            raise store.lost()
        place = np.full(count, -1, np.int64)
        place[used] = np.arange(len(used))
        places.append(place)
        shards.append(shard if len(used) == count else _written_again(shard, used, store, folder))
    return shards, places


def _written_again(shard: Shard, used: Int64s, store: Store, folder: Path) -> Shard:
    verify_shard(shard)  # or its damage would get a digest of its own
    tensors = {name: tensor[torch.from_numpy(used)] for name, tensor in shard.tensors.items()}
    keys = b"".join(tensors[name].numpy().tobytes() for name in KEYS[folder.name])
    group = shard.metadata["group"]
    return map_shard(write_shard(folder, folder.name, group, store.manifest.encoding, tensors, keys))
