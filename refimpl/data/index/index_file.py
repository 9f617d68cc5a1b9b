"""The index file: memory-mapped columns of numbers and strings, in one safetensors file with a format version.

A column of strings is stored as `name.bytes`, the UTF-8 texts one after another, and `name.ends`, where each ends.
Tags are a sparse matrix in row order: `tag.ends` and `tag.ids`, the latter indexing `tag_name` and `tag_class`.
"""

import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.data.index.inside import real_folder, refuse_outside, unusual_names
from refimpl.errors import InputError
from refimpl.storage.atomic import replaced_file
from refimpl.storage.safetensors_header import Entry, Header, Pieces, Reader, opened, write_container
from refimpl.tables import parsed_json

FORMAT, VERSION = "refimpl-index", 1
RELEASE_EVERY = 1024  # entries read; the system maps some 64 KiB around each, so at most 200 MB stay mapped
READER = Reader("index", "make it again with: refimpl data index FOLDER -o INDEX")
_CODES = {"<i8": "I64", "<i4": "I32", "<i2": "I16", "|u1": "U8"}
_DTYPES = {code: np.dtype(kind) for kind, code in _CODES.items()}
FILES, TAR, PARQUET = "files", "tar", "parquet"  # kinds of containers
STRINGS = ("id", "name", "caption", "tag_name", "bad_path", "bad_reason", "bad_kind")
NUMBERS = {  # column → dtype, one entry per image
    "container": np.int32,  # which of facts["containers"] holds the image
    "offset": np.int64,  # of a tar member's first byte; row of a parquet cell; −1 for a file
    "size": np.int64,  # bytes; of a parquet cell −1
    "width": np.int32,  # pixels, upright
    "height": np.int32,
    "captioned": np.uint8,  # 0 where no caption was found
}


@dataclass(frozen=True, eq=False)
class Table:
    """Columns in memory or in a file, and metadata that applies to the whole table.

    arrays  columns by name, see the module docstring and NUMBERS; `sha256` [N, 32] uint8 if it was requested
    facts   containers: a list of [kind, path, column, bytes]; classes: names of the tag classes
    path    the file that the arrays are read from; empty for a table in memory
    memory  its memory map, if any
    allow_outside  whether an image may lie outside the folder that the table gives for it (see `inside`)
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Any]
    path: str = ""
    memory: "_Mapping | None" = None
    allow_outside: bool = False

    def __len__(self) -> int:
        return len(self.arrays["width"])

    def has_read(self, entries: int) -> None:
        """Record that `entries` entries were read, so that their mapped pages do not accumulate in this process."""
        if self.memory is not None:
            self.memory.has_read(entries)

    def __reduce__(self) -> tuple[Any, ...]:
        """A table backed by a file is pickled as its path."""
        if self.path:
            return read_table, (self.path, True, self.allow_outside)
        return Table, (dict(self.arrays), dict(self.facts), "", None, self.allow_outside)


class _Mapping:
    """A memory-mapped file; pages that were read are released now and then, but stay in the system's page cache."""

    def __init__(self, descriptor: int) -> None:
        self.map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self.read = 0

    def has_read(self, entries: int) -> None:
        self.read += entries
        if self.read >= RELEASE_EVERY and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)
            self.read = 0


Shaped = tuple[
    np.dtype[Any], tuple[int, ...], Iterable[npt.NDArray[Any]]
]  # dtype, shape, its pieces in order


def write_table(path: Path, columns: Mapping[str, Shaped], facts: Mapping[str, Any]) -> None:
    """Writes an index file; it appears whole or not at all.

    columns  each as its dtype, its shape and its rows in pieces, so that no column has to fit in memory
    Raises InputError when it can't be written.
    """
    # The format comes first, so that `is_index` need not read far.
    metadata = {"format": FORMAT, "version": str(VERSION), "facts": json.dumps(dict(facts))}
    tensors = {
        name: Pieces(_CODES[dtype.str], shape, _bytes_of(pieces, dtype))
        for name, (dtype, shape, pieces) in columns.items()
    }
    with replaced_file(path, make_folder=True) as temporary, temporary.open("wb") as file:
        write_container(file, str(path), tensors, metadata)


