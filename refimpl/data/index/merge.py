"""Merging the tables of a data set's pieces into one table, sorted by id, with every id once."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.data.images.decode import BadImage
from refimpl.data.index.builder import folded, packed_strings
from refimpl.data.index.columns import places_of, string_at, strings
from refimpl.data.index.index_file import NUMBERS, Shaped, Table

CHUNK = 1 << 15  # images copied at once

Columns = dict[str, Shaped]


@dataclass(frozen=True)
class Merged:
    """A merged data set; the columns' data is produced only as it is consumed, and only once."""

    columns: Columns
    facts: dict[str, Any]
    duplicates: list[BadImage]  # also among the problems in the columns


def merged(parts: Sequence[Table]) -> Merged:
    """The data set that the parts form together.

    parts  each with the column `fold`. Of images whose ids differ at most in case or Unicode normal form, the first,
           by id and then by part, is kept; the others become problems of kind "duplicate id" that name both.
    """
    order, duplicates = _distinct(parts, _by_id(parts))
    count = len(order)
    containers, of_container = _united([part.facts["containers"] for part in parts], tuple)
    classes, of_class = _united([part.facts["classes"] for part in parts], str)
    tag_pairs = [
        list(zip(of_class[k][part.arrays["tag_class"]].tolist(), strings(part, "tag_name"), strict=True))
        for k, part in enumerate(parts)
    ]
    tags, of_tag = _united(tag_pairs, lambda pair: pair)
    columns: Columns = {}
    for name, kind in NUMBERS.items():
        pieces = [part.arrays[name] for part in parts]
        if name == "container":
            pieces = [of_container[k][piece] for k, piece in enumerate(pieces)]
        columns[name] = np.dtype(kind), (count,), _numbers(pieces, order)
    for name in ("id", "name", "caption"):
        ends, gather = _lists(
            parts, f"{name}.ends", lambda part, name=name: part.arrays[f"{name}.bytes"], order
        )
        columns[f"{name}.ends"] = np.dtype(np.int64), (count,), iter([ends])
        columns[f"{name}.bytes"] = np.dtype(np.uint8), (_last(ends),), gather
    numbers = {id(part): of_tag[k] for k, part in enumerate(parts)}
    ends, gather = _lists(parts, "tag.ends", lambda part: numbers[id(part)][part.arrays["tag.ids"]], order)
    columns["tag.ends"] = np.dtype(np.int64), (count,), iter([ends])
    columns["tag.ids"] = np.dtype(np.int32), (_last(ends),), gather
    columns["tag_class"] = np.dtype(np.int16), (len(tags),), iter([np.array([c for c, _ in tags], np.int16)])
    columns |= _whole("tag_name", [name for _, name in tags])
    if all("sha256" in part.arrays or not len(part) for part in parts) and count:
        hashes = [part.arrays.get("sha256", np.empty((0, 32), np.uint8)) for part in parts]
        columns["sha256"] = np.dtype(np.uint8), (count, 32), _numbers(hashes, order)
    for name in ("bad_path", "bad_reason", "bad_kind"):
        attribute = {"bad_path": "path", "bad_reason": "reason", "bad_kind": "kind"}[name]
        texts = [text for part in parts for text in strings(part, name)]
        columns |= _whole(name, texts + [str(getattr(bad, attribute)) for bad in duplicates])
    facts = {"containers": [list(container) for container in containers], "classes": classes}
    return Merged(columns, facts, duplicates)


def _united(
    lists: Sequence[Sequence[Any]], key: Callable[[Any], Any]
) -> tuple[list[Any], list[npt.NDArray[Any]]]:
    """All distinct entries in order of first occurrence, and for each list the numbers of its entries among them."""
    known: dict[Any, int] = {}
    numbers = [
        np.array([known.setdefault(key(entry), len(known)) for entry in entries], np.int64)
        for entries in lists
    ]
    return list(known), numbers


def _by_id(parts: Sequence[Table]) -> npt.NDArray[np.int64]:
    """Order [N] of all rows by id, with the rows numbered across the parts."""
    ids: list[bytes] = []
    for part in parts:
        ends, data = part.arrays["id.ends"].tolist(), part.arrays["id.bytes"].tobytes()
        ids += [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)  # of UTF-8 as of the text


def _distinct(
    parts: Sequence[Table], order: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[BadImage]]:
    """The order without the rows whose id occurred before, and those rows as problems."""
    if not len(order):
        return order, []
    keys = np.concatenate([part.arrays["fold"] for part in parts])[order]
    by_key = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(keys[by_key[1:]] == keys[by_key[:-1]])
    if not len(repeated):
        return order, []
    starts = np.cumsum([0, *map(len, parts)])
    first: dict[str, str] = {}
    dropped, problems = [], []
    for position in np.unique(np.concatenate([by_key[repeated], by_key[repeated + 1]])).tolist():
        part = int(np.searchsorted(starts, order[position], side="right")) - 1
        row = int(order[position] - starts[part])
        identifier, path = string_at(parts[part], "id", row), _path(parts[part], row)
        other = first.setdefault(folded(identifier), path)
        if other is not path:
            dropped.append(position)
            alike = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", path)
            why = " (they look the same, but are in different Unicode normal forms)" if alike else ""
            reason = f"two images have the id {identifier!r}: {other} and {path}{why}; rename one of them"
            problems.append(BadImage(path, reason, "duplicate id"))
    return np.delete(order, dropped), problems


def _path(part: Table, row: int) -> str:
    container = part.facts["containers"][part.arrays["container"][row]]
    return f"{container[1].rstrip('/')}/{string_at(part, 'name', row)}"


def _numbers(pieces: Sequence[npt.NDArray[Any]], order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[Any]]:
    if len(order):
        yield np.concatenate(pieces)[order]


def _lists(
    parts: Sequence[Table],
    ends_name: str,
    values: Callable[[Table], npt.NDArray[Any]],
    order: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], Iterator[npt.NDArray[Any]]]:
    """A column of variable-length rows: their ends in the new order, and their data, produced when it is read."""
    lengths = np.concatenate(
        [np.empty(0, np.int64), *(np.diff(part.arrays[ends_name], prepend=0) for part in parts)]
    )
    last = np.cumsum(lengths)

    def gather() -> Iterator[npt.NDArray[Any]]:
        if not len(order):
            return
        joined = np.concatenate([values(part) for part in parts])
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            yield joined[places_of(last[rows] - lengths[rows], last[rows])]

    return np.cumsum(lengths[order]), gather()


def _last(ends: npt.NDArray[np.int64]) -> int:
    return int(ends[-1]) if len(ends) else 0


def _whole(name: str, texts: Sequence[str]) -> Columns:
    found = packed_strings(name, texts)
    return {column: (array.dtype, array.shape, iter([array])) for column, array in found.items()}
