"""A folder of shards with a manifest and lookup arrays: the format of cached latents and text (not from a paper).

    <folder>/<kind>-<group>-<hash>.safetensors   shards, each written once, whole or absent
    <folder>/lookup-<hash>.safetensors           where each entry lies, memory-mapped like the shards
    <folder>/cache.json                          the manifest, replaced last

A shard names the encoding (networks and settings) that made it, and each of its rows names what it was made
from; so the shards alone tell which entries exist, whatever killed the process that wrote them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.names import near_path
from refimpl.storage.shards import Shard, map_shard
from refimpl.tables import from_table, parsed_json

FORMAT = 1
MANIFEST = "cache.json"
LOOKUP = "lookup-"
ENCODING = "encoding"  # metadata key of a shard: fingerprint of what made it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Manifest:
    """The content of cache.json, which a finished run of `refimpl cache` leaves."""

    format: int
    """Format version of everything in the folder."""
    encoding: dict
    """The networks and settings that the entries depend on."""
    shards: tuple[str, ...]
    """File names of the shards, which the lookup numbers from 0."""
    lookup: str
    """File name of the lookup arrays."""
    details: dict
    """What else the reader of this kind of cache needs."""


@dataclass(frozen=True, eq=False)
class Store:
    """A finished cache, open for reading. Shards are mapped when first used."""

    folder: Path
    manifest: Manifest
    lookup: dict[str, npt.NDArray[Any]]
    _mapped: dict[int, Shard] = field(default_factory=dict)

    def shard(self, number: int) -> Shard:
        """The shard with this number in the manifest. Raises InputError when there is none, or it is damaged."""
        if number not in self._mapped:
            if not 0 <= number < len(self.manifest.shards):
                raise self.lost()
            self._mapped[number] = map_shard(self.folder / self.manifest.shards[number])
        return self._mapped[number]

    def place(self, entry: int | tuple[int, int]) -> tuple[Shard, int]:
        """The shard of an entry of the lookup, and its row there. Raises InputError when there is none."""
        shard, row = self.shard(int(self.lookup["shards"][entry])), int(self.lookup["rows"][entry])
        if not 0 <= row < len(next(iter(shard.tensors.values()))):
            raise self.lost()
        return shard, row

    def lost(self) -> InputError:
        """The error for a lookup that is not that of the shards."""
        name = self.folder / self.manifest.lookup
        return InputError(f"{name}: it points to what is not there; run `refimpl cache` again")


def open_store(folder: Path) -> Store:
    """Opens a cache for reading.

    Raises InputError when the folder holds no finished cache, a damaged one, or one of another version.
    """
    path = folder / MANIFEST
    try:
        table = parsed_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        where, advice = folder.parent, "write a cache with `refimpl cache`, and name its folder"
        if where.is_file():
            problem = named_kind(where, "the folder of a cache", advice, is_text=False)
            raise InputError(problem or f"{where} is a file, not the folder of a cache; {advice}") from error
        if not where.exists():
            raise InputError(f"{where}: there is no such folder{near_path(where)}; {advice}") from error
        raise InputError(
            f"{folder} holds no finished cache ({MANIFEST} is missing); write it, or continue it, with "
            "`refimpl cache`"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); run `refimpl cache` again") from error
    version = table.get("format") if isinstance(table, dict) else None
    if version != FORMAT:
        raise InputError(
            f"{path} has format {version!r}, but this version reads {FORMAT}; write the cache again, to a new folder"
        )
    manifest = from_table(Manifest, table, str(path))
    for name in (*manifest.shards, manifest.lookup):
        # A cache from elsewhere could otherwise have any file of this machine read.
        if PurePath(name).parts != (name,) or name == "..":
            raise InputError(f"{path} names {name!r:.200}, which is no file name; write the cache again")
    lookup = map_shard(folder / manifest.lookup)
    return Store(folder, manifest, {name: tensor.numpy() for name, tensor in lookup.tensors.items()})


def shard_files(folder: Path) -> list[Path]:
    """What has the name of a shard in a folder, which is named after its kind; other files are the user's own."""
    return sorted(path for path in folder.glob(f"{folder.name}-*.safetensors") if not path.is_dir())


def refuse_newer(folder: Path) -> None:
    """Raises InputError for a cache of a newer format, which this version would write over."""
    try:
        table = parsed_json((folder / MANIFEST).read_text(encoding="utf-8"))
        version = table["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # none, or a damaged one, which a new one takes the place of
    if type(version) is int and version > FORMAT:
        raise InputError(
            f"{folder / MANIFEST} has format {version}, of a newer version; this one writes {FORMAT}: name another "
            "folder, or update"
        )


def scan(folder: Path, encoding: Mapping[str, Any]) -> tuple[list[Shard], dict[Path, InputError]]:
    """The shards made so far with an encoding, in order of name, and what is wrong with each damaged file."""
    wanted, shards, bad = fingerprint(encoding), [], {}
    for path in shard_files(folder):
        try:
            shard = map_shard(path)
            if shard.metadata.get(ENCODING) == wanted:
                shards.append(shard)
        except InputError as error:
            bad[path] = error
    return shards, bad


def fingerprint(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document of plain JSON values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def find_rows(
    sorted_ids: Int64s, columns: npt.NDArray[np.integer], ids: Int64s, wanted: npt.NDArray[np.integer]
) -> Int64s:
    """For each id, the first row of a table that has it together with the wanted values; −1 where there is none.

    sorted_ids [M] ascending; columns [M, C]        ids [N]; wanted [N, C]        returns [N]
    """
    left = np.searchsorted(sorted_ids, ids, "left")
    right = np.searchsorted(sorted_ids, ids, "right")
    found = np.full(len(ids), -1, np.int64)
    for step in range(int((right - left).max(initial=0))):  # once, unless ids occur more than once
        asked = np.flatnonzero((found < 0) & (left + step < right))
        rows = left[asked] + step
        equal = (columns[rows] == wanted[asked]).all(1)
        found[asked[equal]] = rows[equal]
    return found


def listed(names: Sequence[object], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more
