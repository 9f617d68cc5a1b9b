"""The files of a cache, each written whole or not at all (not from a paper)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from refimpl.errors import InputError
from refimpl.storage.atomic import remove_unfinished, replace_text, replaced_file
from refimpl.storage.shards import Shard, shard_bytes, verify_shard
from refimpl.storage.store import (
    ENCODING,
    FORMAT,
    LOOKUP,
    MANIFEST,
    Manifest,
    fingerprint,
    refuse_newer,
    scan,
)


def clean_folder(folder: Path, encoding: dict[str, Any], verify: bool) -> None:
    """Removes files that a killed run left half written, and damaged shards, whose entries are then encoded again.

    Raises InputError for a cache of a newer format, which stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_newer(folder)
    remove_unfinished(folder)
    shards, bad = scan(folder, encoding)
    for shard in shards if verify else ():
        try:
            verify_shard(shard)
        except InputError as error:
            bad[shard.path] = error
    for path, error in bad.items():
        tqdm.write(f"damaged, to be written again: {error}")
        path.unlink(missing_ok=True)


def write_shard(
    folder: Path,
    kind: str,
    group: str,
    encoding: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    keys: bytes,
) -> Path:
    """Writes <kind>-<group>-<hash of encoding and keys>.safetensors, whole or not at all; returns its path.

    Raises InputError when the disk refuses it.
    """
    made = fingerprint(encoding)
    name = hashlib.sha256(made.encode() + keys).hexdigest()[:16]
    data = shard_bytes(tensors, {"format": str(FORMAT), "group": group, ENCODING: made})
    place = folder / f"{kind}-{group}-{name}.safetensors"
    with replaced_file(place) as path:
        path.write_bytes(data)
    return place


def write_manifest(
    folder: Path,
    encoding: dict[str, Any],
    shards: Sequence[Shard],
    lookup: dict[str, Any],
    details: dict[str, Any],
) -> None:
    """Writes the lookup, then the manifest that names it, then removes lookups that no manifest names."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in lookup.items()}
    data = shard_bytes(tensors, {"format": str(FORMAT)})
    name = f"{LOOKUP}{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    with replaced_file(folder / name) as path:
        path.write_bytes(data)
    manifest = Manifest(FORMAT, encoding, tuple(shard.path.name for shard in shards), name, details)
    replace_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
    for path in folder.glob(f"{LOOKUP}*.safetensors"):
        if path.name != name:
            path.unlink()
