"""Builds the columns of a table from images as they are read."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refimpl.data.captions import Tags
from refimpl.data.images.archives import Packed, ParquetCell
from refimpl.data.images.decode import BadImage
from refimpl.data.index.index_file import FILES, NUMBERS, PARQUET, STRINGS, TAR, Table

Container = tuple[str, str, str, int]  # kind, path, column, bytes


@dataclass(frozen=True)
class Row:
    """One usable image."""

    id: str
    source: str | Packed  # a file's path, from its container's on
    size: int  # bytes; −1 where that isn't known
    width: int
    height: int
    caption: str
    tags: Tags
    captioned: bool
    sha256: bytes | None


def folded(identifier: str) -> str:
    """An id case-folded and in Unicode normal form C, as some file systems compare names; no two ids may share it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", identifier).casefold())


def fold_key(identifier: str) -> int:
    """63-bit hash of the folded id."""
    digest = hashlib.blake2b(folded(identifier).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Gathered:
    """Rows and problems gathered so far; `table` turns them into columns."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.containers: dict[Container, int] = {}
        self.classes: dict[str, int] = {}
        self.tags: dict[tuple[str, str], int] = {}
        self.strings: dict[str, list[str]] = {name: [] for name in STRINGS}
        self.numbers: dict[str, list[int]] = {name: [] for name in (*NUMBERS, "fold")}
        self.tag_class: list[int] = []
        self.tag_ids: list[int] = []
        self.tag_ends: list[int] = []
        self.hashes: list[bytes] = []

    def add(self, row: Row) -> None:
        """Add one image."""
        container, name, offset = self._place(row.source)
        number = self.containers.setdefault(container, len(self.containers))
        values = (number, offset, row.size, row.width, row.height, int(row.captioned), fold_key(row.id))
        for column, value in zip(self.numbers.values(), values, strict=True):
            column.append(value)
        for column, text in (("id", row.id), ("name", name), ("caption", row.caption)):
            self.strings[column].append(text)
        for tag_class, names in row.tags.items():
            self.tag_ids += [self._tag(tag_class, tag) for tag in names]
        self.tag_ends.append(len(self.tag_ids))
        if row.sha256 is not None:
            self.hashes.append(row.sha256)

    def _place(self, source: str | Packed) -> tuple[Container, str, int]:
        if isinstance(source, ParquetCell):
            return (PARQUET, source.archive, source.column, source.archive_size), source.name, source.row
        if isinstance(source, Packed):
            return (TAR, source.archive, "", source.archive_size), source.name, source.offset
        return (FILES, self.root, "", -1), source, -1

    def _tag(self, tag_class: str, name: str) -> int:
        found = self.tags.setdefault((tag_class, name), len(self.tags))
        if found == len(self.tag_class):
            self.tag_class.append(self.classes.setdefault(tag_class, len(self.classes)))
            self.strings["tag_name"].append(name)
        return found

    def refuse(self, bad: BadImage) -> None:
        """Add one file that can't be used."""
        for column, text in (("bad_path", str(bad.path)), ("bad_reason", bad.reason), ("bad_kind", bad.kind)):
            self.strings[column].append(text)

    def table(self, facts: Mapping[str, object]) -> Table:
        """The columns of an index, and `fold` [N] int64 in addition."""
        arrays: dict[str, np.ndarray] = {}
        for name, texts in self.strings.items():
            arrays |= packed_strings(name, texts)
        for name, values in self.numbers.items():
            arrays[name] = np.array(values, NUMBERS.get(name, np.int64))
        arrays["tag.ends"] = np.array(self.tag_ends, np.int64)
        arrays["tag.ids"] = np.array(self.tag_ids, np.int32)
        arrays["tag_class"] = np.array(self.tag_class, np.int16)
        if self.hashes:
            arrays["sha256"] = np.frombuffer(b"".join(self.hashes), np.uint8).reshape(-1, 32)
        known = {
            "containers": [list(container) for container in self.containers],
            "classes": list(self.classes),
        }
        return Table(arrays, {**facts, **known})


def packed_strings(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """A column of strings as its two arrays. Names of rejected files that are not valid UTF-8 are escaped."""
    data = [text.encode("utf-8", "backslashreplace") for text in texts]
    ends = np.cumsum(np.fromiter(map(len, data), np.int64, len(data)), dtype=np.int64)
    return {f"{name}.ends": ends, f"{name}.bytes": np.frombuffer(b"".join(data), np.uint8)}


def source_name(root: str, source: str | Packed) -> str | Packed:
    """A row's source as `images.decode` takes it."""
    return source if isinstance(source, Packed) else str(Path(root) / source)
