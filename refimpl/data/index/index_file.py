"""The index file: memory-mapped columns of numbers and strings, in one safetensors file with a format version.

A column of strings is stored as `name.bytes`, the UTF-8 texts one after another, and `name.ends`, where each ends.
Tags are a sparse matrix in row order: `tag.ends` and `tag.ids`, the latter indexing `tag_name` and `tag_class`.
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import InputError
from refimpl.storage.whole_file import written_whole

FORMAT, VERSION = "refimpl-index", 1
RELEASE_EVERY = 1024  # entries read; the system maps some 64 KiB around each, so at most 200 MB stay mapped
MOST_HEADER = 2**28  # bytes; far above an index of a million archives
_CODES = {"<i8": "I64", "<i4": "I32", "<i2": "I16", "|u1": "U8"}
_DTYPES = {code: np.dtype(kind) for kind, code in _CODES.items()}
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
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Any]
    path: str = ""
    memory: "_Mapping | None" = None

    def __len__(self) -> int:
        return len(self.arrays["width"])

    def has_read(self, entries: int) -> None:
        """Record that `entries` entries were read, so that their mapped pages do not accumulate in this process."""
        if self.memory is not None:
            self.memory.has_read(entries)

    def __reduce__(self) -> tuple[Any, ...]:
        """A table backed by a file is pickled as its path."""
        return (read_table, (self.path,)) if self.path else (Table, (dict(self.arrays), dict(self.facts)))


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
    ordered = sorted(columns, key=lambda name: -columns[name][0].itemsize)  # each stays aligned
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "version": str(VERSION), "facts": json.dumps(dict(facts))}
    }
    at = 0
    for name in ordered:
        dtype, shape, _ = columns[name]
        size = int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype.str], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            dtype, shape, pieces = columns[name]
            written = 0
            for piece in pieces:
                data = np.ascontiguousarray(piece, dtype)
                file.write(data.data.cast("B") if data.size else b"")
                written += data.size
            assert written == np.prod(shape), f"column {name}: {written} of {shape}"


def in_memory(columns: Mapping[str, Shaped], facts: Mapping[str, Any]) -> Table:
    """The same columns as a table."""
    arrays = {
        name: np.concatenate([np.empty((0, *shape[1:]), dtype), *pieces]).astype(dtype, copy=False)
        for name, (dtype, shape, pieces) in columns.items()
    }
    return Table(arrays, dict(facts))


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that begins like an index, of any version."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return f'"format": "{FORMAT}"'.encode() in file.read(200)
    except OSError:
        return False


class _OnDisk(Mapping[str, npt.NDArray[Any]]):
    """Columns of a file that is not kept open: each access reads the whole column."""

    def __init__(self, path: str, start: int, header: Mapping[str, Any]) -> None:
        self.path, self.start, self.header = path, start, header

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        entry = self.header[name]
        dtype, count = _DTYPES[entry["dtype"]], int(np.prod(entry["shape"]))
        array = np.fromfile(self.path, dtype, count, offset=self.start + entry["data_offsets"][0])
        return array.reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)


def read_table(path: str | os.PathLike[str], mapped: bool = True) -> Table:
    """Memory-map an index file; little but its header is read.

    mapped  if False, each access reads a whole column instead, so that thousands of tables need no open files
    Raises InputError for a file that is not an index, is damaged or truncated, or comes from a newer version.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if not 2 <= length <= min(MOST_HEADER, size - 8):
                raise InputError(
                    f"{name} is not an index; make one with: refimpl data index FOLDER -o {name}"
                )
            header = json.loads(file.read(length))
            memory = _Mapping(file.fileno())
    except OSError as error:
        raise InputError(f"{name}: the index can't be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{name} is not an index: its header is damaged ({error})") from error
    try:
        metadata = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise KeyError("format")
        if int(metadata["version"]) > VERSION:
            raise InputError(
                f"{name} is an index of version {int(metadata['version'])}, from a newer refimpl; this one reads "
                f"version {VERSION}: update it, or index the images again"
            )
        facts = json.loads(metadata["facts"])
        arrays = {column: _mapped(memory.map, 8 + length, entry) for column, entry in header.items()}
        table = Table(arrays, facts, name, memory)
        _check(table)
        if not mapped:
            return Table(_OnDisk(name, 8 + length, header), facts, name)
        memory.has_read(RELEASE_EVERY)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{name} is not a whole index ({type(error).__name__}: {error}); make it again with: refimpl data index"
        ) from error
    return table


def _mapped(mapped: mmap.mmap, start: int, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    dtype, shape = _DTYPES[entry["dtype"]], [int(side) for side in entry["shape"]]
    begin, end = entry["data_offsets"]
    count = int(np.prod(shape))
    if begin < 0 or end - begin != count * dtype.itemsize or start + end > len(mapped) or min(shape) < 0:
        raise ValueError("a column leaves the file, which may be truncated")
    return np.frombuffer(mapped, dtype, count, start + begin).reshape(shape)


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
    if not all(len(container) == 4 for container in table.facts["containers"]):
        raise ValueError("containers without a kind, a path, a column and a size")
    table.facts["classes"][:0]
