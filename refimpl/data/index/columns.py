"""Columns of an index as sequences that read one entry at a time, as the loader and the trainer use them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from refimpl.data.captions import Tags
from refimpl.data.images.archives import Packed, ParquetCell, TarMember
from refimpl.data.index.index_file import PARQUET, TAR, Table
from refimpl.data.index.inside import real_folder, refuse_outside
from refimpl.errors import InputError

T = TypeVar("T")
Rows = npt.NDArray[np.integer]


class Column(Sequence[T]):
    """Entries of some rows of a table, decoded on access; a slice is a list."""

    def __init__(self, table: Table, rows: Rows | None = None) -> None:
        self.table = table
        self.rows = rows  # None for all of them in order

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    def _entry(self, row: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        item = range(len(self))[index]
        return self._entry(item if self.rows is None else int(self.rows[item]))

    def __iter__(self) -> Iterator[T]:
        rows = range(len(self)) if self.rows is None else self.rows.tolist()
        return map(self._entry, rows)

    def take(self, rows: Rows) -> "Column[T]":
        """The column restricted to the given entries, in the given order."""
        chosen = np.asarray(rows)
        return type(self)(self.table, chosen if self.rows is None else self.rows[chosen])


def string_at(table: Table, column: str, row: int) -> str:
    """One string of a table. Raises InputError when the file's bytes are damaged."""
    ends = table.arrays[f"{column}.ends"]
    table.has_read(1)
    return _decoded(
        table, column, table.arrays[f"{column}.bytes"], int(ends[row - 1]) if row else 0, int(ends[row])
    )


def strings(table: Table, column: str) -> list[str]:
    """All strings of a column, meant for short columns. Raises as `string_at` does."""
    ends, data = table.arrays[f"{column}.ends"].tolist(), table.arrays[f"{column}.bytes"]
    return [_decoded(table, column, data, start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _decoded(table: Table, column: str, data: npt.NDArray[np.uint8], start: int, end: int) -> str:
    try:
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"bytes {start} to {end} of {len(data)}")
        return data[start:end].tobytes().decode()
    except ValueError as error:
        raise InputError(
            f"{table.path}: an entry of {column} is damaged ({error}); index the images again"
        ) from error


class Ids(Column[str]):
    """The id of each image."""

    def _entry(self, row: int) -> str:
        return string_at(self.table, "id", row)


class Captions(Column[str]):
    """The caption of each image."""

    def _entry(self, row: int) -> str:
        return string_at(self.table, "caption", row)


class Places(Column[Path | Packed]):
    """The source of each image, as `images.decode` takes it: a path, or a place in an archive.

    Asking for a file outside its folder, behind a link perhaps, raises BadImage unless the table allows it.
    """

    def _entry(self, row: int) -> Path | Packed:
        arrays = self.table.arrays
        name = string_at(self.table, "name", row)
        try:
            kind, path, column, size = self.table.facts["containers"][arrays["container"][row]]
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{self.table.path}: image {row} refers to no container; index the images again"
            ) from error
        if kind == TAR:
            return TarMember(path, name, int(arrays["offset"][row]), int(arrays["size"][row]), size)
        if kind == PARQUET:
            return ParquetCell(path, name, column, int(arrays["offset"][row]), size)
        if not self.table.allow_outside:
            refuse_outside(path, name, self.table.path, real_folder)
        return Path(path) / name


class TagLists(Column[Tags]):
    """Tags by class of each image."""

    def _entry(self, row: int) -> Tags:
        found: dict[str, list[str]] = {}
        arrays, classes = self.table.arrays, self.table.facts["classes"]
        ends = arrays["tag.ends"]
        try:
            for tag in arrays["tag.ids"][int(ends[row - 1]) if row else 0 : int(ends[row])].tolist():
                tag_class = classes[arrays["tag_class"][tag]]
                found.setdefault(tag_class, []).append(string_at(self.table, "tag_name", tag))
        except IndexError as error:
            raise InputError(
                f"{self.table.path}: a tag of image {row} is damaged; index the images again"
            ) from error
        return {tag_class: tuple(names) for tag_class, names in found.items()}

    @property
    def distinct(self) -> int:
        """Number of tag ids in the table."""
        return len(self.table.arrays["tag_class"])

    def numbers(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tags of rows [start, stop) as numbers: how many each row has, and all their ids one after another."""
        ends, ids = self.table.arrays["tag.ends"], self.table.arrays["tag.ids"]
        rows = np.arange(start, stop) if self.rows is None else np.asarray(self.rows[start:stop])
        last = ends[rows].astype(np.int64)
        self.table.has_read(stop - start)
        first = np.where(rows > 0, ends[np.maximum(rows - 1, 0)], 0).astype(np.int64)
        return last - first, ids[places_of(first, last)].astype(np.int64)

    def dictionary(self) -> list[tuple[str, str]]:
        """(class, name) of each tag id."""
        classes = self.table.facts["classes"]
        names = strings(self.table, "tag_name")
        return [
            (classes[c], name) for c, name in zip(self.table.arrays["tag_class"].tolist(), names, strict=True)
        ]


def places_of(first: npt.NDArray[Any], last: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """first[0] … last[0] − 1, first[1] … last[1] − 1, …: where variable-length rows lie."""
    lengths = last - first
    shift = np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    return np.arange(int(lengths.sum()), dtype=np.int64) + shift
