"""Parquet files: one row per image, given as bytes inside it or as a path relative to the file, in its folder."""

import json
import os
import unicodedata
from collections.abc import Iterator
from typing import Any

from refimpl.data.images.archives import ParquetCell, parquet_module, row_group_starts
from refimpl.data.images.decode import BadImage
from refimpl.data.index.layouts.folder import identifier
from refimpl.data.index.record import Item
from refimpl.data.index.shard import Unit
from refimpl.errors import InputError

IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "image_bytes", "bytes", "file_name", "path", "file")
ID_COLUMNS = ("id", "key", "__key__")
RECORD_COLUMNS = ("caption", "text", "tags", "tag_string", "rating", "score")


def units(path: str) -> Iterator[Unit]:
    """One piece per row group. Raises InputError without pyarrow, and for a file without an image column."""
    starts = row_group_starts(path, os.path.getsize(path)) if _schema(path) else ()
    for group in range(len(starts) - 1):
        yield Unit("parquet", path, json.dumps([group, starts[group]]), starts[group + 1] - starts[group])


def _schema(path: str) -> Any:
    parquet = parquet_module()
    try:
        schema = parquet.ParquetFile(path).schema_arrow
    except Exception as error:  # pyarrow's own classes and others
        raise InputError(f"{path}: not a readable parquet file ({error})") from error
    if not any(name in schema.names for name in IMAGE_COLUMNS):
        raise InputError(
            f"{path}: its columns are {', '.join(schema.names)}; the images must be in one of "
            f"{', '.join(IMAGE_COLUMNS)}, as paths or bytes"
        )
    return schema


def items(unit: Unit) -> Iterator[Item | BadImage]:
    """The images of a row group."""
    group, first = json.loads(unit.payload)
    size = os.path.getsize(unit.root)
    schema = _schema(unit.root)
    column = next(name for name in IMAGE_COLUMNS if name in schema.names)
    kind = schema.field(column).type
    bytes_column, path_column = _image_columns(column, kind)
    wanted = [
        name
        for name in schema.names
        if name in (*ID_COLUMNS, *RECORD_COLUMNS) or name.startswith("tag_string_")
    ]
    try:
        table = (
            parquet_module()
            .ParquetFile(unit.root)
            .read_row_group(group, columns=wanted + ([path_column] if path_column else []))
        )
        rows = table.to_pylist() if table.num_columns else [{}] * table.num_rows
        present = _present(unit.root, group, bytes_column) if bytes_column else [False] * len(rows)
        rows = rows or [{}] * len(present)
    except Exception as error:  # pyarrow's own classes and others
        yield BadImage(unit.root, f"row group {group} can't be read ({error})", "archive")
        return
    shard = os.path.splitext(os.path.basename(unit.root))[0]
    for number, record in enumerate(rows):
        row = first + number
        named = record.get(column)
        path = named.get("path") if isinstance(named, dict) else named if isinstance(named, str) else None
        key = next((str(record[name]) for name in ID_COLUMNS if record.get(name) is not None), str(row))
        if present[number] and bytes_column:
            cell = ParquetCell(
                unit.root, os.path.basename(path or "") or f"row {row}", bytes_column, row, size
            )
            yield Item(unicodedata.normalize("NFC", f"{shard}/{key}"), cell, None, record)
        elif isinstance(path, str) and path and "\0" not in path:
            yield Item(identifier(os.path.normpath(path)), path, None, record, f"row {row}")
        else:
            yield BadImage(unit.root, f"row {row} has neither the bytes nor the path of an image", "metadata")


def _image_columns(column: str, kind: Any) -> tuple[str, str]:
    """Dotted names of the column of bytes and the column of paths; empty where there is none."""
    if hasattr(kind, "fields") or str(kind).startswith("struct"):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return (f"{column}.bytes" if "bytes" in names else "", f"{column}.path" if "path" in names else "")
    return (column, "") if "binary" in str(kind) else ("", column)


def _present(path: str, group: int, column: str) -> list[bool]:
    """Whether each row of a group has bytes."""
    values = parquet_module().ParquetFile(path).read_row_group(group, columns=[column]).column(0)
    for name in column.split(".")[1:]:
        values = values.combine_chunks().field(name)
    return values.is_valid().to_pylist()