def _bytes_of(pieces: Iterable[npt.NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[memoryview]:
    for piece in pieces:
        data = np.ascontiguousarray(piece, dtype)
        yield data.data.cast("B") if data.size else memoryview(b"")


def in_memory(columns: Mapping[str, Shaped], facts: Mapping[str, Any]) -> Table:
    """The same columns as a table, of images that were found by the rule of `inside` just now."""
    arrays = {
        name: np.concatenate([np.empty((0, *shape[1:]), dtype), *pieces]).astype(dtype, copy=False)
        for name, (dtype, shape, pieces) in columns.items()
    }
    return Table(arrays, dict(facts), allow_outside=True)


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that begins like an index, of any version."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return f'"format":"{FORMAT}"'.encode() in file.read(200).replace(b": ", b":")
    except OSError:
        return False


class _OnDisk(Mapping[str, npt.NDArray[Any]]):
    """Columns of a file that is not kept open: each access reads the whole column."""

    def __init__(self, path: str, header: Header) -> None:
        self.path, self.header = path, header

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        entry = self.header.entries[name]
        count, offset = math.prod(entry.shape), self.header.start + entry.begin
        return np.fromfile(self.path, _DTYPES[entry.dtype], count, offset=offset).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.entries)

    def __len__(self) -> int:
        return len(self.header.entries)


def read_table(path: str | os.PathLike[str], mapped: bool = True, allow_outside: bool = False) -> Table:
    """Memory-map an index file; little but its header and the images' names is read.

    mapped         if False, each access reads a whole column instead, so that thousands of tables need no open files
    allow_outside  accept images outside the folders that the index gives for them
    Raises InputError for a file that is not an index, is damaged or truncated, or comes from a newer version, and
    for an image outside its folder, unless that is allowed; one that only a link leads to is refused when it is read.
    """
    name = os.fspath(path)
    with opened(name, READER) as (file, header):
        memory = _Mapping(file.fileno())
    try:
        metadata = header.metadata
        if metadata["format"] != FORMAT:
            raise KeyError("format")
        if int(metadata["version"]) > VERSION:
            raise InputError(
                f"{name} is an index of version {int(metadata['version'])}, from a newer refimpl; this one reads "
                f"version {VERSION}: update it, or index the images again"
            )
        facts = parsed_json(metadata["facts"])
        arrays = {
            column: _mapped(memory.map, header.start, entry) for column, entry in header.entries.items()
        }
        table = Table(arrays, facts, name, memory, allow_outside)
        _check(table)
        if not mapped:
            return Table(_OnDisk(name, header), facts, name)
        if not allow_outside:
            _check_inside(table)
        memory.has_read(RELEASE_EVERY)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{name} is not a whole index: {type(error).__name__}: {error}; {READER.remedy}"
        ) from error
    return table


def _mapped(mapped: mmap.mmap, start: int, entry: Entry) -> npt.NDArray[Any]:
    dtype = _DTYPES[entry.dtype]
    return np.frombuffer(mapped, dtype, math.prod(entry.shape), start + entry.begin).reshape(entry.shape)


def _check(table: Table) -> None:
    """Raise ValueError unless lengths agree, and strings and tags end where their data does."""
    arrays, count = table.arrays, len(table)
    lengths = {name: len(arrays[name]) for name in NUMBERS}
    lengths |= {name: len(arrays[f"{name}.ends"]) for name in ("id", "name", "caption", "tag")}
    bad = {len(arrays[f"{name}.ends"]) for name in STRINGS if name.startswith("bad_")}
    if set(lengths.values()) != {count} or len(bad) != 1:
        raise ValueError(f"columns of different lengths: {lengths}")
    if len(arrays["tag_class"]) != len(arrays["tag_name.ends"]):
        raise ValueError("tags without a class")
    for ends, values in [(f"{name}.ends", f"{name}.bytes") for name in STRINGS] + [("tag.ends", "tag.ids")]:
        if (int(arrays[ends][-1]) if len(arrays[ends]) else 0) != len(arrays[values]):
            raise ValueError(
                f"{values} has {len(arrays[values])} entries, which is not where its last one ends"
            )
    for container in table.facts["containers"]:
        kind, path, column, size = container
        if kind not in (FILES, TAR, PARQUET) or not isinstance(path, str) or not isinstance(column, str):
            raise ValueError(f"a container without a kind, a path and a column: {container!r:.100}")
        if type(size) is not int:
            raise ValueError(f"a container without a size: {container!r:.100}")
    table.facts["classes"][:0]


def _check_inside(table: Table) -> None:
    """Raises BadImage for an image that its name alone leads out of its folder."""
    data, ends = table.arrays["name.bytes"], table.arrays["name.ends"]
    for row in unusual_names(data, ends):
        kind, folder, *_ = table.facts["containers"][table.arrays["container"][row]]
        if kind == FILES:
            name = data[ends[row - 1] if row else 0 : ends[row]].tobytes().decode()
            refuse_outside(folder, name, table.path, real_folder)
